"""Which file system a directory is on, as the kernel's own table of mounts says (proc_pid_mountinfo(5))."""

from __future__ import annotations

import re
from pathlib import Path

# flock, leases of files (fcntl(2) F_SETLEASE) and the inode stamp mean something only on a disk that is this node's.
NETWORK = frozenset(
    [
        "9p",
        "acfs",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "gfs",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "panfs",
        "prl_fs",
        "pvfs2",
        "smb3",
        "smbfs",
        "vboxsf",
        "virtiofs",
        "vmhgfs",
        "wekafs",
    ]
)


def kind_of(path: Path) -> str:
    """The type, e.g. "ext4", of the file system that holds `path`, or the nearest parent that exists. `OSError`."""
    existing = next(p for p in [path, *path.parents] if p.exists()).resolve()
    return kind_at(str(existing), Path("/proc/self/mountinfo").read_text())


def on_network(kind: str) -> bool:
    """Whether another machine may hold the bytes. One in user space may be anything, so it counts."""
    return kind in NETWORK or kind == "fuse" or kind.startswith("fuse.")


def kind_at(path: str, table: str) -> str:
    """The last mount that covers the path hides those before it."""
    best, kind = "", "unknown"
    for line in table.splitlines():
        mount, _, rest = line.partition(" - ")
        words = mount.split(" ")
        if len(words) < 5 or not rest:
            continue
        where = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), words[4])
        if (path.rstrip("/") + "/").startswith(where.rstrip("/") + "/") and len(where) >= len(best):
            best, kind = where, rest.split(" ")[0]
    return kind
