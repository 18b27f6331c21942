"""One process at a time: flock on files that stay, with the holder's number in them for whoever waits in vain.

Who waits sleeps in the kernel, in a thread of its own, for flock knows no time limit: a hundred that asked again and
again would take the processors from the one they wait for.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lrms_vm.errors import NodeError, SiteError

_ASK_S = 1.0  # how often `instead` is asked while the lock is held
_PAUSE_S = 0.1  # at most, where others were quicker again and again


@contextlib.contextmanager
def locked(path: Path, *, deadline: float, instead: Callable[[], bool] | None = None) -> Iterator[bool]:
    """Hold an exclusive flock; the file is never unlinked, so that all who wait wait for the same one.

    With `instead`, all who wait are woken together, and each second: the one for whom it is true then goes on without
    the lock, and False is yielded. Without, one after another is woken, with the lock.
    Raises `SiteError` naming the holder when `deadline` passes, `NodeError` where the file cannot be locked.
    """
    fd = _lock_file(path)
    try:
        held = _wait(fd, path.name, deadline, instead)
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


def _wait(fd: int, name: str, deadline: float, instead: Callable[[], bool] | None) -> bool:
    """True with the lock, False when `instead` is true. Raises `SiteError`."""
    pause_s = _PAUSE_S / 64
    while not _try_lock(fd):
        if instead is not None and instead():
            return False
        waiter = _Waiter(fd, fcntl.LOCK_EX if instead is None else fcntl.LOCK_SH)
        while waiter.is_alive():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise SiteError(
                    f"{name}: another fetch of this image ({_holder(fd)}) has not ended in time",
                    hint="try again later",
                    code="cache-busy",
                )
            waiter.join(left_s if instead is None else min(left_s, _ASK_S))
            if instead is not None and waiter.is_alive() and instead():
                return False
        if instead is not None:  # all were woken
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_S)
    return True


class _Waiter(threading.Thread):
    """Sleeps until nobody else holds the lock; an exclusive one is then ours, as `_try_lock` will find.

    The descriptor is a copy of its own, of the same open file: whoever is left behind when the wait is over and the
    other descriptor closed frees with its copy what it is given.
    """

    def __init__(self, fd: int, operation: int) -> None:
        super().__init__(daemon=True)
        self._fd, self._operation = os.dup(fd), operation
        self.start()

    def run(self) -> None:
        try:
            with contextlib.suppress(OSError):  # `_try_lock` fails as well, and says why
                fcntl.flock(self._fd, self._operation)
                if self._operation == fcntl.LOCK_SH:
                    fcntl.flock(self._fd, fcntl.LOCK_UN)
        finally:
            os.close(self._fd)


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
