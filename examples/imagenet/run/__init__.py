"""A whole run: its loop, its checkpoints, its processes, what it shows."""
