"""A Xen node as an emulated machine: Xen 4.17, a PV dom0 of Debian, libvirtd and slurmd.

Facts behind the choices: docs/xen.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from demo.machine import Machine, common_argv

MACHINE_MIB = 6144
DOM0_MIB = 2048
# One: with two, which the emulator runs as two threads, Xen waits for the one while the machine runs something else.
CPUS = 1
# A CPU that Xen and a PV dom0 accept (newer ones crash the dom0 in early boot), with AMD's virtualisation, which QEMU
# emulates: for PVH and HVM guests. libvirt's table of CPUs needs one more for it (xen_conf.py).
CPU_MODEL = "Westmere,vendor=AuthenticAMD,family=16,model=4,stepping=2,+svm,+npt"
# What a PV dom0 can drive: its pages are not where the machine's are, so devices must not bypass its DMA layer.
VIRTIO = ",iommu_platform=on,disable-legacy=on"


# QEMU's docs/devel/tcg-icount.rst: each instruction takes 1 ns of the machine's time, and nothing else takes any, but
# that an idle machine's time passes as ours does.
COUNTED = ("-icount", "shift=0,sleep=on,align=off", "-rtc", "clock=vm")


@dataclass(frozen=True)
class Node(Machine):
    """dom0 is what answers.

    `counted`: its clock counts instructions, for benchmarks. It is not ours then, and munge's credentials expire.
    """

    counted: bool = False

    def argv(self) -> list[str]:
        layout, threads = self.layout, "single" if self.counted else "multi"
        xen = f"dom0_mem={DOM0_MIB}M,max:{DOM0_MIB}M dom0_max_vcpus={CPUS} console=com1 com1=115200,8n1 noreboot=1"
        xen += " loglvl=warning bootscrub=0 spec-ctrl=no xpti=no"
        dom0 = "root=/dev/vda rw console=hvc0 net.ifnames=0 quiet mitigations=off"
        return [
            *common_argv(layout, cpu=CPU_MODEL, memory_mib=MACHINE_MIB, cpus=CPUS, virtio=VIRTIO, threads=threads),
            *(COUNTED if self.counted else ()),
            *("-kernel", str(layout.node / "xen.elf"), "-append", xen),
            *("-initrd", f"{layout.node / 'vmlinuz'} {dom0},{layout.node / 'initrd.img'}"),
            *("-drive", f"file={layout.disk},if=none,id=disk,format=raw,cache=unsafe,snapshot=on"),
            *("-device", f"virtio-blk-pci,drive=disk{VIRTIO}"),
        ]
