"""A Slurm with one node that has systemd and cgroup v2, an emulated machine. See machine_cluster.py.

Also a command: `python -m demo.systemd_cluster start|stop|status|remove`, or `... run COMMAND` in the node.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from demo import guide, machine_cluster, systemd_conf
from demo.layout import Layout
from demo.layout import default_base as demo_base
from demo.machine_cluster import MachineCluster
from demo.machine_conf import Own
from demo.machine_image import Recipe
from demo.machine_layout import MachineLayout
from demo.programs import DemoError
from demo.systemd_node import Node, SystemdLayout, default_base
from lrms_vm import command, initrd


def _boot_files(layout: MachineLayout, kernel: Path) -> None:
    """The kernel unpacked, which saves the emulator that."""
    argv, packed, size_bytes = initrd.payload_of(kernel.read_bytes())
    unpacked = command.run(argv, stdin=packed, timeout_s=120)
    if len(unpacked) != size_bytes:
        raise DemoError(f"{kernel}: {argv[0]} gave {len(unpacked)} bytes, not {size_bytes}")
    (layout.node / "vmlinux").write_bytes(unpacked)


RECIPE = Recipe(
    what="systemd",
    headings=guide.sections("QEMU/KVM"),
    packages=("apparmor", "logrotate"),
    modules=(
        *("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "9pnet_virtio", "9p", "crc32c_generic", "ext4"),
        *("loop", "isofs", "fuse"),
    ),
    masked=systemd_conf.MASKED,
    appended_to=(),
    made_by_guide=(),
    mke2fs=("-m", "0"),  # with a journal: its power is cut
    disk_mib=8192,
    boot_files=_boot_files,
)


@dataclass(frozen=True)
class SystemdCluster(MachineCluster):
    """See above."""

    layout: SystemdLayout

    @classmethod
    def default(cls) -> SystemdCluster:
        return cls(SystemdLayout(default_base(), site=Layout(demo_base())))

    @property
    def node(self) -> Node:
        return Node(self.layout)

    @property
    def recipe(self) -> Recipe:
        return RECIPE

    @property
    def own(self) -> Own:
        return systemd_conf.OWN


if __name__ == "__main__":
    sys.exit(machine_cluster.main(SystemdCluster.default(), "demo.systemd_cluster", sys.argv[1:]))
