"""Several digests in one pass, each on a core of its own. hashlib lets go of the interpreter while it works.

Measured here (reference/trust-and-images.md 1.1): sha256 runs at 1.4 GB/s with SHA-NI, writing costs as much again;
so the hash of one block runs while the next is read and written.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from lrms_vm.fetch import BLOCK_BYTES, ZERO_BLOCK, next_data

ALGORITHMS = ("sha1", "sha256", "sha384", "sha512")
MAX_AHEAD = 4  # blocks waiting per digest: bounds memory


class Digests:
    """Feed it blocks in order; ask for the digests at the end. Owns one thread per algorithm."""

    def __init__(self, algorithms: Iterable[str]) -> None:
        """`algorithms` are names of `ALGORITHMS`."""
        self._hashes = {name: hashlib.new(name, usedforsecurity=name != "sha1") for name in sorted(set(algorithms))}
        self._threads = {name: ThreadPoolExecutor(1) for name in self._hashes}
        self._ahead: list[list[Future[None]]] = []

    def __enter__(self) -> Digests:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for thread in self._threads.values():
            thread.shutdown(wait=True, cancel_futures=True)

    def update(self, block: bytes) -> None:
        """Add the next block; waits when more than a few are pending."""
        self._ahead.append([self._threads[name].submit(h.update, block) for name, h in self._hashes.items()])
        if len(self._ahead) > MAX_AHEAD:
            self._settle(1)

    def result(self) -> dict[str, bytes]:
        """The digests of all that came, by algorithm."""
        self._settle(len(self._ahead))
        return {name: h.digest() for name, h in self._hashes.items()}

    def _settle(self, count: int) -> None:
        for futures in self._ahead[:count]:
            for future in futures:
                future.result()
        del self._ahead[:count]


def hash_fd(fd: int, size_bytes: int, algorithms: Iterable[str]) -> dict[str, bytes]:
    """Digests of an open file's first `size_bytes`; holes are hashed without being read. Raises `OSError`."""
    with Digests(algorithms) as digests:
        offset = 0
        while offset < size_bytes:
            data_at = next_data(fd, offset, size_bytes)
            if offset < data_at:
                block = ZERO_BLOCK[: min(BLOCK_BYTES, data_at - offset)]
            else:
                block = os.pread(fd, min(BLOCK_BYTES, size_bytes - offset), offset)
                if not block:
                    break  # shorter than it was: the digest will not match
            digests.update(block)
            offset += len(block)
        return digests.result()
