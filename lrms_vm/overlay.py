"""The guest's writable disk: an empty qcow2 over the verified base, which every guest of that image shares unchanged.

Nobody on the host ever opens it again once the guest could write to it; teardown only removes it.
"""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

from lrms_vm.command import run
from lrms_vm.domain import Domain
from lrms_vm.errors import ConfigError, NodeError

QEMU_IMG = "/usr/bin/qemu-img"


def make(domain: Domain, *, timeout_s: float) -> None:
    """Make `domain.overlay_path`, 0600 and the hypervisor's. Its directory is there and only root can write it.

    The base's format is said, not probed: a raw image that begins like a qcow2 must not become one.
    Raises `NodeError` (disk full, no qemu-img), `ConfigError` for a hypervisor user that does not exist.
    """
    uid, gid = hypervisor_ids(domain.run_as)
    run(
        [QEMU_IMG, "create", "-q", "-f", "qcow2", "-F", "raw", "-b", domain.base_path, domain.overlay_path],
        timeout_s=timeout_s,
    )  # under command.py's umask 077
    give(Path(domain.overlay_path), uid, gid)


def give(path: Path, uid: int, gid: int) -> None:
    """Hand a file of ours to the hypervisor's user, readable by nobody else. Raises `NodeError`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(fd, 0o600)
            os.fchown(fd, uid, gid)
        finally:
            os.close(fd)
    except OSError as error:
        raise NodeError(f"{path}: cannot give it to uid {uid}: {error.strerror}", code="state-unwritable") from error


def hypervisor_ids(run_as: str) -> tuple[int, int]:
    """(uid, gid) of "user:group", each a name or +number, as libvirt reads its DAC labels. Raises `ConfigError`."""
    user, _, group = run_as.partition(":")
    try:
        uid = int(user[1:]) if user.startswith("+") else pwd.getpwnam(user).pw_uid
        gid = int(group[1:]) if group.startswith("+") else grp.getgrnam(group).gr_gid
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"hypervisor_user: no user or group {run_as!r} on this node",
            hint="set it to whom libvirt runs qemu as, user or user:group",
            code="hypervisor-user-unknown",
        ) from error
    return uid, gid
