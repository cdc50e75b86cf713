"""Damaged copies of files: what a torn copy, a full disk or a bad cable leaves."""

import json
import random

# What a field may be replaced with, as JSON; None takes the field away.
_LITERALS = (
    None, "null", "true", "0", "-1", "0.5", "5e-324", "1e299", "1e308", "1e999", "NaN",
    "9007199254740993", "1" + "0" * 400, "1" + "0" * 5000, '"x"', '""', "[]", "{}",
    "[[1]]", '{"a": {"b": 5}}', "[" * 50 + "]" * 50, "[" * 100_000 + "]" * 100_000,
    r'"\u001b[31m\n<b>|`[x](y) $\\frac$ \ud800"', '"' + "n" * 5000 + '"',
)  # fmt: skip
_NAMES = ("", "x", "step", "epochs", "network", "\x1b[31m<b>|`[x]", "n" * 5000)


def mutate(raw: bytes, chance: random.Random) -> bytes:
    """Returns a copy with one kind of damage, drawn at random.

    Bits are flipped, or a piece is cut off, taken out, overwritten, put in or repeated.
    """
    copy = bytearray(raw)
    start = chance.randrange(len(copy))
    size = chance.choice((1, 2, 8, 100, 2000))
    kind = chance.randrange(7)
    if kind == 0:
        for _ in range(chance.choice((1, 2, 5, 20))):
            copy[chance.randrange(len(copy))] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del copy[start:]
    elif kind == 2:
        del copy[start : start + size]
    elif kind == 3:
        copy[start : start + size] = bytes(len(copy[start : start + size]))
    elif kind == 4:
        copy[start : start + size] = chance.randbytes(size)
    elif kind == 5:
        copy[start:start] = chance.randbytes(size)
    else:
        copy[start:start] = copy[start : start + size]
    return bytes(copy)


def mutate_field(raw: bytes, chance: random.Random) -> bytes:
    """Returns a copy of JSON lines in which one value, at any depth, is another.

    The value is replaced, taken away, or put under another name.
    """
    lines = raw.split(b"\n")[:-1]
    i = chance.randrange(len(lines))
    # A list of one value, so that the whole line is a value too.
    around, key = whole, _ = [json.loads(lines[i])], 0
    while (
        isinstance(around[key], dict | list) and around[key] and chance.random() < 0.8
    ):
        around = around[key]
        keys = around if isinstance(around, dict) else range(len(around))
        key = chance.choice(list(keys))
    literal, old, mark = chance.choice(_LITERALS), around[key], "the value's place"
    around[key] = mark
    if literal is None:
        del around[key]
    if isinstance(around, dict) and chance.random() < 0.1:
        around[chance.choice(_NAMES)] = old
    text = json.dumps(whole)[1:-1].replace(json.dumps(mark), literal or "")
    lines[i] = text.encode()
    return b"".join(line + b"\n" for line in lines if line)
