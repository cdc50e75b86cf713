"""`python -m examples.imagenet`."""

import sys

from .main import main

if __name__ == "__main__":
    result = main()
    sys.exit(1 if result and result.diverged else 0)
