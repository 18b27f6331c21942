"""Which control groups (cgroups) hold a guest, what is written into them and how they are read. Pure: texts and paths.

A guest has one group in each hierarchy that counts memory or cpus, named after its domain:

    cgroup v1, Slurm has groups   <mount>/slurm_<node>/uid_<uid>/job_<id>/lrms_vm-<key>   or <mount>/slurm/...
    cgroup v2, Slurm has groups   <mount>/system.slice/<node>_slurmstepd.scope/job_<id>/lrms_vm-<key>
                                  or <mount>/system.slice/slurmstepd.scope/...
    no batch system has any       <mount>/lrms_vm/lrms_vm-<key>

Slurm makes a job's group with its first step, after the prologue, and takes one that is there already
(src/interfaces/cgroup.c common_cgroup_instantiate: EEXIST is fine). So the prologue makes it, with ours inside: the
guest's memory is charged to the job from the first page on, while a process moved later would leave it behind. Never
the group of a step: a user's `scancel` kills what is in there (reference/slurm-measured.md 5).

The controllers' files: the kernel's Documentation/admin-guide/cgroup-v1/{memory,cpuacct}.rst, cgroup-v2.rst and
scheduler/sched-bwc.rst.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from lrms_vm.paths import NAME_PREFIX
from lrms_vm.values import dataclass

TYPE_CHECKING = False  # as typing's, without loading it
if TYPE_CHECKING:
    from lrms_vm.request import Allocation

WANTED = frozenset(("memory", "cpu", "cpuacct"))
OWN_ROOT = "lrms_vm"
PERIOD_US = 100_000  # the kernel's own default
AT_LIMIT = 0.95  # of the limit: a failed charge may have asked for several pages at once
_LIBVIRTS = re.compile(r"(qemu-[0-9]+-)(.+)\.libvirt-qemu", re.ASCII)
_ESCAPED = re.compile(r"\\([0-7]{3})", re.ASCII)


@dataclass(frozen=True)
class Hierarchy:
    """One mounted tree of groups. v2: `controllers` are those of its root's cgroup.controllers."""

    mount: str
    version: int
    controllers: frozenset[str]


@dataclass(frozen=True)
class Group:
    """A guest's group in one hierarchy. What stands between `root`, which is somebody else's or ours, and it is made
    with it and removed with it."""

    path: str
    root: str
    version: int
    controllers: frozenset[str]


@dataclass(frozen=True)
class Setting:
    """A text for a file of a group. `exact`: must be there and read back as at most this number, else not confined."""

    file: str
    text: str
    exact: bool = True


@dataclass(frozen=True)
class Usage:
    """What a guest and its hypervisor took, as far as the kernel counted it. v1 has no count of a limit's hits any more
    (Linux 6.18: memory.failcnt stays 0), so the peak says whether it was reached."""

    memory_peak_bytes: int | None = None
    memory_limit_bytes: int | None = None
    cpu_s: float | None = None
    oom_kills: int = 0  # how often the kernel killed for lack of memory in here

    @property
    def facts(self) -> dict[str, float | int]:
        """What the record and the log keep; what is not known is left out."""
        known: dict[str, float | int] = {}
        if self.memory_peak_bytes is not None:
            known["memory_peak_mib"] = -(-self.memory_peak_bytes >> 20)
        if self.memory_limit_bytes is not None:
            known["memory_limit_mib"] = self.memory_limit_bytes >> 20
        if self.cpu_s is not None:
            known["cpu_s"] = round(self.cpu_s, 1)
        if self.oom_kills:
            known["oom_kills"] = self.oom_kills
        return known


def parse_mounts(mountinfo: str) -> tuple[Hierarchy, ...]:
    """The hierarchies in /proc/self/mountinfo (proc_pid_mountinfo(5)) that are of use, each mount point once.

    v1 ones with a wanted controller; the v2 one with no controllers yet: its root's file says which.
    """
    found: dict[str, Hierarchy] = {}
    for mount, kind, options in _mounts(mountinfo):
        if kind == "cgroup2":
            found[mount] = Hierarchy(mount, 2, frozenset())
        elif controllers := WANTED & set(options.split(",")):
            found[mount] = Hierarchy(mount, 1, frozenset(controllers))
    return tuple({(one.version, one.controllers): one for one in reversed(found.values())}.values())[::-1]


def mount_points(mountinfo: str) -> tuple[str, ...]:
    """Of all hierarchies, also of those that count neither memory nor cpus."""
    return tuple(dict.fromkeys(mount for mount, _, _ in _mounts(mountinfo)))


def _mounts(mountinfo: str) -> Iterator[tuple[str, str, str]]:
    """(mount point, "cgroup" or "cgroup2", the file system's own options) of each line that is about one."""
    for line in mountinfo.splitlines():
        before, dash, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if dash and len(fields) >= 5 and len(kinds) >= 3 and kinds[0] in ("cgroup", "cgroup2"):
            yield _ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), fields[4]), kinds[0], kinds[2]


def is_libvirts(name: str, key: str) -> bool:
    """Whether libvirt, where there is no systemd, gave this name to its group of the guest's domain.

    It keeps letters, digits, single dots and dashes of the domain's own: virDomainDriverGenerateMachineName, 64 in all.

    >>> is_libvirts("qemu-12-lrmsvm-slurm-7.n1.libvirt-qemu", "slurm-7.n1")
    True
    >>> is_libvirts("qemu-12-lrmsvm-slurm-7.n11.libvirt-qemu", "slurm-7.n1")
    False
    """
    if (found := _LIBVIRTS.fullmatch(name)) is None:
        return False
    domain = re.sub(r"[^A-Za-z0-9.-]", "", group_name(key))
    domain = re.sub(r"([.-])[.-]+", r"\1", domain)
    return found[2] == domain[: 64 - len(found[1])]


def group_name(key: str) -> str:
    return NAME_PREFIX + key


def parents(hierarchy: Hierarchy, allocation: Allocation) -> Iterator[tuple[str, str]]:
    """Where the guest's group may go, best first: (a directory that must be there, what is made below it)."""
    mount = hierarchy.mount
    if allocation.lrms == "slurm" and hierarchy.version == 1:
        job = f"uid_{allocation.uid}/job_{allocation.job_id}"
        yield f"{mount}/slurm_{allocation.node}", job
        yield f"{mount}/slurm", job
    elif allocation.lrms == "slurm":
        job = f"job_{allocation.job_id}"
        yield f"{mount}/system.slice/{allocation.node}_slurmstepd.scope", job
        yield f"{mount}/system.slice/slurmstepd.scope", job
    yield mount, OWN_ROOT


def patterns(hierarchy: Hierarchy, key: str) -> tuple[tuple[str, str], ...]:
    """Where a guest's group may be, by its key alone: (glob of the root, glob of what is below). Names are escaped."""
    name = _literal(group_name(key))
    job_id = _literal(key.partition("-")[2].partition(".")[0])
    mount = _literal(hierarchy.mount)
    if hierarchy.version == 1:
        slurms = (f"{mount}/slurm*", f"uid_*/job_{job_id}/{name}")
    else:
        slurms = (f"{mount}/system.slice/*slurmstepd.scope", f"job_{job_id}/{name}")
    return slurms, (mount, f"{OWN_ROOT}/{name}")


def _literal(text: str) -> str:
    """glob.escape(), without glob."""
    return re.sub(r"([*?[])", r"[\1]", text)


def settings(group: Group, *, memory_mib: int, cpus: int) -> tuple[Setting, ...]:
    """The limits, in the order in which they must be written."""
    memory, quota = str(memory_mib << 20), cpus * PERIOD_US
    made: list[Setting] = []
    if group.version == 1:
        if "memory" in group.controllers:
            made += [
                Setting("memory.limit_in_bytes", memory),
                Setting("memory.memsw.limit_in_bytes", memory, exact=False),  # a guest that is swapped helps nobody
            ]
        if "cpu" in group.controllers:
            made += [
                Setting("cpu.cfs_period_us", str(PERIOD_US), exact=False),
                Setting("cpu.cfs_quota_us", str(quota)),
            ]
        return tuple(made)
    if "memory" in group.controllers:
        made += [
            Setting("memory.max", memory),
            Setting("memory.swap.max", "0", exact=False),
            Setting("memory.oom.group", "1", exact=False),
        ]
    if "cpu" in group.controllers:
        made.append(Setting("cpu.max", f"{quota} {PERIOD_US}"))
    return tuple(made)


def holds(setting: Setting, read_back: str) -> bool:
    """Whether the kernel took it. It rounds memory down to whole pages; "max" and -1 are no limit."""
    wanted, found = setting.text.split(), read_back.split()
    if len(found) != len(wanted) or not found[0].isdecimal():
        return False
    return 0 < int(found[0]) <= int(wanted[0]) and found[1:] == wanted[1:]


# What is read of a group in the end, by version.
USAGE_FILES = {
    1: (
        "memory.max_usage_in_bytes",
        "memory.limit_in_bytes",
        "memory.oom_control",
        "cpuacct.usage",
    ),
    2: ("memory.peak", "memory.max", "memory.events", "cpu.stat"),
}


def usage(texts: Mapping[str, str]) -> Usage:
    """From the files' texts of all of a guest's groups, by file name; what is absent or odd is not known."""
    events = {**_pairs(texts.get("memory.oom_control", "")), **_pairs(texts.get("memory.events", ""))}
    cpu_ns, cpu_us = _number(texts.get("cpuacct.usage")), _pairs(texts.get("cpu.stat", "")).get("usage_usec")
    cpu_s = cpu_ns / 1e9 if cpu_ns is not None else cpu_us / 1e6 if cpu_us is not None else None
    limit = _number(texts.get("memory.limit_in_bytes") or texts.get("memory.max"))
    return Usage(
        memory_peak_bytes=_number(texts.get("memory.max_usage_in_bytes") or texts.get("memory.peak")),
        memory_limit_bytes=limit if limit is not None and limit < 1 << 62 else None,
        cpu_s=cpu_s,
        oom_kills=events.get("oom_kill", 0),
    )


def lost_to_memory(used: Usage) -> str:
    """What the user is told of a guest that the kernel killed for its memory; "" where it did not."""
    if not used.oom_kills:
        return ""
    limit, peak = used.memory_limit_bytes, used.memory_peak_bytes
    if limit is None or (peak is not None and peak < limit * AT_LIMIT):
        return "the guest was killed for lack of memory: not at its own limit; the job or the whole node had no more"
    return (
        f"the guest was killed for lack of memory: it and its hypervisor came to their limit, {limit >> 20} MiB, "
        "which is the memory that the job has"
    )


def _pairs(text: str) -> dict[str, int]:
    """Lines of "name number"."""
    words = [line.split() for line in text.splitlines()]
    return {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdecimal()}


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdecimal() else None
