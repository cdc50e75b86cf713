"""Studies of LARS on real data: large batches, and choices its paper leaves open."""
