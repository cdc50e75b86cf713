"""How fast steps, training and data are, as ratios to peers."""
