"""Where an emulated node and its controller keep everything; names and addresses they share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from demo.layout import Layout

PREFIX_LENGTH = 24


@dataclass(frozen=True)
class Identity:
    """What is one node's alone, so that nodes of several kinds may run at once."""

    kind: str  # "xen": in the cluster's name
    node: str
    tap: str  # our end of the cable
    host_address: str  # the controller's, there
    node_address: str
    controller_port: int
    images: tuple[str, ...]  # of the demo's site, that the node's users may name


@dataclass(frozen=True)
class MachineLayout(Layout):
    """The demo's tree at another place, and what belongs to the emulated machine.

    `home` is shared with the node at the same path; images and certificates are those of the demo's site.
    """

    identity: ClassVar[Identity]

    site: Layout

    @property
    def node(self) -> Path:
        """Everything of the machine; below a directory that only root can enter, since it has the node's own files."""
        return self.base / "node"

    @property
    def tree(self) -> Path:
        """The node's root file system, as a directory."""
        return self.node / "root"

    @property
    def disk(self) -> Path:
        """The same as a disk; the machine writes to a layer over it."""
        return self.node / "disk.img"

    @property
    def key(self) -> Path:
        """For ssh as root."""
        return self.node / "id"

    @property
    def known_hosts(self) -> Path:
        return self.node / "known_hosts"

    @property
    def console(self) -> Path:
        """What the machine said, since the last start."""
        return self.log / f"{self.identity.node}-console.log"

    @property
    def pid_file(self) -> Path:
        return self.run / f"{self.identity.node}.pid"

    @property
    def ssh_socket(self) -> Path:
        return self.run / f"{self.identity.node}.ssh"

    @property
    def homes(self) -> Path:
        return self.base / "home"
