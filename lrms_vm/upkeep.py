"""What is done to stored images outside a job: list, clean after crashes, make room, read all of them again."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path

from lrms_vm import ingest, pins, store
from lrms_vm import lease as leasing
from lrms_vm.errors import NodeError, RequestError
from lrms_vm.hashing import hash_fd
from lrms_vm.paths import Places
from lrms_vm.values import dataclass
from lrms_vm.water_marks import Disk, Limits, Stored, plan

LOCK_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Entry:
    """One stored image, as `lrms-vm cache list` shows it."""

    sha256: str
    size_bytes: int
    disk_bytes: int  # what it takes: holes take nothing
    stored_at: float  # time.time(); 0 for an entry that does not prove itself
    last_used_at: float
    source: str
    held_by: tuple[str, ...]  # job keys
    sound: bool  # as it was left; otherwise it is read again before it is used
    names: tuple[str, ...] = ()
    vo: str = ""
    verified_at: float = 0.0  # when all of it was last read
    pinned: str | None = None  # the reason, which may be empty; None: not pinned


def entries(places: Places) -> list[Entry]:
    """Every stored image, the most recently used first. Raises `NodeError`."""
    holders: dict[str, list[str]] = {}
    try:
        for lease in leasing.leases(places):
            holders.setdefault(lease.sha256, []).append(lease.key)
        reasons = {pin.sha256: pin.reason for pin in pins.pins(places)}
        found = [
            _entry(places, sha256, tuple(holders.get(sha256, ())), reasons.get(sha256))
            for sha256 in store.stored(places)
        ]
    except OSError as error:
        raise NodeError(f"{places.store}: cannot read: {error.strerror}", code="cache-unreadable") from error
    return sorted((e for e in found if e is not None), key=lambda e: -e.last_used_at)


def _entry(places: Places, sha256: str, held_by: tuple[str, ...], pinned: str | None) -> Entry | None:
    directory = store.entry_dir(places, sha256)
    try:
        image = (directory / "image").lstat()
    except FileNotFoundError:
        return None
    meta = store.healthy(places, sha256)
    used = 0.0
    with contextlib.suppress(FileNotFoundError):  # evicted while we look
        used = (directory / "meta.json").lstat().st_mtime if meta is not None else 0.0
    return Entry(
        sha256=sha256,
        size_bytes=image.st_size,
        disk_bytes=image.st_blocks * 512,
        stored_at=meta.stored_at if meta else 0.0,
        last_used_at=used,
        source=meta.source if meta else "",
        held_by=held_by,
        sound=meta is not None,
        names=meta.names if meta else (),
        vo=meta.vo if meta else "",
        verified_at=max(meta.verified_at, meta.stored_at) if meta else 0.0,
        pinned=pinned,
    )


@dataclass(frozen=True)
class PutAside:
    """What was found damaged. It goes as soon as room is needed, and when newer ones come."""

    sha256: str
    at: float  # time.time()
    why: str
    disk_bytes: int
    path: str


def quarantine(places: Places) -> list[PutAside]:
    """What is put aside, the newest first. Raises `NodeError`."""
    try:
        return [_put_aside(path) for path in store.quarantined(places)] if places.quarantine.is_dir() else []
    except OSError as error:
        raise NodeError(f"{places.quarantine}: cannot read: {error.strerror}", code="cache-unreadable") from error


def _put_aside(path: Path) -> PutAside:
    at, why = path.lstat().st_ctime, ""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        words = json.loads((path / store.WHY).read_bytes()[: store.MAX_META_BYTES])
        at, why = float(words["at"]), str(words["why"])
    return PutAside(path.name, at, why, sum(one.lstat().st_blocks * 512 for one in path.rglob("*")), str(path))


def pin(places: Places, sha256: str, reason: str) -> None:
    """Keep a stored image, or refuse when it has just gone. Raises `RequestError`, `NodeError`."""
    pins.pin(places, sha256, reason)  # first: who evicts looks at the pins last
    with store.changing(places, deadline=time.monotonic() + LOCK_TIMEOUT_S):
        if os.path.lexists(store.entry_dir(places, sha256)):
            return
        pins.unpin(places, sha256)
    raise RequestError(f"sha256:{sha256}: it was evicted just now", hint="bring it in again", code="image-not-stored")


def clean(places: Places, *, live: Container[str] | None = None) -> list[str]:
    """Remove what crashes left: unlocked partials, stale leases, entries without an image; return what was removed.

    `live`: the job keys the caller knows to be alive, whose leases stay whatever they look like. Raises `NodeError`.
    """
    store.prepare(places)
    try:
        removed = [f"lease {key}" for key in leasing.remove_stale(places, live=() if live is None else live)]
        with store.changing(places, deadline=time.monotonic() + LOCK_TIMEOUT_S):
            removed += [f"partial {name}" for name in ingest.remove_abandoned(places)]
            removed += [f"draft {name}" for name in _remove_drafts(places)]
            for sha256 in list(store.stored(places)):
                directory = store.entry_dir(places, sha256)
                store.show(directory)
                if not (directory / "image").exists() and store.remove(places, sha256):
                    removed.append(f"entry {sha256}")
    except OSError as error:
        raise NodeError(f"{error.filename}: cannot clean: {error.strerror}", code="cache-unwritable") from error
    return removed


def _remove_drafts(places: Places) -> list[str]:
    """Remove what processes that are gone were writing, to be renamed: `.<name>.<pid>`. Raises `OSError`."""
    gone = []
    entries = (store.entry_dir(places, sha256) for sha256 in store.stored(places))
    for directory in (places.leases, places.pins, places.signatures, places.state_dir, *entries):
        for path in directory.glob(".*"):
            pid = path.name.rpartition(".")[2]
            if pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
                path.unlink(missing_ok=True)
                gone.append(path.name)
    return gone


def evict(places: Places, max_bytes: int) -> list[str]:
    """Remove what is in quarantine, then the least recently used images, until at most `max_bytes` are taken.

    An image that a job holds or that is pinned stays. Returns the sha256 of what was removed. Raises `NodeError`.
    """
    store.prepare(places)
    sweep(places)
    limits = Limits(quota_bytes=max_bytes, high_percent=100, low_percent=100, reserve_bytes=0)
    unbounded = Disk(0, 1 << 62)
    return remove(places, plan(stored(places), limits, unbounded, wanted_bytes=0).remove)


def stored(places: Places) -> list[Stored]:
    """Every stored image as making room sees it: as little is read as can be. Raises `NodeError`."""
    try:
        stay = {lease.sha256 for lease in leasing.leases(places)} | {pin.sha256 for pin in pins.pins(places)}
        found = [_stored(store.entry_dir(places, sha256), sha256 in stay) for sha256 in store.stored(places)]
    except OSError as error:
        raise NodeError(f"{places.store}: cannot read: {error.strerror}", code="cache-unreadable") from error
    return [one for one in found if one is not None]


def _stored(directory: Path, stays: bool) -> Stored | None:
    try:
        disk_bytes = sum(path.lstat().st_blocks * 512 for path in directory.iterdir())
    except FileNotFoundError:
        return None  # evicted while we look
    meta = store.read_meta(directory)
    used_at = 0.0
    with contextlib.suppress(FileNotFoundError):
        used_at = (directory / "meta.json").lstat().st_mtime
    return Stored(directory.name, disk_bytes, used_at, stays, meta.vo if meta is not None else "")


def remove(places: Places, digests: Sequence[str]) -> list[str]:
    """Remove those of the images that no job holds by now and nobody pinned; return which. Raises `NodeError`."""
    if not digests:
        return []
    try:
        with contextlib.ExitStack() as stack:
            with store.changing(places, deadline=time.monotonic() + LOCK_TIMEOUT_S):
                gone = stack.enter_context(store.retired(places, digests))
            stack.close()  # their bytes go here, when nobody waits for the lock any more
            return gone
    except OSError as error:
        raise NodeError(f"{error.filename}: cannot remove: {error.strerror}", code="cache-unwritable") from error


def sweep(places: Places) -> bool:
    """Remove what nobody will use: partials of dead processes, and what is in quarantine; True if there was any."""
    try:
        with store.changing(places, deadline=time.monotonic() + LOCK_TIMEOUT_S):
            gone = ingest.remove_abandoned(places, keep_s=0)
            for path in places.quarantine.iterdir():
                shutil.rmtree(path)
                gone.append(path.name)
    except OSError as error:
        raise NodeError(f"{error.filename}: cannot remove: {error.strerror}", code="cache-unwritable") from error
    return bool(gone)


def other_bytes(places: Places) -> int:
    """What the cache takes on disk besides stored images: partials and quarantine. Raises `NodeError`."""
    total = 0
    for root in (places.ingest, places.quarantine):
        for where, _, names in os.walk(root):  # what goes away meanwhile is passed over
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    total += os.lstat(os.path.join(where, name)).st_blocks * 512
    return total


def verify(places: Places, sha256: str) -> bool:
    """Read all of a stored image; put it aside and return False if it is not what its name says.

    Raises `NodeError`. A running guest keeps the file it has open.
    """
    directory = store.entry_dir(places, sha256)
    try:
        meta = store.read_meta(directory)
        proven = rehash(directory, {"sha256", *(meta.digests if meta else ())})
        good = proven is not None and proven.digests["sha256"].hex() == sha256
        with store.changing(places, deadline=time.monotonic() + LOCK_TIMEOUT_S):
            if not os.path.lexists(directory):
                return True  # evicted meanwhile: nothing wrong is left
            if proven is not None and good:
                store.write_meta(directory, replace(proven, verified_at=time.time()))
            else:
                store.quarantine(places, sha256)
    except OSError as error:
        raise NodeError(f"{directory}: {error.strerror}", code="cache-unwritable") from error
    return good


def rehash(directory: Path, algorithms: set[str]) -> store.Meta | None:
    """Read all of a stored image; None when it cannot be a good one whatever its bytes are.

    Raises `OSError` where this process, not the image, is short of something.
    """
    try:
        store.refuse_writers(directory / "image")
        fd = os.open(directory / "image", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            before = os.fstat(fd)
            if before.st_uid != os.geteuid() or before.st_mode & 0o222:
                return None
            digests = hash_fd(fd, before.st_size, algorithms)
            same = store.stamp_of(os.fstat(fd)) == store.stamp_of(before)
        finally:
            os.close(fd)
    except NodeError:
        return None  # somebody writes to it
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise  # says nothing of the image
        return None  # a link, gone, or unreadable
    old = store.read_meta(directory)
    if not same:
        return None
    if old is None:
        return store.Meta(digests, store.stamp_of(before), time.time(), "")
    return replace(old, digests=digests, stamp=store.stamp_of(before))
