"""A node with systemd and cgroup v2 as an emulated machine: Debian 12, libvirtd, slurmd, and KVM.

Facts behind the choices: docs/confinement.md.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from demo import programs
from demo.machine import Machine, common_argv
from demo.machine_layout import Identity, MachineLayout

DEFAULT_BASE = Path("/var/lib/lrms_vm-systemd")
NODE = "s1"
MACHINE_MIB = 4096
# QEMU emulates AMD's virtualisation too: KVM runs in the machine. Without nested paging: with it guests reset
# themselves and the machine's own kernel panics. What glibc and OpenSSL use of newer models is slower.
CPU_MODEL = "qemu64,+svm,-npt"


def default_base() -> Path:
    """`LRMS_VM_SYSTEMD_DIR`, or the default."""
    return Path(os.environ.get("LRMS_VM_SYSTEMD_DIR") or DEFAULT_BASE)


@dataclass(frozen=True)
class SystemdLayout(MachineLayout):
    """Beside every node's: what the machine has written since its start."""

    identity = Identity(
        kind="systemd",
        node=NODE,
        tap="lrms-vm-s1",
        host_address="10.99.8.1",
        node_address="10.99.8.2",
        controller_port=26837,
        images=("minimal",),
    )

    @property
    def layer(self) -> Path:
        return self.node / "layer.qcow2"


@dataclass(frozen=True)
class Node(Machine):
    """It keeps what it wrote when its power is cut, and loses it when it is stopped."""

    layout: SystemdLayout

    def argv(self) -> list[str]:
        layout = self.layout
        return [
            *common_argv(layout, cpu=CPU_MODEL, memory_mib=MACHINE_MIB),
            *("-kernel", str(layout.node / "vmlinux"), "-initrd", str(layout.node / "initrd.img")),
            *("-append", "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet mitigations=off panic=-1"),
            # what the machine flushed is in the file whenever the emulator is killed
            *("-drive", f"file={layout.layer},if=none,id=disk,format=qcow2,cache=writeback"),
            *("-device", "virtio-blk-pci,drive=disk"),
        ]

    def start(self) -> None:
        """With a fresh layer, unless it runs."""
        if not self.running:
            self.layout.layer.unlink(missing_ok=True)
            backing = ("-F", "raw", "-b", str(self.layout.disk))
            programs.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(self.layout.layer)])
        super().start()

    def stop(self) -> None:
        super().stop()
        self.layout.layer.unlink(missing_ok=True)

    def cut_power(self) -> None:
        """End the emulator as it stands, and boot it again with what is on its disk."""
        pid = self.daemon.pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            programs.wait_until("the machine off", lambda: not self.running, timeout_s=20)
        self.hang_up()
        super().start()
