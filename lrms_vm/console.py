"""A Xen guest's console, kept in a file for the user to see: QEMU writes it by itself, xenconsoled offers a terminal.

What reads it is one small program of the job's user, which ends with the guest, or with the job as all that carries
its mark, or when it has taken as much as a console may.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lrms_vm.account import Account
from lrms_vm.channel import environment
from lrms_vm.command import spawn_detached
from lrms_vm.errors import NodeError
from lrms_vm.guest import Hypervisor

HEAD = "/usr/bin/head"
MAX_BYTES = 4 << 20
PTS = "/dev/pts/"


def keep(hypervisor: Hypervisor, name: str, file: Path, *, key: str, account: Account, deadline: float) -> None:
    """Copy what the domain says on its console to `file`, which is there and the user's. Returns at once.

    Raises `NodeError`.
    """
    terminal = open_terminal(hypervisor.console(name, deadline=deadline), name)
    try:
        spawn_detached(
            [HEAD, "-c", str(MAX_BYTES)],
            identity=account.identity,
            log=file,
            environment=environment(key),
            stdin=terminal,
        )
    finally:
        os.close(terminal)


def open_terminal(path: str, name: str) -> int:
    """The terminal that the hypervisor named. Raises `NodeError` for what is none."""
    if not path.startswith(PTS):
        raise NodeError(
            f"libvirt names {path or 'no terminal'!r} as the console of {name}; expected {PTS}N",
            hint="is xenconsoled running?",
            code="console-missing",
        )
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise NodeError(f"{path}: the console of {name}: {error.strerror}", code="console-missing") from error
    if not stat.S_ISCHR(os.fstat(fd).st_mode):
        os.close(fd)
        raise NodeError(f"{path}: the console of {name}: not a terminal", code="console-missing")
    return fd
