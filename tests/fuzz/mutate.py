"""Bytes that are nearly those of a seed."""

from __future__ import annotations

import random

INTERESTING = (
    b"\0",
    b"9",
    b"\xff",
    b"\x80",
    b"\x7f\xff\xff\xff",
    b"\xff" * 8,
    b"\n",
    b"\r\n",
    b'"',
    b"'",
    b"{",
    b"[",
    b"=",
    b"..",
    b"\\",
)


def mutated(seed: bytes, chance: random.Random) -> bytes:
    """One to six changes: bits, bytes, cuts, insertions, repetitions, numbers at their limits."""
    data = bytearray(seed)
    for _ in range(chance.randint(1, 6)):
        if not data:
            data = bytearray(b"\0")
        at = chance.randrange(len(data))
        way = chance.randrange(7)
        if way == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif way == 1:
            data[at] = chance.randrange(256)
        elif way == 2:
            del data[at : at + chance.choice((1, 1, 2, 8, 64))]
        elif way == 3:
            data[at:at] = chance.choice(INTERESTING) * chance.choice((1, 1, 1, 100, 5000))
        elif way == 4:
            data[at:at] = data[at : at + chance.choice((1, 8, 64, 512))]
        elif way == 5:
            data[at : at + 4] = chance.choice(INTERESTING)[:4]
        else:
            other = chance.randrange(len(data))
            data[at:at] = data[other : other + chance.choice((4, 32, 256))]
    return bytes(data)
