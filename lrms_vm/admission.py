"""Room for an image that is to come in: before the first byte, while bytes arrive, and once more when the disk is full.

A size that is known before the fetch is only the most that the image can take, since zeros become holes. Reserving it
(posix_fallocate(3)) would refuse a sparse disk that fits ten times over, and fill its holes. So the size is made room
for where that can be, insisted upon only where it is sure, and the disk is looked at again while bytes arrive.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import field, replace
from pathlib import Path
from typing import TypeVar

from lrms_vm import lease as leasing
from lrms_vm import upkeep
from lrms_vm.errors import LrmsVmError, NodeError, SiteError
from lrms_vm.file_systems import kind_of, on_network
from lrms_vm.image import ImageEntry
from lrms_vm.paths import Places
from lrms_vm.units import size_text
from lrms_vm.values import dataclass
from lrms_vm.water_marks import Disk, Limits, Plan, plan, reserve_bytes

LOOK_EVERY_BYTES = 64 << 20
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
T = TypeVar("T")


@dataclass
class Admission:
    """For one acquire: what the site lets the cache take, and how that went so far."""

    limits: Limits = field(default_factory=Limits)
    network_allowed: bool = False
    _places: Places | None = None
    _vo: str = ""
    _looked_at_bytes: int = 0  # received when the disk was last looked at
    _free_then_bytes: int = 0
    _room_then_bytes: int = 0  # until something has to go

    def admit(self, places: Places, entry: ImageEntry, *, at_most_bytes: int | None) -> None:
        """Before a fetch: refuse a disk that is no place for a cache; evict what the water marks say.

        `at_most_bytes`: as the claim says, None where it does not.
        Raises `NodeError` "disk-full" or "state-on-network", `SiteError` "vo-quota-full".
        """
        refuse_network(places.state_dir, allowed=self.network_allowed)
        self._places, self._vo = places, vo_of(entry)
        sure_bytes = _on_disk_bytes(entry.url)
        wanted = sure_bytes if sure_bytes is not None else at_most_bytes or 0
        made = planned(places, self.limits, wanted, self._vo)
        if made.short_bytes and sure_bytes is None:  # it may have holes: the bytes will tell
            wanted = 0
        self._made(make_room(places, self.limits, wanted, self._vo), wanted)

    def watching(self, progress: Callable[[int], None] | None) -> Callable[[int], None]:
        """A `progress` that also sees to it that there is room for what comes next."""

        def told(received_bytes: int) -> None:
            if progress is not None:
                progress(received_bytes)
            if received_bytes < self._looked_at_bytes:
                self._looked_at_bytes = 0  # a new attempt
            if received_bytes - self._looked_at_bytes >= LOOK_EVERY_BYTES:
                self._look(received_bytes)

        return told

    def twice(self, work: Callable[[], T]) -> T:
        """Do `work`; when the disk turns out to be full, make room and do it once more. Raises what `work` raises."""
        try:
            done = work()
        except OSError as error:
            if error.errno not in NO_ROOM or self._places is None or not self._gave_way(self._places):
                raise
            self._looked_at_bytes = 0
            done = work()
        if self._places is not None:
            make_room(self._places, self.limits, 0, self._vo)  # below the marks again, if its size was not known
        return done

    def _gave_way(self, places: Places) -> bool:
        """The disk is full whatever statvfs says: as if nothing but what goes were free. True if anything went."""
        swept = upkeep.sweep(places)
        disk = replace(disk_of(places), free_bytes=0)
        made = plan(upkeep.stored(places), self.limits, disk, wanted_bytes=self._looked_at_bytes, vo=self._vo)
        return bool(upkeep.remove(places, made.remove)) or swept

    def _look(self, received_bytes: int) -> None:
        places = self._places
        if places is None:
            return
        free = disk_of(places).free_bytes
        grown = max(received_bytes - self._looked_at_bytes, self._free_then_bytes - free)
        if 2 * grown > self._room_then_bytes:
            self._looked_at_bytes = received_bytes
            self._made(make_room(places, self.limits, 0, self._vo), 0)

    def _made(self, made: Plan, wanted: int) -> None:
        assert self._places is not None
        if made.short_bytes:
            raise no_room(self._places, self.limits, made, wanted)
        self._free_then_bytes = disk_of(self._places).free_bytes
        self._room_then_bytes = made.limit_bytes * self.limits.high_percent // 100 - made.taken_bytes


def vo_of(entry: ImageEntry) -> str:
    """Whose quota an image counts to: the VO that its list names first, else what its name begins with."""
    if entry.listed is not None and entry.listed.image.vo:
        return entry.listed.image.vo[0]
    first, slash, _ = entry.name.partition("/")
    return first if slash else ""


def refuse_network(path: Path, *, allowed: bool) -> None:
    """Raises `NodeError` where locks, leases and inode numbers may mean nothing."""
    kind = kind_of(path)
    if on_network(kind) and not allowed:
        raise NodeError(
            f"{path}: on {kind}, expected a disk of this node: there locks, leases and inode numbers can be relied on",
            hint="set state_dir to a local disk; state_dir_on_network = true only where no other node uses it",
            code="state-on-network",
        )


def disk_of(places: Places) -> Disk:
    """Raises `OSError`."""
    found = os.statvfs(places.state_dir)
    return Disk(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)


def planned(places: Places, limits: Limits, wanted_bytes: int, vo: str) -> Plan:
    """What would have to go. Raises `NodeError`, `OSError`."""
    return plan(
        upkeep.stored(places),
        limits,
        disk_of(places),
        other_bytes=upkeep.other_bytes(places),
        wanted_bytes=wanted_bytes,
        vo=vo,
    )


def make_room(places: Places, limits: Limits, wanted_bytes: int, vo: str) -> Plan:
    """Remove what has to go: leftovers and quarantine first, then images. Returns how it stands then; `NodeError`."""
    made = planned(places, limits, wanted_bytes, vo)
    if (made.remove or made.short_bytes) and upkeep.sweep(places):
        made = planned(places, limits, wanted_bytes, vo)
    for _ in range(3):  # a job may have taken one of them meanwhile
        if not made.remove:
            break
        upkeep.remove(places, made.remove)
        made = planned(places, limits, wanted_bytes, vo)
    return made


def no_room(places: Places, limits: Limits, made: Plan, wanted_bytes: int) -> LrmsVmError:
    """Say by the numbers why there is no room, and who holds it."""
    more = f"no room for {size_text(wanted_bytes)} more" if wanted_bytes else "no room left"
    held = _held(places)
    hint = "see `lrms-vm cache list`; cache_max, cache_reserve and cache_quota are the site's"
    if made.short_vo is not None:
        return SiteError(
            f"{places.store}: {more}: images of {made.short_vo or 'no VO'} may take "
            f"{size_text(made.limit_bytes)} on this node and take {size_text(made.taken_bytes)}; {held}",
            hint=hint,
            code="vo-quota-full",
        )
    disk = disk_of(places)
    return NodeError(
        f"{places.store}: {more}: the cache may take {size_text(made.limit_bytes)} and takes "
        f"{size_text(made.taken_bytes)}; {held}; the disk has {size_text(disk.free_bytes)} free, of which "
        f"{size_text(reserve_bytes(limits, disk))} are kept for jobs",
        hint=hint,
        code="disk-full",
    )


def disk_full(places: Places) -> NodeError:
    """The disk said so, and nothing could go."""
    free = disk_of(places).free_bytes
    return NodeError(
        f"{places.state_dir}: no space left ({size_text(free)} free); {_held(places)}",
        hint="see `lrms-vm cache list`; make room on the disk",
        code="disk-full",
    )


def _held(places: Places) -> str:
    holders: dict[str, list[str]] = {}
    for lease in leasing.leases(places):
        holders.setdefault(lease.sha256, []).append(lease.key)
    stay = [one for one in upkeep.stored(places) if one.stays]
    jobs = sorted({key for one in stay for key in holders.get(one.sha256, ())})
    by_jobs = sum(one.disk_bytes for one in stay if one.sha256 in holders)
    pinned = sum(one.disk_bytes for one in stay if one.sha256 not in holders)
    who = f" ({', '.join(jobs[:5])}{', ...' if len(jobs) > 5 else ''})" if jobs else ""
    return f"jobs hold {size_text(by_jobs)} of it{who}, pins {size_text(pinned)} more"


def _on_disk_bytes(url: str) -> int | None:
    """What a file on this node will take, holes left out; None for what is elsewhere, or not there."""
    if not url.startswith("/"):
        return None
    try:
        status = os.lstat(url)
    except OSError:
        return None  # said by who opens it
    return min(status.st_size, status.st_blocks * 512)
