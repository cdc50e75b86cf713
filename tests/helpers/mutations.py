"""Damaged copies of files: what a torn copy, a full disk or a bad cable leaves."""

import random


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
