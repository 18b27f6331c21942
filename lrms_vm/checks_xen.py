"""What would stop a VM job on a Xen node, and on one whose guests have a network: questions as in checks.py."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from lrms_vm import command, node_size
from lrms_vm.config import Config
from lrms_vm.finding import Finding, answer
from lrms_vm.node_size import NodeSize

TIMEOUT_S = 10.0
MIN_FREE_MIB = 128
CAPABILITIES = Path("/proc/xen/capabilities")
LIBXL_CONF = Path("/etc/libvirt/libxl.conf")
# The device model that serves disks and the channel's socket: Debian's package, or Xen's own build.
DEVICE_MODELS = (
    "/usr/libexec/xen-qemu-system-i386",
    "/usr/lib/xen-4.17/bin/qemu-system-i386",
    "/usr/lib/xen/bin/qemu-system-i386",
)
SYS_NET = Path("/sys/class/net")


def xen(config: Config) -> Iterator[Finding]:
    """Nothing where the hypervisor is another one."""
    if config.hypervisor != "xen":
        return
    from lrms_vm import node

    try:
        is_dom0 = "control_d" in CAPABILITIES.read_text()
    except OSError:
        is_dom0 = False
    yield answer(
        "dom0", is_dom0, "this is dom0" if is_dom0 else "this is not dom0", "boot into Xen: docs/admin.md, With Xen"
    )
    if not is_dom0:
        return
    info = command.run(["xl", "info"], timeout_s=TIMEOUT_S).decode("utf-8", "replace")
    options = xen_options(info)
    yield dom0_memory(options)
    yield ballooning(LIBXL_CONF.read_text() if LIBXL_CONF.exists() else "", options)
    yield device_model([path for path in DEVICE_MODELS if Path(path).is_file()])
    machine = node.hypervisor(config).xen_machine(deadline=time.monotonic() + TIMEOUT_S)
    found = f"{machine.free_mib} MiB free in Xen, {len(machine.guests)} guests run"
    remedy = "give dom0 less: dom0_mem on Xen's command line"
    yield answer("memory for guests", machine.free_mib >= MIN_FREE_MIB or bool(machine.guests), found, remedy)


def networks(config: Config) -> Iterator[Finding]:
    """What each network needs that a job may have here."""
    names = dict.fromkeys((config.network, *config.networks_allowed))
    for name in names:
        if bridge := name.removeprefix("bridge:") if name.startswith("bridge:") else "":
            there = (SYS_NET / bridge / "bridge").is_dir()
            yield answer(
                f"bridge {bridge}",
                there,
                "there" if there else "not a bridge of this node",
                f"make it: ip link add {bridge} type bridge",
            )
    if any(name != "none" for name in names):
        for program, package in (("nft", "nftables"), ("ip", "iproute2")):
            path = shutil.which(program, path=command.PATH)
            yield answer(f"program {program}", path is not None, path or "missing", f"apt install {package}")


def xen_options(info: str) -> str:
    """Xen's own command line, of what `xl info` prints.

    >>> xen_options("host : x1\\nxen_commandline        : dom0_mem=2048M,max:2048M console=com1\\n")
    'dom0_mem=2048M,max:2048M console=com1'
    """
    for line in info.splitlines():
        name, _, text = line.partition(":")
        if name.strip() == "xen_commandline":
            return text.strip()
    return ""


def dom0_memory(options: str) -> Finding:
    """Whether dom0 has a fixed share: without the maximum its kernel sizes its tables for all of the machine."""
    match = re.search(r"(?:^|\s)dom0_mem=(\S*)", options)
    ok = match is not None and "max:" in match[1]
    found = f"dom0_mem={match[1]}" if match else "dom0_mem is not said: dom0 has all memory"
    return answer("dom0_mem", ok, found, "on Xen's command line: dom0_mem=4096M,max:4096M; then reboot (docs/xen.md)")


def ballooning(libxl_conf: str, options: str) -> Finding:
    """libvirt takes memory from dom0 for a guest unless told not to; without a word it goes by dom0_mem."""
    match = re.search(r"^\s*autoballoon\s*=\s*(\S+)", libxl_conf, re.MULTILINE)
    off = match[1].strip("\"'") in ("0", "off") if match else "dom0_mem=" in options
    found = f"autoballoon = {match[1]}" if match else f"autoballoon is not said, so {'off' if off else 'on'}"
    return answer("ballooning is off", off, found, f"autoballoon = 0 in {LIBXL_CONF}, then restart libvirtd")


def told(config: Config, memory_mib: int) -> Finding:
    """What the batch system was told of the guests' memory, against what there is."""
    from lrms_vm import node

    machine = node.hypervisor(config).xen_machine(deadline=time.monotonic() + TIMEOUT_S)
    return told_of(memory_mib, node_size.of_xen(machine))


def told_of(memory_mib: int, size: NodeSize) -> Finding:
    """The same with the answer at hand. Less is the site's choice; more, and guests will not fit."""
    found = f"{memory_mib} MiB, for guests there are {size.memory_mib} MiB"
    return answer(
        "slurm RealMemory", memory_mib <= size.memory_mib, found, "`lrms-vm doctor --slurm-conf` has the line"
    )


def device_model(paths: list[str]) -> Finding:
    return answer("qemu-system-xen", bool(paths), paths[0] if paths else "missing", "apt install qemu-system-xen")
