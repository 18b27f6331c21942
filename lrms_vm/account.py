"""The job's user as this node knows them: what the guest must look like from inside."""

from __future__ import annotations

import grp
import os
import pwd

from lrms_vm.command import Identity
from lrms_vm.errors import NodeError
from lrms_vm.values import dataclass


@dataclass(frozen=True)
class Account:
    """Name, uid, gid, supplementary groups (name, gid) and home directory; no password, no shell of the host."""

    name: str
    uid: int
    gid: int
    groups: tuple[tuple[str, int], ...]
    home: str

    @property
    def identity(self) -> Identity:
        return Identity(self.uid, self.gid, tuple(gid for _, gid in self.groups))


def look_up(uid: int, gid: int) -> Account:
    """Ask the node's name service. Raises `NodeError` where the user or a group is not known here."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError as error:
        raise NodeError(
            f"uid {uid}: no such user on this node", hint="check the name service (getent passwd)", code="user-unknown"
        ) from error
    gids = sorted({gid, *os.getgrouplist(entry.pw_name, gid)})
    return Account(entry.pw_name, uid, gid, tuple((_group_name(gid), gid) for gid in gids), entry.pw_dir)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"g{gid}"  # a gid without a name still carries permissions
