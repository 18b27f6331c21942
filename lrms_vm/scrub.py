"""Reading stored images again when nothing else is to do, the longest unread first, so that rot is found before a job.

An image's first pass reads it whole against its name and keeps the leaves of its chunk tree; later ones go chunk by
chunk, stop at any of them, and go on there (scrub.json). A chunk that differs only says where: the image is put aside
when all of it, read again, is not what its name says.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from lrms_vm import lease as leasing
from lrms_vm import store, upkeep
from lrms_vm.errors import NodeError
from lrms_vm.fetch import ZERO_BLOCK, next_data
from lrms_vm.hashing import Digests, Leaves, bad_chunks, blocks_of, holes_are_zeros
from lrms_vm.paths import Places
from lrms_vm.trust import tree
from lrms_vm.values import dataclass

SAVE_EVERY_S = 10.0  # what a killed scrub reads twice at most
MAX_NAMED = 5  # damaged chunks that are named
GOOD, DAMAGED, UNFINISHED, GONE = "good", "damaged", "unfinished", "gone"
_MEDIUM = (errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ENODATA)  # the disk's own way of saying it


@dataclass(frozen=True)
class Scrubbed:
    """How one image came out. `read_bytes` leaves holes out."""

    sha256: str
    state: str
    read_bytes: int
    found: str = ""


@dataclass
class Pace:
    """Bytes per second, and until when."""

    bytes_per_s: int | None = None
    deadline: float | None = None  # time.monotonic()
    sleep: Callable[[float], None] = time.sleep
    _began: float = 0.0
    _bytes: int = 0

    def over(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def took(self, read_bytes: int) -> None:
        """Sleep for as long as these bytes were read too fast."""
        now = time.monotonic()
        self._began = self._began or now
        self._bytes += read_bytes
        if self.bytes_per_s is not None:
            ahead_s = self._bytes / self.bytes_per_s - (now - self._began)
            if self.deadline is not None:
                ahead_s = min(ahead_s, self.deadline - now)
            if ahead_s > 0:
                self.sleep(ahead_s)


class _Over(Exception):
    """The time is up: between two chunks."""


def scrub(places: Places, pace: Pace) -> Iterator[Scrubbed]:
    """Read images until all were read or the time is up. Raises `NodeError`.

    What is found damaged is put aside, said in the log, and fetched again at its next use.
    """
    store.prepare(places)
    begun = _Cursor.read(places)
    waiting = sorted(upkeep.entries(places), key=lambda entry: (entry.sha256 != begun.sha256, entry.verified_at))
    for entry in waiting:
        if pace.over():
            return
        cursor = begun if entry.sha256 == begun.sha256 else _Cursor(entry.sha256, (0, 0, 0, 0, 0), 0)
        try:
            done = _one(places, cursor, pace)
        except OSError as error:
            raise NodeError(f"{places.store}: {error.strerror}", code="cache-unreadable") from error
        yield done
        if done.state == UNFINISHED:
            return


@contextlib.contextmanager
def idle() -> Iterator[None]:
    """Give way to everybody, on the processors and, since the kernel takes it from there, on the disk (sched(7))."""
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameter)  # before a lock is taken that jobs wait for


@dataclass(frozen=True)
class _Cursor:
    """Which image is being read, as it lies there, and the chunk that is next."""

    sha256: str
    stamp: store.Stamp
    chunk: int

    @staticmethod
    def read(places: Places) -> _Cursor:
        try:
            fd = os.open(places.scrub, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(fd, "rb") as file:
                words = json.loads(file.read(4096))
            device, inode, size, mtime, ctime = (int(n) for n in words["stamp"])
            return _Cursor(str(words["sha256"]), (device, inode, size, mtime, ctime), max(0, int(words["chunk"])))
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return _Cursor("", (0, 0, 0, 0, 0), 0)

    def write(self, places: Places) -> None:
        words = {"sha256": self.sha256, "stamp": list(self.stamp), "chunk": self.chunk}
        store.write_durably(places.scrub, json.dumps(words).encode())


def _one(places: Places, cursor: _Cursor, pace: Pace) -> Scrubbed:
    sha256, directory = cursor.sha256, store.entry_dir(places, cursor.sha256)
    meta = store.healthy(places, sha256)
    if meta is None:  # touched since it was left, or evicted
        return Scrubbed(sha256, GOOD if upkeep.verify(places, sha256) else DAMAGED, 0, "it was touched, and read whole")
    held = any(lease.sha256 == sha256 for lease in leasing.leases(places))
    try:
        fd = os.open(directory / "image", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return Scrubbed(sha256, GONE, 0)
    reading = _Reading(fd, meta.size_bytes, pace, fresh=not held)
    try:
        leaves = store.read_leaves(directory, meta.size_bytes)
        with idle():
            if leaves is None:
                found = reading.whole(sha256)
            else:
                start = cursor.chunk if cursor.stamp == meta.stamp else 0
                found = reading.chunks(leaves, start, lambda at: _Cursor(sha256, meta.stamp, at).write(places))
    except _Over:
        return Scrubbed(sha256, UNFINISHED, reading.read_bytes)
    except OSError as error:
        if error.errno not in _MEDIUM:
            raise
        found = f"the disk cannot read it: {error.strerror}"
    finally:
        os.close(fd)
    if found and leaves is not None:  # believe the bytes, not the leaves
        with idle():
            proven = upkeep.rehash(directory, {"sha256"})
        if proven is not None and proven.digests["sha256"].hex() == sha256:
            with contextlib.suppress(FileNotFoundError):
                (directory / store.LEAVES).unlink()
            found = ""
    return _settled(places, sha256, not found, reading.read_bytes, found, leaves=reading.leaves)


def _settled(
    places: Places, sha256: str, good: bool, read_bytes: int, found: str, *, leaves: Leaves | None = None
) -> Scrubbed:
    directory = store.entry_dir(places, sha256)
    with store.changing(places, deadline=time.monotonic() + upkeep.LOCK_TIMEOUT_S):
        if not os.path.lexists(directory):
            return Scrubbed(sha256, GONE, read_bytes)
        if not good:
            found = found or "its bytes are not the ones that its name says"
            held_by = [lease.key for lease in leasing.leases(places) if lease.sha256 == sha256]
            jobs = f"; guests of {', '.join(held_by)} run on it" if held_by else ""
            store.quarantine(places, sha256, found + jobs)
        elif (meta := store.healthy(places, sha256)) is not None:
            if leaves is not None:
                store.write_leaves(directory, leaves)
            store.write_meta(directory, replace(meta, verified_at=time.time()))
        places.scrub.unlink(missing_ok=True)
    return Scrubbed(sha256, GOOD if good else DAMAGED, read_bytes, found)


class _Reading:
    """One pass over one image."""

    def __init__(self, fd: int, size_bytes: int, pace: Pace, *, fresh: bool) -> None:
        """`fresh`: from the disk itself, not what the page cache has of it; unless a guest needs that just now."""
        self._fd, self._size_bytes, self._pace, self._fresh = fd, size_bytes, pace, fresh
        self.read_bytes = 0
        self.leaves: Leaves | None = None

    def whole(self, sha256: str) -> str:
        """Against the name; finds the leaves. To the end of the image, whatever the time. Returns what is wrong."""
        self._forget(0, 0)
        with Digests({"sha256"}, chunk_bytes=tree.CHUNK_BYTES) as digests:
            for block in blocks_of(self._fd, self._size_bytes):
                digests.update(block)
                if block is not ZERO_BLOCK:
                    self._took(len(block))
            self._forget(0, 0)
            if digests.result()["sha256"].hex() != sha256:
                return "its bytes are not the ones that its name says"
            self.leaves = digests.leaves()
        return ""

    def chunks(self, leaves: Leaves, start: int, save: Callable[[int], None]) -> str:
        """Against the leaves, from a chunk on. Returns what is wrong; raises `_Over` between two chunks."""
        size, buffer = leaves.chunk_bytes, bytearray(leaves.chunk_bytes)
        skips = holes_are_zeros(self._fd)
        saved_at = time.monotonic()
        for number in range(start, len(leaves.leaves)):
            if self._pace.over():
                save(number)
                raise _Over
            if time.monotonic() - saved_at > SAVE_EVERY_S:
                save(number)
                saved_at = time.monotonic()
            offset, end = number * size, min((number + 1) * size, self._size_bytes)
            if skips and end - offset == size and next_data(self._fd, offset, self._size_bytes) >= end:
                found = tree.zero_leaf(size)
            else:
                found = self._leaf(offset, end, buffer)
            if found != leaves.leaves[number]:
                return self._named(leaves)
        return ""

    def _leaf(self, offset: int, end: int, buffer: bytearray) -> bytes:
        self._forget(offset, end - offset)
        digest, at = hashlib.sha256(b"\0"), offset
        while at < end:
            count = os.preadv(self._fd, [memoryview(buffer)[: end - at]], at)
            if count == 0:
                break  # shorter than it was: the leaf will not match
            digest.update(memoryview(buffer)[:count])
            at += count
        self._forget(offset, end - offset)
        self._took(end - offset)
        return digest.digest()

    def _named(self, leaves: Leaves) -> str:
        """Every chunk that differs, the first few by their place."""
        size = leaves.chunk_bytes
        bad = bad_chunks(self._fd, self._size_bytes, leaves)
        places = [f"{n} (bytes {n * size} to {min((n + 1) * size, self._size_bytes) - 1})" for n in bad[:MAX_NAMED]]
        return f"{len(bad)} of {len(leaves.leaves)} chunks differ: {', '.join(places)}" if bad else "a chunk differed"

    def _took(self, count: int) -> None:
        self.read_bytes += count
        self._pace.took(count)

    def _forget(self, offset: int, count: int) -> None:
        if self._fresh:
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._fd, offset, count, os.POSIX_FADV_DONTNEED)
