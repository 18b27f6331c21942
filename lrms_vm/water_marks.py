"""Which stored images have to go so that another fits: a quota, two marks, a reserve, and a quota for each VO.

The cache's limit is its quota, or what the disk leaves it beyond the reserve, whichever is less. Nothing goes while
the cache, counting what is to come, stays below the high mark (percent of the limit); above it, the least recently
used go until it is at the low mark. What a job holds or somebody pinned never goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field

from lrms_vm.values import dataclass

GIB = 1 << 30


@dataclass(frozen=True)
class Limits:
    """What the site lets the cache of one node take."""

    quota_bytes: int | None = None  # None: what the disk gives
    high_percent: int = 90
    low_percent: int = 70
    reserve_bytes: int | None = None  # kept free on the disk; None: `default_reserve_bytes`
    vo_quota_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Disk:
    """The file system of the cache: `free_bytes` is what root's own quota still gives (statvfs f_bavail)."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Stored:
    """One stored image, as far as making room is concerned."""

    sha256: str
    disk_bytes: int  # holes take nothing
    last_used_at: float  # time.time() when its last lease ended, or began where it still lasts
    stays: bool  # a job holds it, or it is pinned
    vo: str = ""


@dataclass(frozen=True)
class Plan:
    """What to remove, in that order, and what is missing even then."""

    remove: tuple[str, ...]
    limit_bytes: int  # of the cache, or of the VO when it is the VO that is short
    taken_bytes: int  # of that limit, once `remove` is gone
    short_bytes: int  # by how much the image to come does not fit; 0: it does
    short_vo: str | None = None  # the VO whose quota is short; None: the cache as a whole


def default_reserve_bytes(total_bytes: int) -> int:
    """Kept free for the jobs' own disks: 2 % of the disk, but 1 to 4 GiB; of a small disk at most a fifth."""
    return min(total_bytes // 5, max(GIB, min(total_bytes // 50, 4 * GIB)))


def reserve_bytes(limits: Limits, disk: Disk) -> int:
    """What the cache leaves free on the disk."""
    return default_reserve_bytes(disk.total_bytes) if limits.reserve_bytes is None else limits.reserve_bytes


def limit_bytes(limits: Limits, disk: Disk, taken_bytes: int) -> int:
    """What the cache may take in all, now that it takes `taken_bytes`."""
    by_disk = max(0, taken_bytes + disk.free_bytes - reserve_bytes(limits, disk))
    return by_disk if limits.quota_bytes is None else min(limits.quota_bytes, by_disk)


def plan(
    stored: Sequence[Stored], limits: Limits, disk: Disk, *, other_bytes: int = 0, wanted_bytes: int, vo: str = ""
) -> Plan:
    """Decide what goes before `wanted_bytes` more come in for `vo`.

    `other_bytes` is what the cache takes besides stored images: partials, quarantine.
    """
    own = limits.vo_quota_bytes.get(vo)
    first: list[Stored] = []
    if own is not None:
        first = _too_many([one for one in stored if one.vo == vo], own, limits, 0, wanted_bytes)
        left = _taken(one for one in stored if one.vo == vo) - _taken(first)
        if left + wanted_bytes > own:
            return Plan(tuple(one.sha256 for one in first), own, left, left + wanted_bytes - own, vo)
    rest = [one for one in stored if one not in first]
    limit = limit_bytes(limits, disk, other_bytes + _taken(stored))
    more = _too_many(rest, limit, limits, other_bytes, wanted_bytes)
    taken = other_bytes + _taken(rest) - _taken(more)
    short = max(0, taken + wanted_bytes - limit)
    return Plan(tuple(one.sha256 for one in [*first, *more]), limit, taken, short)


def _too_many(
    stored: Iterable[Stored], limit: int, limits: Limits, other_bytes: int, wanted_bytes: int
) -> list[Stored]:
    """The least recently used that have to go to reach the low mark; none below the high one."""
    stored = list(stored)
    taken = other_bytes + _taken(stored) + wanted_bytes
    if taken * 100 <= limit * limits.high_percent:
        return []
    gone = []
    for one in sorted((one for one in stored if not one.stays), key=lambda one: (one.last_used_at, one.sha256)):
        if taken * 100 <= limit * limits.low_percent:
            break
        taken -= one.disk_bytes
        gone.append(one)
    return gone


def _taken(stored: Iterable[Stored]) -> int:
    return sum(one.disk_bytes for one in stored)
