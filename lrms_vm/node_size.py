"""How much of a node is the guests', and what a batch system must be told of that. Pure.

Xen    what Xen has free and what its guests have now: dom0's memory, which is all that Linux there sees, is not of it.
       Processors: those that dom0 leaves alone (dom0_max_vcpus); where it leaves none, all, and dom0 shares them.
QEMU   what Linux has, less what the node's own system keeps: a twentieth, at least 512 MiB.
"""

from __future__ import annotations

from lrms_vm import overhead
from lrms_vm.values import dataclass

HOST_MIB = 512
HOST_SHARE = 20
XEN_SPARE_MIB = 64  # Xen's own for each domain's descriptors and grant tables, and what fragments


@dataclass(frozen=True)
class XenMachine:
    """What Xen says of its machine. `guests`: memory in MiB and vcpus of each one that runs."""

    free_mib: int
    cpus: int
    dom0_cpus: int
    guests: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class NodeSize:
    """What guests, with their overhead, may take together."""

    cpus: int
    memory_mib: int


def of_xen(machine: XenMachine) -> NodeSize:
    """
    >>> of_xen(XenMachine(4032, 8, 2, ((1000, 1),)))
    NodeSize(cpus=6, memory_mib=4977)
    """
    taken_mib = sum(
        mib + overhead.overhead_mib(mib, "xen", vcpus=vcpus, kernel_bytes=0) for mib, vcpus in machine.guests
    )
    cpus = machine.cpus - machine.dom0_cpus if machine.dom0_cpus < machine.cpus else machine.cpus
    return NodeSize(cpus, max(machine.free_mib + taken_mib - XEN_SPARE_MIB, 0))


def of_linux(memory_mib: int, cpus: int) -> NodeSize:
    """
    >>> of_linux(65536, 16)
    NodeSize(cpus=16, memory_mib=62259)
    """
    return NodeSize(cpus, max(memory_mib - max(HOST_MIB, -(-memory_mib // HOST_SHARE)), 0))


def slurm_lines(node: str, size: NodeSize, hypervisor: str) -> tuple[str, ...]:
    """slurm.conf(5). Without config_overrides Slurm drains a node whose slurmd, in dom0, finds less than is said."""
    line = f"NodeName={node} CPUs={size.cpus} RealMemory={size.memory_mib}"
    return (line, "SlurmdParameters=config_overrides") if hypervisor == "xen" else (line,)


def memory_total_mib(meminfo: str) -> int:
    """Linux' own, of /proc/meminfo. Raises `ValueError`.

    >>> memory_total_mib("MemTotal:       24576000 kB\\nMemFree: 1 kB\\n")
    24000
    """
    for line in meminfo.splitlines():
        name, _, rest = line.partition(":")
        if name == "MemTotal":
            return int(rest.split()[0]) >> 10
    raise ValueError("no MemTotal")
