"""Runs `python -m examples.imagenet` and sets its exit status.

Status 0 is success, 1 a failure, 2 an invalid flag or data, which would fail again, 3 a
training that diverged, 75 a failed process, which may succeed when started again, and
128 + n an end by signal n.
"""

import sys

from .cli import main

REFUSED = 2
DIVERGED = 3

if __name__ == "__main__":
    try:
        result = main()
    except SystemExit as end:
        if not isinstance(end.code, str):
            raise
        print(end.code, file=sys.stderr)
        sys.exit(REFUSED)
    sys.exit(DIVERGED if result and result.diverged else 0)
