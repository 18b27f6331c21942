"""A fault at the N-th thing by which a piece of code changes the world, whatever that thing is.

The interpreter itself says what changes the world: its audit events (docs.python.org, "Audit events table") come just
before each file is opened for writing, directory made, name changed or removed, owner or mode changed, lock taken,
program started and signal sent. So nobody has to list the places in the code, and a new one is met without being named.
An audit hook cannot be removed: everything here happens in children.
"""

from __future__ import annotations

import errno
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_CHANGES = """
    open os.mkdir os.rmdir os.remove os.rename os.link os.symlink os.chmod os.chown os.truncate os.utime os.setxattr
    os.removexattr os.kill os.killpg os.posix_spawn os.fork os.exec subprocess.Popen socket.bind socket.connect
    fcntl.flock shutil.rmtree
"""
CHANGES = frozenset(_CHANGES.split())
TAKES_ROOM = frozenset(["open", "os.mkdir", "os.rename", "os.link", "os.symlink", "subprocess.Popen", "os.posix_spawn"])
FULL, KILLED, DONE = "full", "killed", "done"
_NOT_OURS = ("/dev/", "__pycache__")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Outcome:
    """How the child ended: `how` is KILLED or DONE; `where` the change at which the fault came, "" if there are fewer."""

    how: str
    where: str
    said: str  # what the action returned, or the traceback


class _Elsewhere:
    """What another program would do is not ours to be killed in."""

    depth = 0


@contextmanager
def elsewhere() -> Iterator[None]:
    _Elsewhere.depth += 1
    try:
        yield
    finally:
        _Elsewhere.depth -= 1


def change(event: str, arguments: tuple[Any, ...]) -> str:
    """The change that an audit event announces, in words; "" for what changes nothing of ours.

    >>> change("os.mkdir", ("/x", 0o700, -1))
    'os.mkdir /x'
    >>> change("open", ("/x", None, os.O_RDONLY)), change("open", ("/x", "w", os.O_WRONLY))
    ('', 'open /x')
    """
    if event not in CHANGES:
        return ""
    first = os.fsdecode(arguments[0]) if isinstance(arguments[0], bytes | str | os.PathLike) else str(arguments[0])
    if event == "open" and (isinstance(arguments[0], int) or not arguments[2] & _WRITES):
        return ""
    if any(part in first for part in _NOT_OURS):
        return ""
    return f"{event} {first}"


def at(number: int, action: Callable[[], object], *, fault: str = KILLED) -> Outcome:
    """Run `action` in a child with a fault before its change `number` (from 0).

    KILLED: SIGKILL. FULL: that change fails with ENOSPC, if it takes room; a program does not start (ENOMEM).
    """
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reads)
        try:
            said = repr(_with_fault(number, action, fault, writes))
        except BaseException:
            _Elsewhere.depth += 1  # the hook is still there
            said = "RAISED " + traceback.format_exc()
        _Elsewhere.depth += 1
        os.write(writes, b"\n" + said.encode()[-30000:])
        os._exit(0)
    os.close(writes)
    with open(reads, "rb") as file:
        where, _, said_bytes = file.read().partition(b"\n")
    status = os.waitpid(child, 0)[1]
    how = KILLED if os.WIFSIGNALED(status) else DONE
    return Outcome(how, where.decode(), said_bytes.decode())


def everywhere(action: Callable[[], object], *, fault: str = KILLED, start: int = 0) -> Iterator[Outcome]:
    """One outcome for each change that `action` makes, in order. What is tidied up between them is the caller's."""
    number = start
    while (outcome := at(number, action, fault=fault)).where:
        yield outcome
        number += 1


def _with_fault(number: int, action: Callable[[], object], fault: str, tell: int) -> object:
    import sys

    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if _Elsewhere.depth or event not in CHANGES or (fault == FULL and event not in TAKES_ROOM):
            return
        what = change(event, arguments)
        if not what:
            return
        count += 1
        if count - 1 != number:
            return
        os.write(tell, what.replace("\n", " ").encode())
        if fault == KILLED:
            _Elsewhere.depth += 1
            os.kill(os.getpid(), signal.SIGKILL)
        program = event in ("subprocess.Popen", "os.posix_spawn")
        raise OSError(errno.ENOMEM if program else errno.ENOSPC, "no room, says the test", what)

    sys.addaudithook(hook)
    return action()
