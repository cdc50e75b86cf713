"""Large batches on real data by a protocol, and choices that the paper leaves open."""
