"""Slurm's short forms: host lists and ranges. They are asked about membership and size, never expanded:
`n[0-999999999]` costs nothing.
"""

from __future__ import annotations

import re

_RANGES = re.compile(r"[0-9]{1,9}(?:-[0-9]{1,9})?(?:,[0-9]{1,9}(?:-[0-9]{1,9})?)*", re.ASCII)
_HOSTS = re.compile(r"[A-Za-z0-9._-]*(?:\[([0-9,-]+)\][A-Za-z0-9._-]*)*", re.ASCII)
MAX_HOSTLIST = 1 << 16


def hostlist_has(hostlist: str, node: str) -> bool:
    """Whether a host list (scontrol(1) show hostnames) names this node. Text that is no host list names nobody.

    >>> hostlist_has("n[1-3,5],gpu01", "n5"), hostlist_has("n[01-12]", "n1"), hostlist_has("r[1-2]n[1-4]x", "r2n4x")
    (True, False, True)
    """
    if len(hostlist) > MAX_HOSTLIST:
        return False
    return any(_has(pattern, node) for pattern in _split(hostlist))


def first_host(hostlist: str) -> str:
    """The first name of a host list; "" of what is none.

    >>> first_host("n[01-12],gpu1"), first_host("r2n[4,7-9]x"), first_host("alone"), first_host("n[1")
    ('n01', 'r2n4x', 'alone', '')
    """
    pattern = _split(hostlist)[0] if len(hostlist) <= MAX_HOSTLIST else ""
    first = re.sub(r"\[([0-9]{1,9})[0-9,-]*\]", r"\1", pattern)
    return first if re.fullmatch(r"[A-Za-z0-9._-]+", first, re.ASCII) else ""


def range_size(text: str) -> int | None:
    """How many numbers a range list names; None if it is none.

    >>> range_size("0-3,8"), range_size("3-1")
    (5, None)
    """
    if _RANGES.fullmatch(text) is None:
        return None
    sizes = [_last(part) - _first(part) + 1 for part in text.split(",")]
    return sum(sizes) if min(sizes) > 0 else None


def _split(hostlist: str) -> list[str]:
    """At the commas outside brackets."""
    return re.split(r",(?![0-9,-]*\])", hostlist)


def _has(pattern: str, node: str) -> bool:
    if _HOSTS.fullmatch(pattern) is None:
        return False
    pieces = re.split(r"\[([0-9,-]+)\]", pattern)
    shape = "".join(re.escape(piece) if index % 2 == 0 else "([0-9]{1,9})" for index, piece in enumerate(pieces))
    found = re.fullmatch(shape, node, re.ASCII)
    if found is None:
        return False
    return all(
        _RANGES.fullmatch(ranges) is not None and any(_names(part, number) for part in ranges.split(","))
        for ranges, number in zip(pieces[1::2], found.groups(), strict=True)
    )


def _names(part: str, number: str) -> bool:
    """01-12 names 01, not 1: all numbers of a range are as wide as its first."""
    width = len(part.partition("-")[0])
    return _first(part) <= int(number) <= _last(part) and number == str(int(number)).zfill(width)


def _first(part: str) -> int:
    return int(part.partition("-")[0])


def _last(part: str) -> int:
    return int(part.rpartition("-")[2])
