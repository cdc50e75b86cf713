"""Images: where they come from, how they are read, and in what batches."""
