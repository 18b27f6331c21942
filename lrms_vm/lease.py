"""Who uses which image: leases/<job key>, one small file per job. A lease is written first, then the image looked at.

A lease of another boot is stale: guests do not survive one. One of this boot is stale when its job has no run
directory and the process that took it is gone; the epilogue releases all others by the job's key.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
from collections.abc import Container, Iterator
from pathlib import Path

from lrms_vm.errors import NodeError
from lrms_vm.paths import Places
from lrms_vm.values import dataclass

MAX_BYTES = 4096
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@=:\[\]-]{0,199}", re.ASCII)


@dataclass(frozen=True)
class Lease:
    """One job's hold on one image."""

    key: str
    sha256: str
    boot_id: str
    pid: int  # of the process that took it, and
    started: str  # when that process started, in clock ticks since boot: pids are used again


def take(places: Places, key: str, sha256: str) -> None:
    """Hold the image for the job; replaces what the job held before. Raises `NodeError`."""
    path = _path(places, key)
    fresh = path.with_name(f".{key}.{os.getpid()}")
    words = {"sha256": sha256, "boot_id": boot_id(), "pid": os.getpid(), "started": _started(os.getpid())}
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "w") as file:
            json.dump(words, file)
        fresh.rename(path)
    except OSError as error:
        raise NodeError(f"{path}: cannot write the lease: {error.strerror}", code="state-unwritable") from error


def release(places: Places, key: str) -> None:
    """Let go; an absent lease is fine, and so is what a `take` that was killed left beside it. Raises `NodeError`."""
    try:
        path = _path(places, key)
        for name in os.listdir(path.parent) if path.parent.is_dir() else ():
            if name.startswith(f".{key}.") and name.removeprefix(f".{key}.").isdecimal():
                path.with_name(name).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    except OSError as error:
        raise NodeError(f"{places.leases}/{key}: cannot remove: {error.strerror}", code="state-unwritable") from error


def held_by(places: Places, key: str) -> str:
    """The sha256 of the image that a job holds; "" where it holds none."""
    try:
        return _read(_path(places, key)).sha256
    except OSError:
        return ""


def leases(places: Places) -> Iterator[Lease]:
    """Every lease there is. A damaged one counts as held by nobody of this boot (sha256 "")."""
    if not places.leases.is_dir():
        return
    for path in sorted(places.leases.iterdir()):
        if _KEY.fullmatch(path.name) is None:
            continue
        with contextlib.suppress(FileNotFoundError):  # released while we look
            yield _read(path)


def stale(lease: Lease, places: Places) -> bool:
    """True when nobody can be using the image because of this lease."""
    if lease.boot_id != boot_id():
        return True
    return not places.job(lease.key).run.exists() and _started(lease.pid) != lease.started


def remove_stale(places: Places, *, live: Container[str] = ()) -> list[str]:
    """Remove stale leases but those of `live` jobs; return their keys. At node start and before a prologue."""
    gone = [lease.key for lease in leases(places) if lease.key not in live and stale(lease, places)]
    for key in gone:
        release(places, key)
    return gone


@functools.cache
def boot_id() -> str:
    """random(4): another at each boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _path(places: Places, key: str) -> Path:
    if _KEY.fullmatch(key) is None:
        raise NodeError(f"{key[:80]!r} cannot name a lease", code="lease-name")
    return places.leases / key


def _read(path: Path) -> Lease:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        text = file.read(MAX_BYTES)
    try:
        words = json.loads(text)
        return Lease(path.name, str(words["sha256"]), str(words["boot_id"]), int(words["pid"]), str(words["started"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return Lease(path.name, "", "", 0, "")


def _started(pid: int) -> str:
    """Field 22 of proc(5) stat; "" when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
