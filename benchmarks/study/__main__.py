"""Runs the study of large batches: the command `python -m benchmarks.study`."""

import tyro

from benchmarks.study import large_batches

if __name__ == "__main__":
    tyro.cli(large_batches.main, description=large_batches.__doc__)
