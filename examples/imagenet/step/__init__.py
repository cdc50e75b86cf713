"""The training step: a pure function, its run on all devices, and its diagnosis."""
