"""Keeps pytest, which looks for doctests, from importing the script: it needs torch."""

collect_ignore = ["make_vectors.py"]
