"""Checks of values, whose errors name the flag, the value and what to give instead."""

import math


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
) -> None:
    """Raises ValueError unless the value is finite, ≥ low, > above and < below.

    The message begins with `name`. A bound that is left out does not apply.
    """
    if low <= value < below and above < value < math.inf:
        return
    remedy = f"a finite number, {low:,} or more"
    if above > -math.inf:
        remedy = f"a finite number above {above:,}"
    elif below < math.inf:
        remedy = f"{low:,} ≤ {name.lstrip('-')} < {below:,}"
    raise ValueError(f"{name}: got {value!r}; give {remedy}")
