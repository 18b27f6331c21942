"""What two patterns of names (`*`, `?`, `[..]`, as in fnmatch) have to do with each other. Pure.

Where brackets make it hard to tell, a pattern covers nothing and overlaps with everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache


def covers(pattern: str, other: str) -> bool:
    """Whether every name that `other` stands for is one of `pattern`'s: its "*" must all fall into "*" of `pattern`."""
    if pattern in (other, "*"):
        return True
    if "[" in pattern or "[" in other or "?" in pattern:
        return False
    return fnmatchcase(other.replace("?", "*"), pattern)


def all_covered(patterns: Sequence[str], others: Sequence[str]) -> bool:
    return all(any(covers(pattern, other) for pattern in patterns) for other in others)


def may_overlap(patterns: Sequence[str], others: Sequence[str]) -> bool:
    """Whether there may be a name that both stand for."""
    return any(_meet(one[:200], other[:200]) for one in patterns for other in others)


@lru_cache(maxsize=4096)
def _meet(one: str, other: str) -> bool:
    if "[" in one or "[" in other:
        return True
    reached = {0}  # places in `other` that the letters of `one` so far can have led to
    for letter in one:
        reached = _spread(reached, other)
        if letter == "*":
            reached = set(range(min(reached, default=len(other) + 1), len(other) + 1))
            continue
        stays = {at for at in reached if at < len(other) and other[at] == "*"}
        steps = {at + 1 for at in reached if at < len(other) and _same(letter, other[at])}
        reached = stays | steps
        if not reached:
            return False
    return len(other) in _spread(reached, other)


def _spread(places: set[int], pattern: str) -> set[int]:
    """With every "*" of the pattern standing for nothing."""
    found = set(places)
    for at in range(len(pattern)):
        if at in found and pattern[at] == "*":
            found.add(at + 1)
    return found


def _same(one: str, other: str) -> bool:
    return "?" in (one, other) or one == other
