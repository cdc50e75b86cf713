"""Measurements of the package and the trainer; scripts to run with `python -m`."""
