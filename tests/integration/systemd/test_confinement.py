"""A guest in the job's own control group of Slurm's cgroup/v2 plugin, where systemd owns the tree and libvirt asks it.

Two guests at once, then one more on the place of the first that ended.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from demo.programs import wait_until
from demo.systemd_cluster import SystemdCluster
from demo.systemd_node import NODE
from tests.integration.systemd.conftest import MEMORY_MIB, MINIMAL, Desk, make_desk

pytestmark = pytest.mark.guest

SMALL_MIB = 150  # less than a guest of MEMORY_MIB uses when it is asked to
HOLD = "echo up > up-$SLURM_JOB_ID; while ! test -e go-$SLURM_JOB_ID; do sleep 0.5; done\n"
# tail keeps a line without an end in memory
EAT = "head -c 250M /dev/zero | tail | wc -c\necho SURVIVED\n"
GUEST_LOST = "70:0"


@dataclass(frozen=True)
class Pair:
    """A job that behaves, and one that wants more than it may have."""

    desk: Desk
    good: int
    hungry: int


@pytest.fixture(scope="module")
def pair(cluster: SystemdCluster, before: frozenset[str]) -> Iterator[Pair]:
    desk = make_desk(cluster, before, "pair")
    good = desk.sbatch(*MINIMAL, script=HOLD + "exit 3\n")
    hungry = desk.sbatch(*MINIMAL, script=HOLD + EAT)
    yield Pair(desk, desk.up(good), desk.up(hungry))  # Slurm's first step is there, with which it sets its own limits
    desk.cancel_all()


def held(desk: Desk, job_id: int, pid: int) -> None:
    """The guest's process is in the job's group with the job's limits, and nowhere else."""
    group = desk.group(job_id)
    job = group.rpartition("/")[0]
    files = (
        *("memory.max", "memory.swap.max", "memory.oom.group", "cpu.max", "cpuset.cpus.effective", "cgroup.procs"),
        *("../cpuset.cpus", "../memory.max", "../cgroup.procs"),
    )
    texts = desk.node.run(" && ".join(f"echo $(cat {group}/{name})" for name in files)).splitlines()
    found = dict(zip(files, texts, strict=True))
    assert found == {
        "memory.max": str(MEMORY_MIB << 20),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "cpu.max": "100000 100000",
        "cpuset.cpus.effective": found["../cpuset.cpus"],  # the very cpus that Slurm gave
        "cgroup.procs": str(pid),
        "../cpuset.cpus": found["../cpuset.cpus"],
        "../memory.max": str(MEMORY_MIB << 20),  # Slurm's own, of the whole job
        "../cgroup.procs": "",  # no internal processes
    }
    assert found["../cpuset.cpus"].isdecimal()
    where = desk.node.run(f"cat /proc/{pid}/oom_score_adj; cat /proc/{pid}/task/*/cgroup | sort -u")
    assert where == f"0\n0::{group.removeprefix('/sys/fs/cgroup')}\n"
    assert desk.node.run(f"ls -d {job}/*/").split() == [f"{group}/", f"{job}/step_batch/"]


def test_a_guest_is_held_where_slurm_has_its_job(pair: Pair) -> None:
    desk = pair.desk
    # KVM without the emulator's nested paging: docs/confinement.md
    assert "<domain type='kvm'" in desk.node.run(f"virsh dumpxml {desk.domain(pair.good)}")
    assert desk.node.run("cat /sys/module/kvm_amd/parameters/npt") == "N\n"
    held(desk, pair.good, desk.guest(pair.good))
    profile = desk.node.run(f"cat /proc/{desk.guest(pair.good)}/attr/current")
    assert re.fullmatch(r"libvirt-[0-9a-f-]{36} \(enforce\)", profile.strip("\0\n")), profile
    assert 'apparmor="DENIED"' not in desk.node.run("dmesg")
    # libvirt's scope for the machine stays: KVM's own worker is in it, a thread of the kernel's, and no program
    inside = "cat $(find /sys/fs/cgroup/machine.slice -name cgroup.procs)"
    found = desk.node.run(f"for pid in $({inside}); do echo $(cat /proc/$pid/comm) $(readlink /proc/$pid/exe); done")
    assert found and all(re.fullmatch("kvm-nx-lpage-re.*", line) for line in found.splitlines()), found


def test_one_that_wants_more_dies_alone_and_its_user_is_told(pair: Pair) -> None:
    """Its limit is lowered under it: emulated or not, a guest alone does not come to its job's."""
    desk, job_id = pair.desk, pair.hungry
    pid = desk.guest(job_id)
    desk.node.run(f"echo {SMALL_MIB}M > {desk.group(job_id)}/memory.max")
    slurmd = desk.node.run("systemctl show --property=MainPID slurmd libvirtd")
    (desk.directory / f"go-{job_id}").touch()
    job = desk.end(job_id)
    assert (job.state, job.exit_code) == ("FAILED", GUEST_LOST), job.output()
    assert "SURVIVED" not in job.output()
    assert f"lack of memory: it and its hypervisor came to their limit, {SMALL_MIB} MiB" in job.output()
    used = desk.history(job_id)["used"]
    assert used["oom_kills"] >= 1 and used["memory_limit_mib"] == SMALL_MIB, used
    assert f"Memory cgroup out of memory: Killed process {pid} (qemu-system-x86)" in desk.node.run("dmesg")
    assert desk.node.run("systemctl show --property=MainPID slurmd libvirtd") == slurmd
    assert desk.node.run("systemctl is-system-running") == "running\n"
    held(desk, pair.good, desk.guest(pair.good))


def test_systemd_slurmd_and_libvirtd_begin_anew_under_a_job_and_it_does_not_notice(pair: Pair) -> None:
    desk, job_id = pair.desk, pair.good
    pid = desk.guest(job_id)
    for command in ("systemctl daemon-reload", "systemctl restart slurmd", "systemctl restart libvirtd"):
        desk.node.run(command, timeout_s=120)
        held(desk, job_id, pid)
    assert desk.domain(job_id) in desk.node.run("virsh -q list --name")
    desk.in_service()
    (desk.directory / f"go-{job_id}").touch()
    job = desk.end(job_id)
    assert (job.state, job.exit_code, desk.output(job)) == ("FAILED", "3:0", "")
    used = desk.history(job_id)["used"]
    assert 30 < used["memory_peak_mib"] <= MEMORY_MIB == used["memory_limit_mib"], used
    assert used["cpu_s"] > 1 and "oom_kills" not in used, used
    line = desk.node.run(
        f"journalctl --no-pager --output=cat -t lrms_vm | grep 'event=ended job=slurm-{job_id}.{NODE} '"
    )
    assert f"memory_peak_mib={used['memory_peak_mib']} memory_limit_mib={MEMORY_MIB} cpu_s={used['cpu_s']}" in line
    assert desk.node.run("journalctl --no-pager --output=cat -t lrms_vm -g 'NOT confined' | wc -l") == "0\n"
    desk.nothing_left()


def test_of_a_killed_guest_nothing_is_left(desk: Desk) -> None:
    job_id = desk.sbatch(*MINIMAL, script="echo RAN\n")
    pid = desk.guest(job_id)
    desk.node.run(f"kill -KILL {pid}")
    job = desk.end(job_id)
    assert (job.state, job.exit_code) == ("FAILED", GUEST_LOST), job.output()
    assert "RAN" not in job.output()
    wait_until(
        "no domain", lambda: desk.domain(job_id) not in desk.node.run("virsh -q list --all --name"), timeout_s=20
    )
    desk.nothing_left()
    desk.in_service()


HOLD_AT_THE_ROOT = """
import subprocess
from lrms_vm import cgroup_paths, cgroups
from lrms_vm.request import Allocation

job = Allocation("gridengine", "7", "node", 1, 1, "user", "/", cpus=1, memory_mib=64)
held = cgroups.Confinement().hold(job, memory_mib=64, cpus=1, note=lambda paths, why: print(*paths))
process = subprocess.Popen(["sleep", "100"])
held.enter(process.pid)
for verb in ("daemon-reload", "daemon-reexec"):
    subprocess.run(["systemctl", verb], check=True)
    cgroups.check(held.groups[0], cgroup_paths.settings(held.groups[0], memory_mib=64, cpus=1))
    print(open(f"/proc/{process.pid}/cgroup").read().strip())
process.kill()
process.wait()
cgroups.remove(job.key)
"""


def test_systemd_leaves_a_group_of_ours_at_the_root_alone(desk: Desk) -> None:
    """Where guests of other batch systems are."""
    said = desk.node.run("/opt/lrms_vm/bin/python3 -I -", stdin=HOLD_AT_THE_ROOT.encode())
    group = "/lrms_vm/lrms_vm-gridengine-7.node"
    assert said.splitlines() == [f"/sys/fs/cgroup{group}", *[f"0::{group}"] * 2]
