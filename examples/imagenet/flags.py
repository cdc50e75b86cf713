"""What every check of a flag says: its name, the value and what to give instead."""


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def check(ok: bool, name: str, value: object, remedy: str) -> None:
    if not ok:
        raise ValueError(f"{flag(name)}: got {value!r}; {remedy}")
