"""The training step, how all devices run it, and how to find where it diverged."""
