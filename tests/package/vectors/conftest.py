"""Keeps pytest, which looks for doctests, from importing scripts that need torch."""

collect_ignore_glob = ["*.py"]
