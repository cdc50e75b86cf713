"""Runs `python -m examples.imagenet` and sets its exit status.

Status 0 is success, 1 a failure, 2 an invalid flag or data, which would fail again, 3 a
training that diverged, 75 a failure that another start may avoid, and 128 + n an end
by signal n.
"""

import sys
from typing import Any

from .cli import main

REFUSED = 2
DIVERGED = 3


def _report(unraisable: Any) -> None:
    """Prints an error that no code can handle, except "Event loop is closed".

    tensorstore raises that after a failed read or save.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    sys.unraisablehook = _report
    try:
        result = main()
    except SystemExit as end:
        if not isinstance(end.code, str):
            raise
        print(end.code, file=sys.stderr)
        sys.exit(REFUSED)
    sys.exit(DIVERGED if result and result.diverged else 0)
