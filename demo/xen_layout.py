"""The Xen node's place, name and addresses."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from demo.machine_layout import Identity, MachineLayout

DEFAULT_BASE = Path("/var/lib/lrms_vm-xen")
NODE = "x1"
SITE_BRIDGE = "site0"  # one of dom0's own, that guests may be plugged into


def default_base() -> Path:
    """`LRMS_VM_XEN_DIR`, or the default."""
    return Path(os.environ.get("LRMS_VM_XEN_DIR") or DEFAULT_BASE)


@dataclass(frozen=True)
class XenLayout(MachineLayout):
    """dom0 is the node."""

    identity = Identity(
        kind="xen",
        node=NODE,
        tap="lrms-vm-x1",
        host_address="10.99.7.1",
        node_address="10.99.7.2",
        controller_port=26827,
        images=("minimal", "hep-jets", "own-kernel"),
    )

    @property
    def disk(self) -> Path:
        return self.node / "dom0.img"
