"""Data for the trainer: sources of images, how they are read, and their batches."""
