"""The trainer's data: where images come from, how they are read, and their batches."""
