"""Where the Xen node and its controller keep everything; names and addresses they share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from demo.layout import Layout

DEFAULT_BASE = Path("/var/lib/lrms_vm-xen")
NODE = "x1"
IMAGES = ("minimal", "hep-jets", "own-kernel")  # of the demo's site, that the node's users may name
TAP = "lrms-vm-x1"
HOST_ADDRESS = "10.99.7.1"  # the controller's, at our end of the tap
NODE_ADDRESS = "10.99.7.2"  # dom0's
PREFIX_LENGTH = 24
SITE_BRIDGE = "site0"  # one of dom0's own, that guests may be plugged into


def default_base() -> Path:
    """`LRMS_VM_XEN_DIR`, or the default."""
    return Path(os.environ.get("LRMS_VM_XEN_DIR") or DEFAULT_BASE)


@dataclass(frozen=True)
class XenLayout(Layout):
    """The demo's tree at another place, and what belongs to the emulated machine.

    `home` is shared with dom0 at the same path; images and certificates are those of the demo's site.
    """

    site: Layout

    @property
    def node(self) -> Path:
        """Everything of the machine; below a directory that only root can enter, since it has dom0's own files."""
        return self.base / "node"

    @property
    def tree(self) -> Path:
        """dom0's root file system, as a directory."""
        return self.node / "root"

    @property
    def disk(self) -> Path:
        """The same as a disk; the machine writes to a throw-away layer over it."""
        return self.node / "dom0.img"

    @property
    def key(self) -> Path:
        """For ssh as root."""
        return self.node / "id"

    @property
    def known_hosts(self) -> Path:
        return self.node / "known_hosts"

    @property
    def console(self) -> Path:
        """What Xen and dom0 said, since the last start."""
        return self.log / "x1-console.log"

    @property
    def pid_file(self) -> Path:
        return self.run / "x1.pid"

    @property
    def homes(self) -> Path:
        return self.base / "home"
