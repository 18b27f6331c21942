"""A guest's groups in the kernel of this machine, and version 2's in a directory tree where this kernel has none."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lrms_vm import cgroup_paths, cgroups
from lrms_vm.cgroup_paths import Group
from lrms_vm.cgroups import Confinement, Held
from lrms_vm.cli import exec as exec_
from lrms_vm.errors import NodeError
from lrms_vm.request import Allocation

JOB = str(4_000_000_000 + os.getpid())  # no real job's
ALLOCATION = Allocation("slurm", JOB, "n1", 1001, 1001, "alice", "/work", cpus=1, memory_mib=64)
KEY = ALLOCATION.key
EATER = "import time; time.sleep(0.3); x = []\nwhile True: x.append(bytearray(1 << 20)); time.sleep(0.002)"
SPINNER = "while True: pass"


def has_version_1() -> bool:
    return {"memory", "cpu"} <= {name for one in cgroups.hierarchies() for name in one.controllers if one.version == 1}


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    made: list[subprocess.Popen[bytes]] = []
    yield made
    for one in made:
        one.kill()
        one.wait()
    cgroups.remove(KEY)


def python(made: list[subprocess.Popen[bytes]], text: str) -> subprocess.Popen[bytes]:
    made.append(subprocess.Popen([sys.executable, "-c", text]))
    return made[-1]


def told(path: str) -> str:
    """What the job's user is told of a guest that was lost."""
    return cgroup_paths.lost_to_memory(cgroup_paths.usage(exec_.memory_texts(path)))


def hold(allocation: Allocation = ALLOCATION, **arguments: object) -> Held:
    noted: list[str] = []
    held = Confinement(**arguments).hold(  # type: ignore[arg-type]
        allocation, memory_mib=64, cpus=1, note=lambda paths, why: noted.extend(paths)
    )
    assert held is not None and noted == [group.path for group in held.groups]
    return held


@pytest.mark.skipif(not has_version_1(), reason="this machine's cgroups are not version 1")
class TestThisKernel:
    def test_what_takes_more_than_its_job_has_dies_alone(self, processes: list[subprocess.Popen[bytes]]) -> None:
        held = hold()
        eater, other = python(processes, EATER), python(processes, "import time; time.sleep(60)")
        Path(f"/proc/{eater.pid}/oom_score_adj").write_text("500")  # whatever it inherited
        held.enter(eater.pid)
        assert Path(f"/proc/{eater.pid}/oom_score_adj").read_text() == "0\n"
        assert eater.wait(timeout=30) == -9
        assert other.poll() is None
        used = cgroups.measure(KEY)
        assert (used.oom_kills, used.memory_limit_bytes) == (1, 64 << 20)
        assert used.cpu_s is not None and 0 < used.cpu_s < 5
        assert "came to their limit, 64 MiB" in told(held.memory_path)
        cgroups.remove(KEY)
        assert told(held.memory_path) == ""

    def test_it_gets_the_jobs_share_of_the_cpus(self, processes: list[subprocess.Popen[bytes]]) -> None:
        """Two that would take two cpus are given one."""
        held = hold()
        for _ in range(2):
            held.enter(python(processes, SPINNER).pid)
        before, start = cgroups.measure(KEY).cpu_s, time.monotonic()
        time.sleep(1.5)
        after = cgroups.measure(KEY).cpu_s
        assert before is not None and after is not None
        assert after - before < 1.2 * (time.monotonic() - start)

    def test_removing_leaves_nothing_and_may_be_repeated(self, processes: list[subprocess.Popen[bytes]]) -> None:
        held = hold()
        assert {group.path for group in cgroups.find(KEY)} == {group.path for group in held.groups}
        for _ in range(2):
            cgroups.remove(KEY)
            assert cgroups.find(KEY) == []
        assert not any(os.path.exists(group.path) for group in held.groups)

    def test_making_it_again_after_a_crash_is_fine(self, processes: list[subprocess.Popen[bytes]]) -> None:
        assert hold() == hold()

    def test_what_a_libvirtd_forgot_is_removed_and_nobody_elses(self, processes: list[subprocess.Popen[bytes]]) -> None:
        mounts = cgroup_paths.mount_points(cgroups.MOUNTINFO.read_text())
        ours = [f"{mount}/machine/qemu-9-lrmsvm-{KEY}.libvirt-qemu" for mount in mounts]
        other = f"{mounts[0]}/machine/qemu-9-lrmsvm-{KEY}1.libvirt-qemu"
        had = {mount: os.path.isdir(f"{mount}/machine") for mount in mounts}
        try:
            for path in (*ours, other):
                os.makedirs(f"{path}/emulator")
            cgroups.remove_libvirts(KEY)
            assert [path for path in ours if os.path.exists(path)] == []
            assert os.path.isdir(f"{other}/emulator")
        finally:
            cgroups.remove_libvirts(KEY + "1")
            for mount in mounts:
                if not had[mount]:
                    os.rmdir(f"{mount}/machine")

    def test_a_group_that_is_still_used_is_said_to_be(
        self, processes: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cgroups, "REMOVE_TIMEOUT_S", 0.1)
        held = hold()
        inside = python(processes, "import time; time.sleep(60)")
        held.enter(inside.pid)
        with pytest.raises(NodeError, match=str(inside.pid)) as caught:
            cgroups.remove(KEY)
        assert caught.value.code == "cgroup-stuck"

    def test_in_slurms_groups_the_jobs_is_made_and_removed_and_nobody_elses(
        self, processes: list[subprocess.Popen[bytes]]
    ) -> None:
        mounts = [one.mount for one in cgroups.hierarchies()]
        node = f"test{os.getpid()}"
        allocation = replace(ALLOCATION, node=node)
        roots = [f"{mount}/slurm_{node}" for mount in mounts]
        other = f"{roots[0]}/uid_1001/job_1"
        try:
            for root in roots:
                os.mkdir(root)
            os.makedirs(other)
            held = hold(allocation)
            assert [group.path for group in held.groups] == [
                f"{root}/uid_1001/job_{JOB}/lrms_vm-{allocation.key}" for root in roots
            ]
            held.enter(python(processes, "import time; time.sleep(60)").pid)
            processes[-1].kill()
            processes[-1].wait()
            cgroups.remove(allocation.key)
            assert os.listdir(f"{roots[0]}/uid_1001").count(f"job_{JOB}") == 0
            assert os.path.isdir(other)
            assert not os.path.exists(f"{roots[1]}/uid_1001")
        finally:
            for path in (other, f"{roots[0]}/uid_1001", *roots):
                if os.path.isdir(path):
                    os.rmdir(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Version 2 as files: the kernel would make them with each directory."""
    scope = tmp_path / "cg/system.slice/n1_slurmstepd.scope"
    group = scope / f"job_{JOB}" / f"lrms_vm-{KEY}"
    group.mkdir(parents=True)
    for directory in (tmp_path / "cg", scope, scope / f"job_{JOB}"):
        (directory / "cgroup.subtree_control").write_text("")
    (tmp_path / "cg/cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    for name in ("memory.max", "memory.swap.max", "memory.oom.group", "cpu.max", "cgroup.procs"):
        (group / name).write_text("")
    (tmp_path / "mountinfo").write_text(f"26 25 0:24 / {tmp_path}/cg rw - cgroup2 cgroup2 rw\n")
    return tmp_path


class TestVersion2:
    def test_the_jobs_group_hands_its_controllers_down_and_ours_has_the_limits(self, tree: Path) -> None:
        held = hold(mountinfo=tree / "mountinfo")
        (group,) = held.groups
        assert group.path == f"{tree}/cg/system.slice/n1_slurmstepd.scope/job_{JOB}/lrms_vm-{KEY}"
        for above in (Path(group.path).parent, Path(group.path).parent.parent):
            assert (above / "cgroup.subtree_control").read_text() == "+cpu +memory"
        assert (tree / "cg/cgroup.subtree_control").read_text() == ""  # systemd's, not ours to change
        assert Path(group.path, "memory.max").read_text() == str(64 << 20)
        assert Path(group.path, "cpu.max").read_text() == "100000 100000"
        held.enter(os.getpid())
        assert Path(group.path, "cgroup.procs").read_text() == str(os.getpid())
        assert [found.path for found in cgroups.find(KEY, tree / "mountinfo")] == [group.path]

    def test_a_limit_that_does_not_read_back_is_no_limit(self, tree: Path) -> None:
        held = hold(mountinfo=tree / "mountinfo")
        Path(held.groups[0].path, "memory.max").write_text("max")
        with pytest.raises(NodeError, match=r"memory\.max: reads 'max'") as caught:
            held.enter(os.getpid())
        assert caught.value.code == "cgroup-failed"
        replace(held, required=False).enter(os.getpid())  # then it is only said

    def test_this_kernels_version_2_takes_a_process_with_all_its_threads(self) -> None:
        mount = next(
            (one.mount for one in cgroup_paths.parse_mounts(cgroups.MOUNTINFO.read_text()) if one.version == 2), None
        )
        if mount is None:
            pytest.skip("no version 2 is mounted here")
        group = Group(f"{mount}/lrms_vm/lrms_vm-{KEY}", mount, 2, frozenset())
        cgroups.make(group, ())
        threads = "import threading, time\nfor _ in range(3): threading.Thread(target=time.sleep, args=(60,)).start()"
        process = subprocess.Popen([sys.executable, "-c", threads])
        try:
            time.sleep(0.5)
            Held(KEY, (group,), 64, 1, True).enter(process.pid)
            assert len(Path(group.path, "cgroup.threads").read_text().split()) == 4
        finally:
            process.kill()
            process.wait()
            while not cgroups._rmdir(group.path):
                time.sleep(0.01)
            os.rmdir(f"{mount}/lrms_vm")


@pytest.mark.parametrize("text", ["", "26 25 0:24 / /nonexistent rw - cgroup cgroup rw,memory,cpu\n"])
def test_without_cgroups_the_site_decides_and_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "mountinfo").write_text(text)
    noted: list[tuple[list[str], str]] = []
    confinement = Confinement(required=True, mountinfo=tmp_path / "mountinfo")
    with pytest.raises(NodeError) as caught:
        confinement.hold(ALLOCATION, memory_mib=64, cpus=1, note=lambda *what: noted.append(what))
    assert caught.value.code == "cgroup-missing"
    assert "confine" in caught.value.hint
    lenient = replace(confinement, required=False)
    assert lenient.hold(ALLOCATION, memory_mib=64, cpus=1, note=lambda *what: noted.append(what)) is None
    assert [paths for paths, _ in noted] == [[], []]
    assert all("bounds memory and cpu" in why for _, why in noted)


def test_exec_reads_what_the_kernel_says_of_the_guests_memory(tmp_path: Path) -> None:
    texts = {"memory.limit_in_bytes": "734003200", "memory.max_usage_in_bytes": "734003200"}
    texts["memory.oom_control"] = "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    assert exec_.memory_texts(str(tmp_path)) == texts
    assert "came to their limit, 700 MiB" in told(str(tmp_path))
    assert told(str(tmp_path / "gone")) == told("") == ""
