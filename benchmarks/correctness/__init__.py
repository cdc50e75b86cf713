"""Compares LARS with a float64 computation, and counts what its masks adapt."""
