"""The machine and what is booted on it: one definition, so that the boots differ in the one thing compared. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MACHINE_MIB = 4096
PAYLOAD_MIB = 1024  # of memory, for the Linux that runs the payloads
SHIFT = 0  # an instruction takes 2**SHIFT ns of the machine's time
CPU = "Westmere"  # the newest a PV dom0 boots on under emulation (docs/xen.md)
STARTED = "2026-01-01T00:00:00"  # the machine's clock at power-on
# The hardware of 2007 had no mitigations of speculation, and nobody's addresses are random here.
LINUX = "quiet mitigations=off nokaslr norandmaps panic=1 rootfstype=ramfs"
XEN = (
    "console=com1 com1=115200,8n1 noreboot=1 dom0_max_vcpus=1 spec-ctrl=no xpti=no pv-l1tf=no bootscrub=0 "
    "loglvl=warning"
)


@dataclass(frozen=True)
class Boot:
    """One way to run the payloads. `role`: what figure3/inside/init is told; the Linux that answers is `where`."""

    name: str
    role: str
    xen: bool
    where: str


BOOTS = {
    "native": Boot("native", "native", False, "Linux on the machine"),
    "dom0": Boot("dom0", "dom0", True, "Linux as Xen's dom0"),
    "xen": Boot("xen", "node", True, "Linux as a Xen PV guest"),
}


@dataclass(frozen=True)
class Files:
    """What a machine is given: no disk and no network, all of it is in memory when the first instruction runs."""

    kernel: Path
    xen: Path
    initrd: Path
    held_mib: int  # memory that `initrd` takes for as long as its Linux runs


def qemu_argv(boot: Boot, files: Files, *, console: Path, shift: int = SHIFT) -> list[str]:
    """QEMU's command line.

    Nothing in it takes its time from the host: no disk, no network, no random numbers; the clock is the virtual one.
    `sleep=off`: when the machine is idle its time jumps to the next timer. See QEMU's docs/devel/tcg-icount.rst.
    """
    # The Linux that runs the payloads has PAYLOAD_MIB beyond what the disks take, as the guest has all of it.
    memory = PAYLOAD_MIB + files.held_mib
    linux = f"{LINUX} figure3={boot.role}"
    argv = [
        *("qemu-system-x86_64", "-name", f"figure3-{boot.name}", "-accel", "tcg,thread=single"),
        *("-icount", f"shift={shift},sleep=off,align=off", "-rtc", f"base={STARTED},clock=vm"),
        *("-machine", "pc", "-cpu", CPU, "-smp", "1", "-m", str(MACHINE_MIB), "-seed", "2007"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", f"file:{console}"),
    ]
    if not boot.xen:
        return [
            *argv,
            *("-kernel", str(files.kernel), "-initrd", str(files.initrd)),
            *("-append", f"{linux} mem={memory}M console=ttyS0,115200"),
        ]
    return [
        *argv,
        *("-kernel", str(files.xen), "-append", f"{XEN} dom0_mem={memory}M,max:{memory}M"),
        *("-initrd", f"{files.kernel} {linux} console=hvc0,{files.initrd}"),
    ]


def guest_cfg() -> str:
    """The guest, in xl.cfg(5). `tsc_mode`: its rdtsc is the machine's, which says what time it really is."""
    lines = [
        'name = "figure3"',
        'type = "pv"',
        'kernel = "/run/inside/vmlinuz"',
        'ramdisk = "/run/inside/initrd.img"',
        f'extra = "{LINUX} console=hvc0 figure3=guest"',
        f"memory = {PAYLOAD_MIB}",
        f"maxmem = {PAYLOAD_MIB}",
        "vcpus = 1",
        'disk = ["phy:/dev/loop0,xvda,r", "phy:/dev/loop1,xvdb,w"]',
        'tsc_mode = "native"',
        'uuid = "6c726d73-5f76-4d00-8000-000000000003"',
        *(f'on_{event} = "destroy"' for event in ("poweroff", "reboot", "crash")),
    ]
    return "\n".join(lines) + "\n"
