"""One process at a time: flock on files that stay, with the holder's number in them for whoever waits in vain."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lrms_vm.errors import NodeError, SiteError

_POLL_S = 0.1  # at most; a hundred that wait must not take the processors from the one they wait for


@contextlib.contextmanager
def locked(path: Path, *, deadline: float, instead: Callable[[], bool] | None = None) -> Iterator[bool]:
    """Hold an exclusive flock; the file is never unlinked, so that all who wait wait for the same one.

    While another holds it `instead` is asked now and then: as soon as that is true the wait ends without the lock,
    and False is yielded. Raises `SiteError` naming the holder when `deadline` passes.
    """
    fd, pause_s = _lock_file(path), _POLL_S / 16
    try:
        while not (held := _try_lock(fd)):
            if instead is not None and instead():
                break
            if time.monotonic() > deadline:
                raise SiteError(
                    f"{path.name}: another fetch of this image ({_holder(fd)}) has not ended in time",
                    hint="try again later",
                    code="cache-busy",
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _POLL_S)
        if held and not _is_at(fd, path):  # somebody removed it while we waited: others lock another file now
            with locked(path, deadline=deadline, instead=instead) as held:
                yield held
            return
        if held:
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield held
    finally:
        os.close(fd)


def _lock_file(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise NodeError(f"{path}: cannot open: {error.strerror}", code="state-unwritable") from error


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _holder(fd: int) -> str:
    """Who wrote its number into the lock file last, and whether it is one that will never go on by itself."""
    pid = os.pread(fd, 100, 0).decode("ascii", "replace").strip()
    if not pid.isdecimal():
        return "process unknown"
    with contextlib.suppress(OSError, IndexError):
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t"):
            return f"process {pid}, which is stopped"
    return f"process {pid}"


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
