"""Bytes on their way into the store: a directory ingest/*.part/, locked while its maker lives, then renamed or removed.

One that can be taken up again (its chunks prove themselves, download.py) has its image's key for a name, and stays for
`KEEP_S` when its maker could not finish; any other has a random name and is garbage as soon as nobody holds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from lrms_vm.errors import RequestError, SiteError
from lrms_vm.fetch import BLOCK_BYTES, ZERO_BLOCK
from lrms_vm.hashing import Digests, Leaves
from lrms_vm.paths import Places
from lrms_vm.store import Stamp, changing, stamp_of
from lrms_vm.values import dataclass

HOLE_BYTES = 64 << 10  # the smallest run of zeros that becomes a hole
KEEP_S = 86400.0  # how long a partial that can be taken up again waits for it
RESUMABLE = ".kept.part"  # what its name ends with
_ZEROS = ZERO_BLOCK[:HOLE_BYTES]


@dataclass(frozen=True)
class Received:
    """What came in: written, synced, read-only."""

    digests: Mapping[str, bytes]
    stamp: Stamp
    leaves: Leaves | None = None

    @property
    def size_bytes(self) -> int:
        return self.stamp[2]


@contextlib.contextmanager
def part_directory(places: Places, *, deadline: float, key: str = "") -> Iterator[Path]:
    """A directory to receive into; removed at the end unless it got a name in the store by then.

    With a `key`, whose lock the caller holds: the one that is there, or a new one, which stays when a `SiteError`, a
    Ctrl-C or a kill ends the block. What is found there proves itself or counts for nothing.
    """
    part = places.ingest / (f"{key}{RESUMABLE}" if key else f"{secrets.token_hex(8)}.part")
    with changing(places, deadline=deadline):  # so that nobody cleans it away before it is locked
        part.mkdir(mode=0o700, exist_ok=bool(key))
        lock = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.utime(lock)
    keep = False
    try:
        yield part
    except (SiteError, KeyboardInterrupt):
        keep = bool(key)
        raise
    finally:
        if not keep:
            shutil.rmtree(part, ignore_errors=True)
        os.close(lock)


def remove_abandoned(places: Places, *, keep_s: float = KEEP_S) -> list[str]:
    """Remove what crashes left in ingest/; return the names. Caller holds `changing`. Raises `OSError`.

    What can be taken up again stays until nobody has tried to for `keep_s` seconds: 0 where the room is needed.
    """
    gone = []
    for path in sorted(places.ingest.iterdir()):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            age_s = abs(time.time() - os.fstat(fd).st_mtime)
        except BlockingIOError:
            continue  # being received now
        finally:
            os.close(fd)
        if path.name.endswith(RESUMABLE) and age_s < keep_s:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        gone.append(path.name)
    return gone


def receive(
    blocks: Iterator[bytes],
    path: Path,
    *,
    algorithms: Iterable[str],
    max_bytes: int,
    source: str,
    progress: Callable[[int], None] | None,
    chunk_bytes: int | None = None,
) -> Received:
    """Write `blocks` to a new file, hashing on arrival, with `chunk_bytes` the tree too; all-zero parts become holes.

    Raises `RequestError` when there are too many bytes or none; `OSError` from the disk.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with (
            Digests(algorithms, chunk_bytes=chunk_bytes) as digests,
            contextlib.closing(_Closable(blocks)) as source_blocks,
        ):
            total = 0
            for block in _whole(source_blocks, max_bytes):
                if total + len(block) > max_bytes:
                    raise RequestError(
                        f"{source}: more than {max_bytes} bytes",
                        hint="the site's limit is max_image in its trust policy",
                        code="image-too-large",
                    )
                if block == ZERO_BLOCK:
                    block = ZERO_BLOCK  # the very one, whose hash and writing cost less
                digests.update(block)
                write_sparse(fd, block, total)
                total += len(block)
                if progress is not None:
                    progress(total)
            if total == 0:
                raise RequestError(
                    f"{source}: the image is empty", hint="is it still being copied?", code="image-empty"
                )
            os.ftruncate(fd, total)
            os.fchmod(fd, 0o444)
            os.fsync(fd)
            found, leaves = digests.result(), digests.leaves()
    finally:
        os.close(fd)
    status = path.lstat()
    if status.st_size != total:
        raise SiteError(f"{path}: {status.st_size} bytes written of {total}", code="image-short")
    return Received(found, stamp_of(status), leaves)


def _whole(blocks: Iterable[bytes], max_bytes: int) -> Iterator[bytes]:
    """Join what comes in crumbs from a pipe, so that zeros are seen as such; what comes whole is passed on."""
    crumbs = bytearray()
    for block in blocks:
        if not crumbs and len(block) >= BLOCK_BYTES:
            yield block
            continue
        crumbs += block
        if len(crumbs) >= min(BLOCK_BYTES, max_bytes):
            yield bytes(crumbs)
            crumbs.clear()
    if crumbs:
        yield bytes(crumbs)


class _Closable:
    """An iterator that can be closed early, so that its file or child ends with us; plain iterators need none."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks

    def __iter__(self) -> Iterator[bytes]:
        return self._blocks

    def close(self) -> None:
        close = getattr(self._blocks, "close", None)
        if close is not None:
            close()


def write_sparse(fd: int, block: bytes, offset: int) -> None:
    """Write what is not zeros: only where nothing was written before, so that it reads as zeros. Raises `OSError`."""
    if len(block) == BLOCK_BYTES and block == ZERO_BLOCK:
        return
    start = 0
    while start < len(block):
        end = start
        while end < len(block) and not block.startswith(_ZEROS, end):
            end = min(end + HOLE_BYTES, len(block))
        if end > start:
            write_all(fd, memoryview(block)[start:end], offset + start)
        start = end
        while start < len(block) and block.startswith(_ZEROS, start):
            start += HOLE_BYTES


def write_all(fd: int, view: memoryview, offset: int) -> None:
    """Raises `OSError`."""
    while view:
        count = os.pwrite(fd, view, offset)
        view = view[count:]
        offset += count
