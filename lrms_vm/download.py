"""An image's bytes from its mirrors into ingest/, one mirror after the other within one deadline.

Where a signed list gave a chunk tree and its leaves can be had, each chunk is proved as it comes: the first bad one
ends the mirror that sent it, the next goes on from there, and so does another process after a crash. Chunks of zeros
are not asked for at all. Otherwise a mirror's bytes count only as a whole; fetch_http.py takes up a connection that
breaks. Nothing is believed here for good: the caller still compares every digest that was signed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from lrms_vm.errors import LrmsVmError, RequestError, SiteError
from lrms_vm.fetch import BLOCK_BYTES, Fetcher, Part
from lrms_vm.hashing import Digests, Leaves, blocks_of, tree_of_fd
from lrms_vm.ingest import Received, receive, write_all, write_sparse
from lrms_vm.store import stamp_of
from lrms_vm.trust import digests as hashes
from lrms_vm.trust import tree
from lrms_vm.trust.tree import Tree
from lrms_vm.values import dataclass

SIGNED_LEAVES = "leaves.signed"  # beside a partial: what its chunks prove themselves by
LEAVES_TIMEOUT_S = 60.0
AHEAD_BYTES = 8 << 20  # received and not yet proved
MIN_GAP_BYTES = 16 << 20  # a smaller piece that is there is fetched again rather than asked around
MAX_RANGES = 200


@dataclass(frozen=True)
class Order:
    """What is wanted, and from where."""

    urls: Sequence[str]  # the first to ask first
    fetch: Fetcher
    algorithms: frozenset[str]  # of the digests to compute; always sha256
    max_bytes: int
    deadline: float  # time.monotonic()
    size_bytes: int | None = None  # that was signed; None: it was not
    tree: Tree | None = None
    progress: Callable[[int], None] | None = None  # told the bytes so far; starts again with another mirror

    @property
    def can_resume(self) -> bool:
        """Whether what came can prove itself to another process."""
        return self.tree is not None and self.tree.leaves_url is not None and self.size_bytes is not None

    def late(self) -> bool:
        return time.monotonic() > self.deadline


def get(order: Order, part: Path, *, accept: Callable[[Received], None]) -> Received:
    """Make `part`/image, read-only and synced, of bytes that `accept` does not refuse (`RequestError`).

    Raises `RequestError` when every mirror has something else than what was signed, `SiteError` when one that might
    have it did not do its part, `NodeError`, `OSError` from the disk.
    """
    if (order.size_bytes or 0) > order.max_bytes:
        raise RequestError(
            f"{order.urls[0]}: {order.size_bytes} bytes, at most {order.max_bytes}",
            hint="the site's limit is max_image in its trust policy",
            code="image-too-large",
        )
    leaves = _proved_leaves(order, part)
    if leaves is not None and order.size_bytes is not None:
        received = _Chunks(order, order.size_bytes, part / "image", leaves).receive()
        accept(received)
        return received
    return _whole(order, part / "image", accept)


# --- whole files ------------------------------------------------------------------------------------------------------


def _whole(order: Order, image: Path, accept: Callable[[Received], None]) -> Received:
    failures: list[LrmsVmError] = []
    for number, url in enumerate(order.urls):
        if failures and order.late():
            break
        image.unlink(missing_ok=True)
        try:
            received = receive(
                _stream(order, url, is_last=number == len(order.urls) - 1),
                image,
                algorithms=order.algorithms,
                max_bytes=min(order.max_bytes, order.size_bytes or order.max_bytes),
                source=url,
                progress=order.progress,
                chunk_bytes=order.tree.chunk_bytes if order.tree is not None else None,
            )
            accept(received)
            _check_root(order, url, received)
            return received
        except (RequestError, SiteError) as error:
            failures.append(_with_size(order, url, error))
    raise _all(failures)


def _stream(order: Order, url: str, *, is_last: bool) -> Iterator[bytes]:
    max_bytes = order.max_bytes
    if order.size_bytes is not None:
        max_bytes = min(max_bytes, order.size_bytes)
        if not is_last:
            return order.fetch.fetch(
                url,
                max_bytes=max_bytes,
                deadline=order.deadline,
                part=Part(((0, order.size_bytes),), order.size_bytes, _needed_rate(order, order.size_bytes)),
            )
    return order.fetch.fetch(url, max_bytes=max_bytes, deadline=order.deadline)


def _needed_rate(order: Order, missing_bytes: int) -> int:
    """Bytes/s below which a mirror would be late anyway, so that the next may as well be asked."""
    return int(missing_bytes / max(1.0, order.deadline - time.monotonic()))


def _check_root(order: Order, url: str, received: Received) -> None:
    if order.tree is not None and received.leaves is not None and received.leaves.root != order.tree.root:
        raise RequestError(
            f"{url}: the bytes are not those that were signed: the root of their tree is "
            f"{received.leaves.root.hex()[:16]}..., signed was {order.tree.root.hex()[:16]}...",
            hint="the list contradicts itself: its endorser must sign it again",
            code="bytes-differ",
        )


def _with_size(order: Order, url: str, error: LrmsVmError) -> LrmsVmError:
    """More bytes than were signed are other bytes, whatever the site's limit."""
    if error.code != "image-too-large" or order.size_bytes is None:
        return error
    return RequestError(
        f"{url}: more bytes than the {order.size_bytes} that were signed",
        hint="the image was changed after it was signed; ask whoever publishes it",
        code="bytes-differ",
    )


def _all(failures: Sequence[LrmsVmError]) -> LrmsVmError:
    """One error for all mirrors: the site's fault as soon as one of them might have had the image."""
    chosen = next((one for one in failures if isinstance(one, SiteError)), failures[0])
    if len(failures) == 1:
        return chosen
    others = ", ".join(one.code for one in failures if one is not chosen)
    return type(chosen)(f"{chosen.message}; the other places: {others}", hint=chosen.hint, code=chosen.code)


# --- chunk by chunk ---------------------------------------------------------------------------------------------------


def _proved_leaves(order: Order, part: Path) -> tuple[bytes, ...] | None:
    """The leaves, from before or fetched now; None where nobody has those of the signed root."""
    wanted, path = order.tree, part / SIGNED_LEAVES
    if wanted is None or wanted.leaves_url is None or order.size_bytes is None:
        return None
    with contextlib.suppress(OSError):
        found = tree.split_leaves(path.read_bytes(), wanted, order.size_bytes)
        if found is not None:
            return found
    until = min(order.deadline, time.monotonic() + LEAVES_TIMEOUT_S)
    max_bytes = tree.LEAF_BYTES * tree.chunk_count(order.size_bytes, wanted.chunk_bytes)
    for url in dict.fromkeys((wanted.leaves_url, *(f"{url}.leaves" for url in order.urls))):
        try:
            text = b"".join(order.fetch.fetch(url, max_bytes=max_bytes, deadline=until))
        except (RequestError, SiteError):
            continue  # the image itself may be there all the same
        found = tree.split_leaves(text, wanted, order.size_bytes)
        if found is not None and wanted.leaves_sha256 in (None, hashes.of("sha256", text)):
            path.write_bytes(text)
            return found
    return None


class _Chunks:
    """One file being filled: `_have` says which chunks have proved themselves."""

    def __init__(self, order: Order, size_bytes: int, image: Path, leaves: tuple[bytes, ...]) -> None:
        self._order, self._size_bytes, self._image, self._leaves = order, size_bytes, image, leaves
        self._chunk_bytes = order.tree.chunk_bytes if order.tree is not None else tree.CHUNK_BYTES
        self._have = bytearray(len(leaves))
        self._fed = 0  # chunks that the digests have seen
        self._is_new = not os.path.lexists(image)

    def receive(self) -> Received:
        """Fill it from the mirrors. Raises as `get`."""
        if not self._is_new:
            self._image.chmod(0o600)  # the kill may have come after it was made read-only
        fd = os.open(self._image, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, self._size_bytes)
            there = tree_of_fd(fd, self._size_bytes, self._chunk_bytes).leaves  # in a new file: chunks of zeros
            self._have[:] = bytes(a == b for a, b in zip(there, self._leaves, strict=True))
            with Digests(self._order.algorithms) as digests, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                self._from_mirrors(fd, digests, pool)
                self._feed(fd, digests, len(self._leaves))
                os.fchmod(fd, 0o444)
                os.fsync(fd)
                found = digests.result()
            return Received(found, stamp_of(os.fstat(fd)), Leaves(self._chunk_bytes, self._leaves))
        finally:
            os.close(fd)

    def _from_mirrors(self, fd: int, digests: Digests, pool: ThreadPoolExecutor) -> None:
        failures: list[LrmsVmError] = []
        urls = deque((url, False) for url in self._order.urls)
        while not all(self._have):
            if not urls or (failures and self._order.late()):
                raise _all(failures)
            url, as_whole = urls.popleft()
            try:
                self._from_mirror(url, as_whole, is_last=not urls, fd=fd, digests=digests, pool=pool)
            except (RequestError, SiteError) as error:
                if error.code == "image-no-ranges" and not as_whole:
                    urls.appendleft((url, True))
                else:
                    failures.append(_with_size(self._order, url, error))

    def _from_mirror(
        self, url: str, as_whole: bool, *, is_last: bool, fd: int, digests: Digests, pool: ThreadPoolExecutor
    ) -> None:
        runs = [(0, len(self._leaves))] if as_whole else self._missing()
        ranges = tuple(
            (first * self._chunk_bytes, min(end * self._chunk_bytes, self._size_bytes)) for first, end in runs
        )
        wanted_bytes = sum(end - start for start, end in ranges)
        rate = 0 if is_last else _needed_rate(self._order, wanted_bytes)
        stream = self._order.fetch.fetch(
            url,
            max_bytes=wanted_bytes,
            deadline=self._order.deadline,
            part=Part(ranges, self._size_bytes, rate),
        )
        ahead: deque[tuple[int, bytes, Future[bytes]]] = deque()
        try:
            for number, chunk in self._cut(url, stream, runs):
                if self._have[number]:
                    continue
                ahead.append((number, chunk, pool.submit(tree.leaf, chunk)))
                while ahead and (ahead[0][2].done() or len(ahead) * self._chunk_bytes > AHEAD_BYTES):
                    self._settle(url, ahead, fd, digests)
        except LrmsVmError:
            self._settle_all(url, ahead, fd, digests)  # what came whole before the end of it counts
            raise
        finally:  # not so when a signal ends us: it may have come in the middle of a chunk
            close = getattr(stream, "close", None)
            if close is not None:
                close()
        self._settle_all(url, ahead, fd, digests)

    def _settle_all(self, url: str, ahead: deque[tuple[int, bytes, Future[bytes]]], fd: int, digests: Digests) -> None:
        while ahead:
            self._settle(url, ahead, fd, digests)

    def _settle(self, url: str, ahead: deque[tuple[int, bytes, Future[bytes]]], fd: int, digests: Digests) -> None:
        """Keep the first chunk if it proves itself, else none of them. Raises `RequestError`."""
        number, chunk, leaf = ahead.popleft()
        offset = number * self._chunk_bytes
        if leaf.result() != self._leaves[number]:
            ahead.clear()
            raise RequestError(
                f"{url}: bytes {offset} to {offset + len(chunk) - 1} are not those that were signed",
                hint="the image was changed after it was signed, or damaged on its way; ask whoever publishes it",
                code="bytes-differ",
            )
        if self._is_new:
            write_sparse(fd, chunk, offset)
        else:
            write_all(fd, memoryview(chunk), offset)
        self._have[number] = 1
        self._feed(fd, digests, number)
        for at in range(0, len(chunk), BLOCK_BYTES):
            digests.update(chunk[at : at + BLOCK_BYTES])
        self._fed = number + 1
        self._tell()

    def _feed(self, fd: int, digests: Digests, before: int) -> None:
        """Let the digests see the chunks that were there already, up to `before`."""
        if not all(self._have[self._fed : before]):
            raise AssertionError("a digest of bytes that are not there")
        end = min(before * self._chunk_bytes, self._size_bytes)
        for block in blocks_of(fd, end, start=self._fed * self._chunk_bytes):
            digests.update(block)
        if self._fed < before:
            self._fed = before
            self._tell()

    def _tell(self) -> None:
        if self._order.progress is not None:
            self._order.progress(min(self._fed * self._chunk_bytes, self._size_bytes))

    def _cut(self, url: str, stream: Iterator[bytes], runs: Sequence[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        """Whole chunks with their numbers. Raises `SiteError`, and what the stream raises."""
        crumbs: list[bytes] = []
        for number in (number for first, end in runs for number in range(first, end)):
            offset = number * self._chunk_bytes
            size = min(self._chunk_bytes, self._size_bytes - offset)
            while sum(map(len, crumbs)) < size:
                crumbs.append(next(stream, b""))
                if not crumbs[-1]:
                    raise SiteError(
                        f"{url}: ended before byte {offset + size}", hint="try again later", code="image-short"
                    )
            joined = b"".join(crumbs)
            yield number, joined[:size]
            crumbs = [joined[size:]]

    def _missing(self) -> list[tuple[int, int]]:
        """Runs of chunks to ask for, (first, after the last): all that are missing, and small gaps between."""
        runs: list[tuple[int, int]] = []
        for number in (number for number, have in enumerate(self._have) if not have):
            gap = number - runs[-1][1] if runs else 0
            if runs and (gap * self._chunk_bytes < MIN_GAP_BYTES or len(runs) == MAX_RANGES):
                runs[-1] = (runs[-1][0], number + 1)
            else:
                runs.append((number, number + 1))
        return runs
