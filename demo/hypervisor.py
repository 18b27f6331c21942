"""libvirt's QEMU driver for the demo: used where it runs, started by hand where nothing else does (no systemd)."""

from __future__ import annotations

import grp
import os
import stat
from pathlib import Path

from demo.layout import Layout
from demo.programs import Daemon, DemoError, run, succeeds, wait_until

URI = "qemu:///system"
SOCKET = Path("/run/libvirt/libvirt-sock")
DOMAIN_PREFIX = "lrms_vm-"


def daemons(layout: Layout) -> tuple[Daemon, Daemon]:
    """virtlogd first: libvirtd cannot start a domain whose console has nowhere to go."""
    made = []
    for name in ("virtlogd", "libvirtd"):
        pid_file = layout.run / f"{name}.pid"
        made.append(
            Daemon(name, (f"/usr/sbin/{name}", "--daemon", "--pid-file", str(pid_file)), pid_file, str(pid_file))
        )
    return made[0], made[1]


def answers() -> bool:
    """Whether libvirt's QEMU driver can be reached."""
    return succeeds(["virsh", "-c", URI, "uri"], timeout_s=30)


def start(layout: Layout) -> bool:
    """Make sure that it answers; return whether we had to start it."""
    give_kvm_its_group()
    if answers():
        return False
    for daemon in daemons(layout):
        daemon.start()
    wait_until(f"{URI} answers (see {layout.log})", answers, timeout_s=60, pause_s=0.5)
    return True


def stop(layout: Layout) -> list[str]:
    """Stop what `start` started; return the names of domains because of which it was left running."""
    virtlogd, libvirtd = daemons(layout)
    if libvirtd.pid is not None:
        if others := domains():
            return others
        for network in _words(["virsh", "-c", URI, "net-list", "--name"]):
            run(["virsh", "-c", URI, "net-destroy", network])  # its dnsmasq would outlive libvirtd
        libvirtd.stop()
    virtlogd.stop()
    return []


def domains() -> list[str]:
    """Names of all running domains."""
    return _words(["virsh", "-c", URI, "list", "--name"])


def give_kvm_its_group() -> None:
    """Do what Debian's udev rule does where no udev ran.

    With /dev/kvm closed to libvirt-qemu, libvirt probes QEMU again at each look-up: 76 s a domain.
    """
    kvm = Path("/dev/kvm")
    try:
        status = kvm.stat()
        group = grp.getgrnam("kvm").gr_gid
    except (FileNotFoundError, KeyError):
        return  # no KVM here, or no group for it
    if stat.S_ISCHR(status.st_mode) and status.st_gid == 0 and status.st_uid == 0:
        os.chown(kvm, 0, group)
        kvm.chmod(0o660)


def _words(argv: list[str]) -> list[str]:
    try:
        return run(argv, timeout_s=30).split()
    except DemoError:
        return []  # libvirtd is on its way out: nothing of ours is left in it
