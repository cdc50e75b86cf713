"""Tables and pictures from the logs of runs."""
