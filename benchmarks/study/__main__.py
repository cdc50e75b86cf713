"""The command `python -m benchmarks.study`."""

from benchmarks.study.large_batches import main

if __name__ == "__main__":
    main()
