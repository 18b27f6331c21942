"""Where a guest's groups are, what is written there, and what is read back; for both versions, from texts alone."""

from __future__ import annotations

import fnmatch
from dataclasses import replace

import pytest

from lrms_vm import cgroup_paths, provenance
from lrms_vm.cgroup_paths import Group, Hierarchy, Setting, Usage
from lrms_vm.request import Allocation

ALLOCATION = Allocation("slurm", "7", "n1", 1001, 1001, "alice", "/work", cpus=2, memory_mib=700)
ALL = frozenset(("memory", "cpu", "cpuacct"))

V1 = """\
25 30 0:23 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
26 25 0:24 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw
27 25 0:25 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
28 25 0:26 / /sys/fs/cgroup/me\\040mory rw - cgroup cgroup rw,memory
29 25 0:27 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
31 25 0:26 / /mnt/again rw - cgroup cgroup rw,memory
"""
V2 = "26 25 0:24 / /sys/fs/cgroup rw,nosuid,nodev shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def test_mounts_are_read_each_hierarchy_once() -> None:
    found = {one.mount: (one.version, set(one.controllers)) for one in cgroup_paths.parse_mounts(V1)}
    assert found == {
        "/sys/fs/cgroup/unified": (2, set()),
        "/sys/fs/cgroup/cpu,cpuacct": (1, {"cpu", "cpuacct"}),
        "/sys/fs/cgroup/me mory": (1, {"memory"}),
    }
    assert [one.mount for one in cgroup_paths.parse_mounts(V2)] == ["/sys/fs/cgroup"]


@pytest.mark.parametrize("text", ["", "\n", "- cgroup", "1 2 3 4 - cgroup2 x y", "1 2 3 / /x - cgroup", "\0" * 9])
def test_what_is_no_mount_is_passed_over(text: str) -> None:
    assert cgroup_paths.parse_mounts(text) == ()


def test_every_mount_point_is_named_once_whatever_it_counts() -> None:
    assert cgroup_paths.mount_points(V1 + V2 + V2 + "1 2 - cgroup x\n\0\n") == (
        "/sys/fs/cgroup/unified",
        "/sys/fs/cgroup/cpu,cpuacct",
        "/sys/fs/cgroup/me mory",
        "/sys/fs/cgroup/freezer",
        "/mnt/again",
        "/sys/fs/cgroup",
    )


@pytest.mark.parametrize(
    ("name", "key", "is_its"),
    [
        ("qemu-1-lrmsvm-slurm-941.n1.libvirt-qemu", "slurm-941.n1", True),
        ("qemu-1-lrmsvm-slurm-41.n1.libvirt-qemu", "slurm-941.n1", False),
        ("qemu-1-lrmsvm-slurm-9.n1.libvirt-qemu", "slurm-9.n_1", True),
        ("qemu-1-slurm-941.n1.libvirt-qemu", "slurm-941.n1", False),
        ("qemu-1-lrmsvm-slurm-941.n1", "slurm-941.n1", False),
        ("qemu-123-" + ("lrmsvm-slurm-941." + "n" * 99)[:55] + ".libvirt-qemu", "slurm-941." + "n" * 99, True),
        ("qemu-123-" + ("lrmsvm-slurm-941." + "n" * 99)[:54] + ".libvirt-qemu", "slurm-941." + "n" * 99, False),
    ],
)
def test_libvirts_own_group_is_known_by_its_name(name: str, key: str, is_its: bool) -> None:
    assert cgroup_paths.is_libvirts(name, key) is is_its


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("lrms", ["slurm", "torque"])
def test_whatever_is_made_is_found_again_by_its_key(version: int, lrms: str) -> None:
    """Teardown has the key only, so every place that `parents` may choose must be in `patterns`."""
    hierarchy = Hierarchy("/sys/fs/[cg]", version, ALL)
    allocation = replace(ALLOCATION, lrms=lrms, node="n1.example.org")
    chosen = list(cgroup_paths.parents(hierarchy, allocation))
    assert chosen[-1] == ("/sys/fs/[cg]", "lrms_vm")
    assert len(chosen) == (3 if lrms == "slurm" else 1)
    for root, below in chosen:
        path = f"{below}/{cgroup_paths.group_name(allocation.key)}"
        assert any(
            fnmatch.fnmatchcase(root, roots) and fnmatch.fnmatchcase(path, pattern)
            for roots, pattern in cgroup_paths.patterns(hierarchy, allocation.key)
        )


def test_another_jobs_group_is_not_found() -> None:
    hierarchy = Hierarchy("/c", 1, ALL)
    for key in ("slurm-77.n1", "slurm-7.n11", "slurm-7.n1x", "torque-7.n1"):
        path = f"uid_1/job_7/{cgroup_paths.group_name(key)}"
        assert not any(fnmatch.fnmatchcase(path, found) for _, found in cgroup_paths.patterns(hierarchy, "slurm-7.n1"))


def test_slurms_group_is_the_jobs_never_a_steps() -> None:
    (first, below), *_ = cgroup_paths.parents(Hierarchy("/c", 1, ALL), ALLOCATION)
    assert (first, below) == ("/c/slurm_n1", "uid_1001/job_7")
    (first, below), (second, _), _ = cgroup_paths.parents(Hierarchy("/c", 2, ALL), ALLOCATION)
    assert (first, below) == ("/c/system.slice/n1_slurmstepd.scope", "job_7")
    assert second == "/c/system.slice/slurmstepd.scope"


def settings(version: int, controllers: frozenset[str] = ALL) -> dict[str, str]:
    made = cgroup_paths.settings(Group("/c/g", "/c", version, controllers), memory_mib=700, cpus=2)
    return {one.file: one.text for one in made}


def test_the_limits_are_the_jobs() -> None:
    assert settings(1) == {
        "memory.limit_in_bytes": "734003200",
        "memory.memsw.limit_in_bytes": "734003200",
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "200000",
    }
    assert settings(2) == {
        "memory.max": "734003200",
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "cpu.max": "200000 100000",
    }
    assert settings(1, frozenset(["cpuacct"])) == {} == settings(2, frozenset())


@pytest.mark.parametrize(
    ("wanted", "found", "holds"),
    [
        ("734003200", "734003200\n", True),
        ("734003201", "734003200\n", True),  # whole pages
        ("734003200", "734007296\n", False),
        ("734003200", "9223372036854771712\n", False),
        ("734003200", "max\n", False),
        ("734003200", "-1\n", False),
        ("734003200", "0\n", False),
        ("734003200", "", False),
        ("200000 100000", "200000 100000\n", True),
        ("200000 100000", "200000 50000\n", False),
        ("200000 100000", "max 100000\n", False),
        ("200000 100000", "200000\n", False),
    ],
)
def test_a_limit_holds_only_if_it_reads_back(wanted: str, found: str, holds: bool) -> None:
    assert cgroup_paths.holds(Setting("f", wanted), found) is holds


def test_usage_is_read_from_both_versions() -> None:
    one = cgroup_paths.usage(
        {
            "memory.max_usage_in_bytes": "734003200\n",
            "memory.limit_in_bytes": "734003200\n",
            "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
            "cpuacct.usage": "8000000000\n",
        }
    )
    two = cgroup_paths.usage(
        {
            "memory.peak": "734003200\n",
            "memory.max": "734003200\n",
            "memory.events": "low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\noom_group_kill 0\n",
            "cpu.stat": "usage_usec 8000000\nuser_usec 1\nsystem_usec 1\n",
        }
    )
    assert one == two == Usage(734003200, 734003200, 8.0, 1)
    assert one.facts == {"memory_peak_mib": 700, "memory_limit_mib": 700, "cpu_s": 8.0, "oom_kills": 1}


@pytest.mark.parametrize("text", ["", "max", "-1", "x y z", "oom_kill x", "9" * 30, "\ud800"])
def test_what_cannot_be_read_is_not_known(text: str) -> None:
    files = [name for names in cgroup_paths.USAGE_FILES.values() for name in names]
    used = cgroup_paths.usage(dict.fromkeys(files, text))
    assert used.oom_kills == 0 and used.memory_limit_bytes is None


def test_the_user_is_told_of_memory_only_where_the_kernel_killed_for_it() -> None:
    limit = 700 << 20
    assert cgroup_paths.lost_to_memory(Usage(limit, limit, 1.0, 0)) == ""
    own = cgroup_paths.lost_to_memory(Usage(limit - (4 << 20), limit, 1.0, 1))
    assert "lack of memory" in own and "700 MiB" in own and "the job has" in own
    other = cgroup_paths.lost_to_memory(Usage(limit // 2, limit, 1.0, 1))
    assert "lack of memory" in other and "not at its own limit" in other


def test_what_a_guest_took_ends_its_provenance_line() -> None:
    used = Usage(231 << 20, 700 << 20, 8.04, 1).facts
    said = provenance.line("slurm-7.n1", "alice", {"name": "a"}, used=used)
    assert said.endswith(" code=accepted memory_peak_mib=231 memory_limit_mib=700 cpu_s=8.0 oom_kills=1")
