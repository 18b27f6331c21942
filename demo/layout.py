"""Where the demo keeps everything: below one directory that users and the hypervisor's user can reach."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lrms_vm.paths import Places

CHECKOUT = Path(__file__).resolve().parent.parent
DEFAULT_BASE = Path("/var/lib/lrms_vm-demo")
NODES = ("n1", "n2")
USER = "physicist"  # may run every image of the demo
STRANGER = "stranger"  # may run none
GROUP = "lrms-vm-demo"  # USER is in it, STRANGER is not


def default_base() -> Path:
    """`LRMS_VM_DEMO_DIR`, or the default. Not below /root or the checkout: users must be able to get there."""
    return Path(os.environ.get("LRMS_VM_DEMO_DIR") or DEFAULT_BASE)


@dataclass(frozen=True)
class Layout:
    """The demo's own directory tree."""

    base: Path

    @property
    def etc(self) -> Path:
        return self.base / "etc"

    @property
    def run(self) -> Path:
        return self.base / "run"

    @property
    def log(self) -> Path:
        return self.base / "log"

    @property
    def state(self) -> Path:
        return self.base / "state"

    @property
    def opt(self) -> Path:
        """The installed package: a virtual environment, and a prefix for each node's hooks and plugin."""
        return self.base / "opt"

    def prefix(self, node: str) -> Path:
        """Where `lrms-vm install` puts a node's hooks and plugin; a real node has /opt/lrms_vm."""
        return self.opt / node

    @property
    def python(self) -> Path:
        return self.opt / "venv" / "bin" / "python"

    @property
    def command(self) -> Path:
        return self.opt / "venv" / "bin" / "lrms-vm"

    def plugin(self, node: str) -> Path:
        return self.prefix(node) / "lib" / "lrms_vm.so"

    @property
    def images(self) -> Path:
        return self.base / "images"

    @property
    def cache(self) -> Path:
        """What was built or downloaded and can be used again."""
        return self.base / "cache"

    @property
    def ca(self) -> Path:
        """The throw-away certificate authority: its directory of certificates and CRLs, and the keys of its people."""
        return self.base / "ca"

    @property
    def directories(self) -> tuple[Path, ...]:
        """Directories everybody may enter and read."""
        return (self.etc, self.run, self.log, self.state, self.opt, self.images, self.cache)

    @property
    def munge_socket(self) -> Path:
        return self.base / "munge" / "munge.socket.2"

    def slurm_conf(self, node: str | None = None) -> Path:
        """A node's own configuration, or that of users and the controller."""
        return self.etc / node / "slurm.conf" if node else self.etc / "slurm.conf"

    def config(self, node: str) -> Path:
        """A node's lrms_vm.toml."""
        return self.etc / node / "lrms_vm.toml"

    def places(self, node: str) -> Places:
        return Places(self.state / node, self.run / node)

    def libvirt_socket(self, node: str) -> Path:
        """A name of the hypervisor's socket that belongs to one node: without it, only that node is broken."""
        return self.run / f"{node}-libvirt-sock"

    def home(self, user: str) -> Path:
        return self.base / "home" / user
