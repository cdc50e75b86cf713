"""The speed of steps, training and data, as ratios to other implementations."""
