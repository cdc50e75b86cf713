"""Reads command lines, and checks values.

The errors name the flag, the value and what to give instead.
"""

import math
import os
import shutil
from collections.abc import Sequence
from typing import Any

import tyro

_NARROWEST = 40  # columns; on a terminal of fewer than 10, tyro's help never ends


def read_flags(
    kind: Any, program: str, arguments: Sequence[str] | None, **more: Any
) -> Any:
    """Returns an instance of the dataclass `kind`, read from flags by `tyro.cli`.

    `program` is the module that the user runs, and `more` are further arguments of
    `tyro.cli`. A wrong flag or --help raises SystemExit. The help is at least
    `_NARROWEST` columns wide.
    """
    given, columns = os.environ.get("COLUMNS"), shutil.get_terminal_size().columns
    os.environ["COLUMNS"] = str(max(columns, _NARROWEST))
    try:
        return tyro.cli(kind, prog=f"python -m {program}", args=arguments, **more)
    finally:
        del os.environ["COLUMNS"]
        if given is not None:
            os.environ["COLUMNS"] = given


def flag(name: str) -> str:
    """Returns the flag of a field: "batch_size" becomes "--batch-size"."""
    return "--" + name.replace("_", "-")


def check(ok: bool, name: str, value: object, remedy: str) -> None:
    """Raises ValueError unless `ok`; the message has flag, value and remedy."""
    if not ok:
        raise ValueError(f"{flag(name)}: got {value!r}; {remedy}")


def check_number(
    name: str,
    value: float,
    *,
    low: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    high: float = math.inf,
) -> None:
    """Raises ValueError unless the value is finite, ≥ low, > above, < below, ≤ high.

    The message begins with `name`. A bound that is left out does not apply.
    """
    if low <= value <= high and above < value < below and value < math.inf:
        return
    start = f"{above:,} <" if above > -math.inf else f"{low:,} ≤"
    end = f"< {below:,}" if below < math.inf else f"≤ {high:,}"
    remedy = f"{start} {name.lstrip('-')} {end}"
    if below == high == math.inf:
        remedy = f"a finite number, {low:,} or more"
        if above > -math.inf:
            remedy = f"a finite number above {above:,}"
    raise ValueError(f"{name}: got {value!r}; give {remedy}")
