"""The accepted version of a signed image list, as a node keeps it: one file, so that it is the old one or the new one.

    lrms_vm-list 1 <bytes of each of the next three parts>
    head      JSON: what the whole list says of itself, where it came from, the sha256 of the signed message
    rows      NAME VERSION SHA256 EXPIRES OFFSET LENGTH     a line per image, "-" for what it does not say
    gone      JSON, a line per image that an earlier version had and this one has not
    extracts  what the trust core needs of each image (trust/list_extract.py), found by its row

A job reads its own rows and one extract: as fast with a thousand images as with one. The file's mtime is when the
server last said that this is its list. It is written by root after every check (lists.py), and readable by everybody:
a list is a public thing.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from lrms_vm.errors import SiteError
from lrms_vm.store import write_durably
from lrms_vm.trust.json_object import parse_time, show_time
from lrms_vm.values import dataclass

MAGIC = b"lrms_vm-list 1"
MAX_HEAD_BYTES = 16 << 20
KEEP_GONE = 1000
_FIRST_BYTES = 128


@dataclass(frozen=True)
class Head:
    """The whole list, as it is shown to people; decided upon is only what an extract says."""

    url: str
    identifier: str
    version: str
    title: str
    created: str  # as lists write times, like the next two
    valid_until: str  # as of acceptance
    accepted_at: str
    signer: str
    spki_sha256: str  # the signing key, hex
    content_sha256: str  # hex, of the signed bytes
    message_sha256: str  # hex, of the signed message as it came


@dataclass(frozen=True)
class Row:
    """One version of one image."""

    name: str
    version: str
    sha256: str | None
    expires: datetime | None
    offset: int
    length: int


@dataclass(frozen=True)
class Gone:
    """An image that the list no longer has, and which version of the list was the first without it."""

    name: str
    version: str
    sha256: str | None
    list_version: str
    at: str  # when that version was created
    signer: str


@dataclass(frozen=True)
class New:
    """One image of a copy to be written."""

    name: str
    version: str
    sha256: str | None
    expires: datetime | None
    extract: bytes


@dataclass(frozen=True)
class Copy:
    """A copy that was read: its head and rows. The rest is read when it is asked for, if the file is still the same."""

    path: Path
    head: Head
    answered_at: float  # time.time()
    _rows: bytes
    _gone_at: int
    _extracts_at: int
    _inode: tuple[int, int]

    def rows(self) -> Iterator[Row]:
        """Every image, in the list's order."""
        yield from (_row(line) for line in self._rows.split(b"\n") if line)

    def named(self, name: str) -> list[Row]:
        """Every version of one image."""
        return self._found(b"\n" + name.encode() + b" ")

    def with_sha256(self, sha256: str) -> list[Row]:
        """Images with these bytes."""
        return [row for row in self._found(f" {sha256} ".encode()) if row.sha256 == sha256]

    def gone(self) -> list[Gone]:
        """What was withdrawn or superseded, the latest first."""
        found = []
        for line in self._part(self._gone_at, self._extracts_at - self._gone_at).splitlines():
            with contextlib.suppress(ValueError, TypeError, RecursionError):  # shown to people, decides nothing
                found.append(Gone(**json.loads(line)))
        return found

    def extract(self, row: Row) -> bytes:
        """Raises `SiteError` "list-replaced" when another version was accepted since: look again."""
        return self._part(self._extracts_at + row.offset, row.length)

    def _found(self, words: bytes) -> list[Row]:
        found, at = [], self._rows.find(words)
        while at >= 0:
            start = self._rows.rfind(b"\n", 0, at + 1) + 1
            found.append(_row(self._rows[start : self._rows.index(b"\n", start)]))
            at = self._rows.find(words, at + 1)
        return found

    def _part(self, offset: int, length: int) -> bytes:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                status = os.fstat(fd)
                if (status.st_dev, status.st_ino) == self._inode:
                    return os.pread(fd, length, offset)
            finally:
                os.close(fd)
        except FileNotFoundError:
            pass
        raise SiteError(f"{self.path}: replaced meanwhile", hint="try again", code="list-replaced")


def read(path: Path) -> Copy | None:
    """None where there is none, or none that can be read: then the list is fetched. Raises `OSError`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o022:
            return None
        first = os.pread(fd, _FIRST_BYTES, 0).partition(b"\n")[0]
        if not first.startswith(MAGIC + b" "):
            return None
        sizes = [int(word) for word in first.removeprefix(MAGIC).split()]
        if len(sizes) != 3 or min(sizes) < 0 or sum(sizes) > MAX_HEAD_BYTES:
            return None
        start = len(first) + 1
        text = os.pread(fd, sizes[0] + sizes[1], start)
        if len(text) != sizes[0] + sizes[1]:
            return None
        head = Head(**json.loads(text[: sizes[0]]))
        gone_at = start + sizes[0] + sizes[1]
        inode = (status.st_dev, status.st_ino)
        return Copy(path, head, status.st_mtime, text[sizes[0] :], gone_at, gone_at + sizes[2], inode)
    except (ValueError, TypeError, RecursionError):
        return None
    finally:
        os.close(fd)


def write(path: Path, head: Head, images: Sequence[New], gone: Sequence[Gone]) -> None:
    """Atomically and durably. Raises `OSError`."""
    rows, extracts = ["\n"], bytearray()
    for one in images:
        expires = show_time(one.expires) if one.expires else "-"
        rows.append(f"{one.name} {one.version} {one.sha256 or '-'} {expires} {len(extracts)} {len(one.extract)}\n")
        extracts += one.extract
    parts = (
        json.dumps(asdict(head)).encode() + b"\n",
        "".join(rows).encode(),
        b"".join(json.dumps(asdict(one)).encode() + b"\n" for one in gone[:KEEP_GONE]),
    )
    first = MAGIC + b"".join(b" %d" % len(part) for part in parts) + b"\n"
    write_durably(path, b"".join((first, *parts, extracts)), 0o644)


def _row(line: bytes) -> Row:
    name, version, sha256, expires, offset, length = line.decode().split(" ")
    return Row(name, version, None if sha256 == "-" else sha256, parse_time(expires), int(offset), int(length))
