"""Digests of images. Flat ones one after the other on a core each; the chunk tree on all cores at once.

hashlib lets go of the interpreter while it works. Measured (2 cores with SHA-NI): sha256 takes 0.7 s of a core per GB,
whoever does it, so a flat digest runs at 1.4 GB/s and the tree at twice that; writing costs as much again as hashing:
bytes come in at 1.1 GB/s, and at 0.6 where the leaves are hashed too, so that is done only where a tree was signed.
Reading into one buffer per thread, of 256 KiB so that it stays in the core's cache, costs next to nothing; a new
bytes object per chunk, or mmap, half of what the second core gives.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from lrms_vm.fetch import BLOCK_BYTES, ZERO_BLOCK, next_data
from lrms_vm.trust import tree
from lrms_vm.values import dataclass

if TYPE_CHECKING:  # and where bytes are hashed: a warm prologue hashes none, and they bring `logging` along
    from concurrent.futures import Future

ALGORITHMS = ("sha1", "sha256", "sha384", "sha512")
MAX_AHEAD = 4  # blocks waiting per digest: bounds memory
BUFFER_BYTES = 256 << 10
# Where a hole is what this kernel knows of its own disk, and reads as zeros by definition (lseek(2), SEEK_HOLE). On a
# network file system another machine may write there; zfs has been wrong about holes; of others we do not know.
HOLES_ARE_ZEROS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "tmpfs"})
_TOLD_EVERY_S = 0.2


@dataclass(frozen=True)
class Leaves:
    """The tree of some bytes that were hashed here."""

    chunk_bytes: int
    leaves: tuple[bytes, ...]

    @property
    def root(self) -> bytes:
        return tree.root_of(self.leaves)


class Digests:
    """Feed it blocks in order; ask for the digests at the end. Owns one thread per algorithm, and one for the tree."""

    def __init__(self, algorithms: Iterable[str], *, chunk_bytes: int | None = None) -> None:
        """`algorithms` are names of `ALGORITHMS`; `chunk_bytes`: of the tree, None for none."""
        from concurrent.futures import ThreadPoolExecutor

        self._hashes = {name: hashlib.new(name, usedforsecurity=name != "sha1") for name in sorted(set(algorithms))}
        self._growing = _Growing(chunk_bytes) if chunk_bytes is not None else None
        sinks: list[Callable[[bytes], None]] = [h.update for h in self._hashes.values()]
        if self._growing is not None:
            sinks.append(self._growing.update)
        self._sinks = [(ThreadPoolExecutor(1), sink) for sink in sinks]
        self._ahead: list[list[Future[None]]] = []

    def __enter__(self) -> Digests:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for thread, _ in self._sinks:
            thread.shutdown(wait=True, cancel_futures=True)

    def update(self, block: bytes) -> None:
        """Add the next block; waits when more than a few are pending."""
        self._ahead.append([thread.submit(sink, block) for thread, sink in self._sinks])
        if len(self._ahead) > MAX_AHEAD:
            self._settle(1)

    def result(self) -> dict[str, bytes]:
        """The digests of all that came, by algorithm."""
        self._settle(len(self._ahead))
        return {name: h.digest() for name, h in self._hashes.items()}

    def leaves(self) -> Leaves | None:
        """The tree of all that came; None when it was not asked for, or nothing came."""
        self._settle(len(self._ahead))
        return self._growing.result() if self._growing is not None else None

    def _settle(self, count: int) -> None:
        for futures in self._ahead[:count]:
            for future in futures:
                future.result()
        del self._ahead[:count]


class _Growing:
    """The leaves of a stream. A chunk of zeros, as they come from holes, is not hashed."""

    def __init__(self, chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        self._leaves: list[bytes] = []
        self._hash = hashlib.sha256(b"\0")
        self._in_chunk = self._zeros = 0  # bytes of this chunk, and how many of its first are zeros not yet hashed

    def update(self, block: bytes) -> None:
        view = memoryview(block)
        zeros = block is ZERO_BLOCK
        while view:
            part = view[: self._chunk_bytes - self._in_chunk]
            if zeros and self._zeros == self._in_chunk:
                self._zeros += len(part)
            else:
                self._hash_zeros()
                self._hash.update(part)
            self._in_chunk += len(part)
            if self._in_chunk == self._chunk_bytes:
                self._end_chunk()
            view = view[len(part) :]

    def result(self) -> Leaves | None:
        if self._in_chunk:
            self._end_chunk()
        return Leaves(self._chunk_bytes, tuple(self._leaves)) if self._leaves else None

    def _end_chunk(self) -> None:
        if self._zeros == self._chunk_bytes:
            self._leaves.append(tree.zero_leaf(self._chunk_bytes))
        else:
            self._hash_zeros()
            self._leaves.append(self._hash.digest())
        self._hash = hashlib.sha256(b"\0")
        self._in_chunk = self._zeros = 0

    def _hash_zeros(self) -> None:
        while self._zeros:
            part = min(self._zeros, BLOCK_BYTES)
            self._hash.update(ZERO_BLOCK[:part])
            self._zeros -= part


def hash_fd(
    fd: int, size_bytes: int, algorithms: Iterable[str], *, progress: Callable[[int], None] | None = None
) -> dict[str, bytes]:
    """Digests of an open file's first `size_bytes`; holes are hashed without being read. Raises `OSError`."""
    with Digests(algorithms) as digests:
        offset = 0
        for block in blocks_of(fd, size_bytes):
            digests.update(block)
            offset += len(block)
            if progress is not None:
                progress(offset)
        return digests.result()


def blocks_of(fd: int, size_bytes: int, *, start: int = 0) -> Iterator[bytes]:
    """An open file's bytes from `start` on, in order; a hole comes as (slices of) `ZERO_BLOCK`. Raises `OSError`."""
    skips = holes_are_zeros(fd)
    offset = start
    while offset < size_bytes:
        data_at = next_data(fd, offset, size_bytes) if skips else offset
        if offset < data_at:
            count = min(BLOCK_BYTES, data_at - offset)
            block = ZERO_BLOCK if count == BLOCK_BYTES else ZERO_BLOCK[:count]
        else:
            block = os.pread(fd, min(BLOCK_BYTES, size_bytes - offset), offset)
            if not block:
                return  # shorter than it was: no digest will match
        yield block
        offset += len(block)


def tree_of_fd(
    fd: int,
    size_bytes: int,
    chunk_bytes: int = tree.CHUNK_BYTES,
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Leaves:
    """The tree of an open file's first `size_bytes`, at least one, on all cores. Chunks in holes are not read.

    `progress` is told the bytes done, now and then. Raises `OSError`. A file that is written to meanwhile gives the
    tree of no state of it: who needs to know compares its stamp before and after.
    """
    count = tree.chunk_count(size_bytes, chunk_bytes)
    leaves = [tree.zero_leaf(chunk_bytes)] * count
    todo = _data_chunks(fd, size_bytes, chunk_bytes)
    work = _Work(fd, size_bytes, chunk_bytes, leaves, iter(todo))
    wanted = min(threads or len(os.sched_getaffinity(0)), len(todo))
    if wanted <= 1 and progress is None:
        work.run()
        return Leaves(chunk_bytes, tuple(leaves))
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max(1, wanted)) as pool:
        running = [pool.submit(work.run) for _ in range(wanted)]
        for future in running:
            while progress is not None and not future.done():
                progress(min(size_bytes, (count - len(todo) + work.done) * chunk_bytes))
                with contextlib.suppress(TimeoutError):
                    future.exception(_TOLD_EVERY_S)
            future.result()
    if progress is not None:
        progress(size_bytes)
    return Leaves(chunk_bytes, tuple(leaves))


def bad_chunks(fd: int, size_bytes: int, expected: Leaves) -> list[int]:
    """The numbers, from 0, of the chunks that are not what they were. Raises `OSError`, and `ValueError` for a size
    that these leaves cannot be of."""
    if tree.chunk_count(size_bytes, expected.chunk_bytes) != len(expected.leaves):
        raise ValueError(f"{len(expected.leaves)} leaves for {size_bytes} bytes")
    found = tree_of_fd(fd, size_bytes, expected.chunk_bytes).leaves
    return [number for number, leaf in enumerate(found) if leaf != expected.leaves[number]]


class _Work:
    """What the threads share: whose turn is next, and where the leaves go."""

    def __init__(self, fd: int, size_bytes: int, chunk_bytes: int, leaves: list[bytes], todo: Iterator[int]) -> None:
        self._fd, self._size_bytes, self._chunk_bytes = fd, size_bytes, chunk_bytes
        self._leaves, self._todo, self._lock = leaves, todo, threading.Lock()
        self.done = 0  # chunks; only ever shown

    def run(self) -> None:
        view = memoryview(bytearray(min(BUFFER_BYTES, self._chunk_bytes)))
        while (number := self._next()) is not None:
            digest = hashlib.sha256(b"\0")
            offset = number * self._chunk_bytes
            end = min(offset + self._chunk_bytes, self._size_bytes)
            while offset < end:
                count = os.preadv(self._fd, [view[: end - offset]], offset)
                if count == 0:
                    break  # shorter than it was: its leaf will not match
                digest.update(view[:count])
                offset += count
            self._leaves[number] = digest.digest()

    def _next(self) -> int | None:
        with self._lock:
            self.done += 1
            return next(self._todo, None)


def _data_chunks(fd: int, size_bytes: int, chunk_bytes: int) -> list[int]:
    """The chunks that have to be read: all but whole ones in a hole."""
    count = tree.chunk_count(size_bytes, chunk_bytes)
    if not holes_are_zeros(fd):
        return list(range(count))
    found, offset = [], 0
    while offset < size_bytes:
        number = next_data(fd, offset, size_bytes) // chunk_bytes
        if number >= count:
            break
        found.append(number)
        offset = (number + 1) * chunk_bytes
    if size_bytes % chunk_bytes and (not found or found[-1] != count - 1):
        found.append(count - 1)  # the last chunk is no whole chunk of zeros
    return found


def holes_are_zeros(fd: int) -> bool:
    """Whether the file is on one of `HOLES_ARE_ZEROS`, as far as this process can see (proc_pid_mountinfo(5))."""
    try:
        with open(f"/proc/self/fdinfo/{fd}") as file:
            mount = next(line.split()[1] for line in file if line.startswith("mnt_id:"))
        with open("/proc/self/mountinfo") as file:
            line = next(line for line in file if line.partition(" ")[0] == mount)
        return line.partition(" - ")[2].split(" ")[0] in HOLES_ARE_ZEROS
    except (OSError, StopIteration, IndexError):
        return False
