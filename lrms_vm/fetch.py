"""Bytes in, bounded. Files are read here; network protocols are spoken by a child that may do nothing (fetch_http.py).

One method that yields bytes, so that nobody else ever has the file open: root hashes and writes what comes out of
the pipe in one pass, and there is no moment between check and use for another writer.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import selectors
import stat
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import field
from pathlib import Path
from typing import Protocol

from lrms_vm import command
from lrms_vm.command import Identity
from lrms_vm.errors import LrmsVmError, NodeError, RequestError, SiteError
from lrms_vm.values import dataclass

BLOCK_BYTES = 1 << 20
ZERO_BLOCK = bytes(BLOCK_BYTES)
MAX_TOLD_BYTES = 4096
EXIT_TOLD = 3  # fetch_http.EXIT_TOLD; not imported: it would load http and ssl into every prologue
CHILD = Path(__file__).with_name("fetch_http.py")

# What the child may say, whose fault it is, and what to do.
CHILD_CODES: dict[str, tuple[type[LrmsVmError], str]] = {
    "image-missing": (RequestError, "check the name, or ask whoever publishes the image"),
    "image-too-large": (RequestError, "the site's limit is max_image in its trust policy"),
    "image-url": (RequestError, "use an absolute path or a plain http(s) URL"),
    "image-redirect": (SiteError, "name the final URL in the site's image list"),
    "image-encoded": (SiteError, "the server must send the plain bytes, without Content-Encoding"),
    "image-server-refuses": (SiteError, "the image server wants credentials that this node does not have"),
    "image-server-tls": (SiteError, "the image server's certificate is not good for this node"),
    "image-server-down": (SiteError, "try again later"),
    "image-server-slow": (SiteError, "try again later"),
    "image-short": (SiteError, "try again later"),
    "image-no-ranges": (SiteError, "try again later"),
    "bytes-differ": (RequestError, "the image was changed after it was signed; ask whoever publishes it"),
}


@dataclass(frozen=True)
class Part:
    """Some of a file's bytes: those of each range (start, before which), in this order, of `size_bytes` in all."""

    ranges: tuple[tuple[int, int], ...]
    size_bytes: int
    min_bytes_per_s: int = 0  # where it is worth something only in time; 0: the fetcher's own limit

    @property
    def wanted_bytes(self) -> int:
        return sum(end - start for start, end in self.ranges)


class Fetcher(Protocol):
    """Where bytes come from. The cache is handed one; tests hand it their own."""

    def fetch(self, url: str, *, max_bytes: int, deadline: float, part: Part | None = None) -> Iterator[bytes]:
        """Yield what is at `url`, or a part of it, at most `max_bytes`, by `deadline` (monotonic).

        Raises only `LrmsVmError`: `SiteError` "image-no-ranges" where only the whole can be had, `RequestError`
        "bytes-differ" where the file has not the size that `part` says.
        """
        ...


def unprivileged() -> Identity | None:
    """Whom the network child runs as: nobody; None (nothing to drop) when we are not root."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError as error:
        raise NodeError("this node has no user 'nobody' to fetch images as", code="fetch-no-user") from error
    return Identity(entry.pw_uid, entry.pw_gid)


@dataclass(frozen=True)
class Fetch:
    """The real `Fetcher`: absolute paths, http and https."""

    identity: Identity | None = field(default_factory=unprivileged)
    proxy: str | None = None  # http://host:port; never taken from the environment
    ca_file: str | None = None  # PEM for https; None: the system's. Must be readable by `identity`
    python: str = sys.executable
    stall_s: float = 20.0  # longest silence
    min_bytes_per_s: int = 16 << 10  # on average over each window
    window_s: float = 15.0

    def fetch(self, url: str, *, max_bytes: int, deadline: float, part: Part | None = None) -> Iterator[bytes]:
        """See `Fetcher`."""
        if url.startswith("/"):
            return read_file(url, max_bytes=max_bytes, deadline=deadline, part=part)
        if url.startswith(("http://", "https://")):
            return self._dropped(url, max_bytes=max_bytes, deadline=deadline, part=part)
        raise RequestError(
            f"{url[:80]!r}: cannot fetch from there", hint="use an absolute path or http(s)://", code="image-url"
        )

    def _dropped(self, url: str, *, max_bytes: int, deadline: float, part: Part | None) -> Generator[bytes, None, None]:
        options = {
            "--max-bytes": max_bytes,
            "--stall-s": self.stall_s,
            "--min-bytes-per-s": max(self.min_bytes_per_s, part.min_bytes_per_s if part else 0),
            "--window-s": self.window_s,
            "--proxy": self.proxy,
            "--ca-file": self.ca_file,
            "--ranges": ",".join(f"{start}-{end}" for start, end in part.ranges) if part else None,
            "--size-bytes": part.size_bytes if part else None,
        }
        argv = [self.python, "-I", "-S", str(CHILD)]
        argv += [f"{name}={value}" for name, value in options.items() if value is not None]
        return fetch_dropped(
            url,
            [*argv, "--", url],
            max_bytes=max_bytes,
            deadline=deadline,
            stall_s=self.stall_s + 5.0,  # the child's own clock speaks first, and says more
            identity=self.identity,
        )


@dataclass
class Metered:
    """A `Fetcher` that another does the work for, and what it has brought so far, failed attempts included."""

    fetcher: Fetcher
    received_bytes: int = 0

    def fetch(
        self, url: str, *, max_bytes: int, deadline: float, part: Part | None = None
    ) -> Generator[bytes, None, None]:
        """See `Fetcher`."""
        stream = self.fetcher.fetch(url, max_bytes=max_bytes, deadline=deadline, part=part)
        try:
            for block in stream:
                self.received_bytes += len(block)
                yield block
        finally:
            close = getattr(stream, "close", None)
            if close is not None:
                close()


def fetch_dropped(
    url: str, argv: list[str], *, max_bytes: int, deadline: float, stall_s: float, identity: Identity | None
) -> Generator[bytes, None, None]:
    """Yield what a child writes, as `identity`. The child parsed hostile protocols: nothing it says is believed.

    Raises `RequestError` or `SiteError` as told by the child, `NodeError` when it says nothing we know.
    """
    if identity is None and os.geteuid() == 0:
        raise NodeError("network protocols are not spoken as root", code="fetch-as-root")
    with command.streaming(argv, identity=identity) as process:
        yield from _blocks(url, process, max_bytes=max_bytes, deadline=deadline, stall_s=stall_s)
        told = _told(process, deadline)
        if process.returncode != 0:
            raise _translated(url, process.returncode, told)


def _blocks(
    url: str, process: subprocess.Popen[bytes], *, max_bytes: int, deadline: float, stall_s: float
) -> Iterator[bytes]:
    assert process.stdout is not None
    fd = process.stdout.fileno()
    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, BLOCK_BYTES)
    total = 0
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while True:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not selector.select(min(left_s, stall_s)):
                waited = "the deadline has passed" if left_s <= stall_s else f"silent for {stall_s:g} s"
                raise SiteError(
                    f"{url}: {waited} after {total} bytes", hint="try again later", code="image-server-slow"
                )
            block = os.read(fd, BLOCK_BYTES)
            if not block:
                return
            total += len(block)
            if total > max_bytes:
                raise _too_large(url, f"more than {max_bytes} bytes")
            yield block


def _told(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    """Wait for the child's end; return the little it may say."""
    assert process.stderr is not None
    try:
        process.wait(max(0.0, min(5.0, deadline - time.monotonic() + 1.0)))
    except subprocess.TimeoutExpired as error:
        raise NodeError("the fetching child closed its output and does not end", code="fetch-failed") from error
    os.set_blocking(process.stderr.fileno(), False)
    try:
        return os.read(process.stderr.fileno(), MAX_TOLD_BYTES)
    except BlockingIOError:
        return b""


def _translated(url: str, returncode: int, told: bytes) -> LrmsVmError:
    try:
        words = json.loads(told) if returncode == EXIT_TOLD else None
    except (ValueError, RecursionError):
        words = None
    if isinstance(words, dict) and {name: type(w) for name, w in words.items()} == {"code": str, "message": str}:
        kind, hint = CHILD_CODES.get(words["code"], (None, ""))
        if kind is not None:
            return kind(f"{url}: {_printable(words['message'])}", hint=hint, code=words["code"])
    said = _printable(told.decode("utf-8", "replace")[-300:])
    return NodeError(f"{url}: the fetching child ended with {returncode}: {said}", code="fetch-failed")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:300])


def read_file(path: str, *, max_bytes: int, deadline: float, part: Part | None = None) -> Generator[bytes, None, None]:
    """Yield a regular file's bytes; a hole comes as (slices of) `ZERO_BLOCK` and is not read.

    Holes read as zeros by definition of the kernel (lseek(2), SEEK_HOLE). The last component may not be a symbolic
    link. Raises `RequestError` or `SiteError`.
    """
    fd = _open_regular(path)
    try:
        size = os.fstat(fd).st_size
        if part is not None and size != part.size_bytes:
            _, hint = CHILD_CODES["bytes-differ"]
            raise RequestError(f"{path}: {size} bytes, signed were {part.size_bytes}", hint=hint, code="bytes-differ")
        if part is None and size > max_bytes:
            raise _too_large(path, f"{size} bytes, at most {max_bytes}")
        for start, end in part.ranges if part is not None else ((0, size),):
            yield from _read_range(fd, path, start, min(end, size), deadline)
    except OSError as error:
        raise SiteError(f"{path}: cannot read: {error.strerror}", code="image-unreadable") from error
    finally:
        os.close(fd)


def _read_range(fd: int, path: str, offset: int, end: int, deadline: float) -> Iterator[bytes]:
    while offset < end:
        if time.monotonic() > deadline:
            raise SiteError(f"{path}: the deadline has passed after {offset} bytes", code="image-server-slow")
        data_at = next_data(fd, offset, end)
        while offset < data_at:
            count = min(BLOCK_BYTES, data_at - offset)
            yield ZERO_BLOCK if count == BLOCK_BYTES else ZERO_BLOCK[:count]
            offset += count
        if offset < end:
            block = os.pread(fd, min(BLOCK_BYTES, end - offset), offset)
            if not block:
                raise SiteError(f"{path}: ended after {offset} of {end} bytes", code="image-short")
            yield block
            offset += len(block)


def next_data(fd: int, offset: int, size: int) -> int:
    """Where the next data at or after `offset` begins, whole blocks kept whole; `size` when only a hole is left."""
    try:
        data_at = os.lseek(fd, offset, os.SEEK_DATA)
    except OSError:  # ENXIO: no data after offset; or a file system without holes, where the read tells
        return size if _is_hole_to_end(fd, offset) else offset
    return min(max(offset, data_at - (data_at - offset) % 4096), size)


def _is_hole_to_end(fd: int, offset: int) -> bool:
    try:
        return os.lseek(fd, offset, os.SEEK_HOLE) == offset
    except OSError:
        return False


def _open_regular(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RequestError(
            f"{path}: there is no such file on this node",
            hint="check the name; the file must be visible on every node",
            code="image-missing",
        ) from error
    except OSError as error:
        raise RequestError(
            f"{path}: cannot open: {error.strerror}", hint="give the path of the file itself", code="image-unreadable"
        ) from error
    except ValueError as error:
        raise RequestError(f"{path!r:.80}: not a path", code="image-url") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise RequestError(f"{path}: not a regular file", hint="images are raw disk files", code="image-not-a-file")
    return fd


def _too_large(where: str, found: str) -> RequestError:
    _, hint = CHILD_CODES["image-too-large"]
    return RequestError(f"{where}: {found}", hint=hint, code="image-too-large")
