"""The optimizer against double precision, and its masks on real networks."""
