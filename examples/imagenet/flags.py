"""What every check of a value says: its name, the value and what to give instead."""

import math


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def check(ok: bool, name: str, value: object, remedy: str) -> None:
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
    """Raises ValueError unless the number is finite and within its bounds.

    It is to be at least `low`, more than `above` and less than `below`.
    """
    if low <= value < below and above < value < math.inf:
        return
    remedy = f"a finite number, {low:,} or more"
    if above > -math.inf:
        remedy = f"a finite number above {above:,}"
    elif below < math.inf:
        remedy = f"{low:,} ≤ {name.lstrip('-')} < {below:,}"
    raise ValueError(f"{name}: got {value!r}; give {remedy}")
