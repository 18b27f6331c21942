"""Images that stay whatever room is needed: pins/<sha256>, one small file of root's for each.

A pin is of bytes, not of a name: a new version of the image is another image, and is not pinned.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from lrms_vm.errors import NodeError
from lrms_vm.paths import Places
from lrms_vm.values import dataclass

MAX_BYTES = 4096
MAX_REASON_LENGTH = 500
_HEX = re.compile("[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class Pin:
    """Why an image stays. What cannot be read still pins: the file's name says which image."""

    sha256: str
    reason: str = ""
    pinned_at: float = 0.0  # time.time()


def pin(places: Places, sha256: str, reason: str) -> None:
    """Keep the image; replaces an earlier reason. Caller has the directory prepared. Raises `NodeError`."""
    path = _path(places, sha256)
    fresh = path.with_name(f".{sha256}.{os.getpid()}")
    words = {"version": 1, "reason": reason[:MAX_REASON_LENGTH], "pinned_at": time.time()}
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "w") as file:
            json.dump(words, file)
            file.flush()
            os.fsync(fd)
        fresh.rename(path)
        _sync(path.parent)
    except OSError as error:
        raise NodeError(f"{path}: cannot write: {error.strerror}", code="state-unwritable") from error


def unpin(places: Places, sha256: str) -> bool:
    """Let it go when its turn comes; True when it was pinned. Raises `NodeError`."""
    path = _path(places, sha256)
    try:
        path.unlink()
        _sync(path.parent)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise NodeError(f"{path}: cannot remove: {error.strerror}", code="state-unwritable") from error
    return True


def pins(places: Places) -> Iterator[Pin]:
    """Every pin there is. Raises `OSError`."""
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(places.pins.iterdir()):
            if _HEX.fullmatch(path.name):
                yield _read(path)


def _path(places: Places, sha256: str) -> Path:
    if _HEX.fullmatch(sha256) is None:
        raise NodeError(f"{sha256[:80]!r} is not a sha256 in hex", code="digest-unreadable")
    return places.pins / sha256


def _read(path: Path) -> Pin:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            words = json.loads(file.read(MAX_BYTES))
        return Pin(path.name, str(words["reason"]), float(words["pinned_at"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return Pin(path.name)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
