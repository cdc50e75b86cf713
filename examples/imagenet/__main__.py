"""`python -m examples.imagenet`.

Its exit status says where another start would end alike.
"""

import sys

from .cli import main

REFUSED = 2  # flags or data that no other start takes either
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
