"""A whole run: the training loop, checkpoints, processes, progress and profile."""
