"""The rendered domains, byte for byte, and read back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lrms_vm import domain
from lrms_vm.domain import Domain

TEMPLATES = Path(domain.__file__).parent / "templates"
NASTY = """a<b>&amp;"c'd"""

PLAIN = Domain(
    name="lrms_vm-slurm-4711.n1",
    hypervisor="qemu",
    memory_mib=1856,
    vcpus=2,
    base_path="/var/lib/lrms_vm/store/sha256/ab/abcd/image",
    overlay_path="/var/lib/lrms_vm/jobs/slurm-4711.n1/overlay.qcow2",
    seed_path="/var/lib/lrms_vm/jobs/slurm-4711.n1/seed.iso",
    kernel_path="/etc/lrms_vm/kernels/vmlinuz",
    initrd_path="/etc/lrms_vm/kernels/initrd.img",
    cmdline="root=/dev/vda rw console=ttyS0 quiet",
    channel_path="/run/lrms_vm/jobs/slurm-4711.n1/channel.sock",
    console_path="/run/lrms_vm/jobs/slurm-4711.n1/console.log",
    network="none",
    mac=None,
    run_as="libvirt-qemu:libvirt-qemu",
    nat_bridge="lrms_vm0",
)
HOSTILE = replace(
    PLAIN,
    name=f"lrms_vm-{NASTY}",
    base_path=f"/{NASTY}/base",
    overlay_path=f"/{NASTY}/overlay",
    seed_path=f"/{NASTY}/seed",
    kernel_path=f"/{NASTY}/kernel",
    initrd_path=f"/{NASTY}/initrd",
    cmdline=f"root=/dev/vda {NASTY} </cmdline>",
    channel_path=f"/{NASTY}/channel",
    console_path=f"/{NASTY}/console",
    network=f"bridge:{NASTY}",
    mac="02:00:00:00:00:01",
    run_as=NASTY,
)
XEN = replace(PLAIN, hypervisor="xen", guest="pv", cmdline="root=/dev/xvda rw console=hvc0 quiet")
FROM_DISK = {"kernel_path": "", "initrd_path": "", "cmdline": ""}
GRUB = {**FROM_DISK, "kernel_path": "/usr/lib/grub-xen/grub-x86_64-xen.bin"}
PYGRUB = {"bootloader": "/usr/lib/xen-4.17/bin/pygrub", "bootloader_args": "--quiet --runas=64000"}
CASES = {
    "qemu-plain": PLAIN,
    "kvm-nat": replace(PLAIN, hypervisor="kvm", network="nat", mac="02:11:22:33:44:55"),
    "qemu-bridge": replace(PLAIN, network="bridge:br0", mac="02:11:22:33:44:55"),
    "qemu-hostile": HOSTILE,
    "xen-plain": XEN,
    "xen-nat": replace(XEN, network="nat", mac="02:11:22:33:44:55"),
    "xen-hostile": replace(HOSTILE, hypervisor="xen", guest="pv"),
    "xen-pvgrub": replace(XEN, **GRUB),
    "xen-pygrub": replace(XEN, **FROM_DISK, **PYGRUB),
    "xen-pvh": replace(XEN, guest="pvh"),
    "xen-pvh-grub": replace(XEN, guest="pvh", **GRUB),
    "xen-hvm": replace(XEN, guest="hvm"),
    "xen-hvm-disk": replace(XEN, guest="hvm", **FROM_DISK),
    "xen-hvm-nat": replace(XEN, guest="hvm", network="nat", mac="02:11:22:33:44:55"),
    "kvm-disk": replace(PLAIN, hypervisor="kvm", **FROM_DISK),
}


@pytest.mark.parametrize("name", CASES)
def test_domain_is_rendered_as_reviewed_and_reads_back(name: str, golden: Callable[[str, str], None]) -> None:
    case = CASES[name]
    template = "domain-xen.xml.j2" if case.hypervisor == "xen" else "domain-qemu.xml.j2"
    text = domain.render(case, (TEMPLATES / template).read_text())
    golden(f"{name}.xml", text)
    domain.compare(case, text)
