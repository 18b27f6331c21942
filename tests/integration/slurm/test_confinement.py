"""A guest has its job's memory and cpus and no more, dies alone when it wants more, and what it took is kept."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from demo import users
from demo.cluster import Cluster
from demo.jobs import JobInfo
from demo.layout import USER
from demo.programs import wait_until
from lrms_vm import cgroups
from lrms_vm.paths import Places
from tests.integration.slurm.conftest import Desk, make_desk

pytestmark = pytest.mark.guest

MEMORY_MIB = 700
HOLD = "echo up > up-$SLURM_JOB_ID\nwhile ! test -e go; do sleep 0.2; done\n"
# tail keeps a line without an end in memory
EAT = "head -c 600M /dev/zero | tail | wc -c\necho SURVIVED\n"


@dataclass(frozen=True)
class Guest:
    """A guest's process on this machine, as the kernel sees it."""

    pid: int

    @classmethod
    def of(cls, places: Places, key: str) -> Guest:
        return cls(int(Path(f"/run/libvirt/qemu/lrms_vm-{key}.pid").read_text()))

    def groups(self) -> dict[str, str]:
        """By controller: the path below its mount."""
        lines = Path(f"/proc/{self.pid}/cgroup").read_text().splitlines()
        return {name: path for line in lines for _, names, path in [line.split(":", 2)] for name in names.split(",")}


def require_cgroups() -> None:
    counted = {name for one in cgroups.hierarchies() for name in one.controllers}
    if not {"memory", "cpu"} <= counted:
        pytest.skip("no cgroup file system here counts memory and cpus")


@pytest.fixture(scope="module")
def desk(cluster: Cluster) -> Iterator[Desk]:
    """Two jobs at once: one that behaves on n2, and on n1, where nothing is kept back for the hypervisor, one that
    uses all the memory its guest has."""
    require_cgroups()
    made = make_desk(cluster, "confinement")
    yield made
    made.cancel_all()


@dataclass(frozen=True)
class Ended:
    job: JobInfo
    output: str
    used: dict[str, float]


@pytest.fixture(scope="module")
def hungry(desk: Desk) -> Iterator[int]:
    config = desk.layout.config("n1")
    before = config.read_text()
    config.write_text(
        before.replace('\n"confine"', "").replace("version = 1\n", "version = 1\nmemory_overhead_mib = 1\n")
    )
    try:
        yield desk.sbatch(f"--mem={MEMORY_MIB}", "--nodelist=n1", "--vm-image=minimal", script=EAT)
    finally:
        config.write_text(before)


def ended(desk: Desk, job_id: int, node: str) -> Ended:
    job = desk.end(job_id)
    (kept,) = desk.history(job_id)
    return Ended(job, desk.output(job), json.loads(kept.read_text())["used"])


def test_the_process_is_in_the_jobs_groups_with_the_jobs_limits(desk: Desk, hungry: int) -> None:
    """And what takes all that its guest has, which is less, is ended by the guest's own kernel, and the guest lives."""
    eat = """python3 -c 'x = [b"x" * (1 << 20) for _ in range(700)]'"""
    script = f"{HOLD}{eat}; code=$?; echo SURVIVED; exit $code\n"
    job_id = desk.sbatch(f"--mem={MEMORY_MIB}", "--nodelist=n2", "--vm-image=minimal", script=script)
    desk.written(f"up-{job_id}")
    key = f"slurm-{job_id}.n2"
    guest = Guest.of(desk.layout.places("n2"), key)
    inside = guest.groups()
    for controller in ("memory", "cpu"):
        assert inside[controller].endswith(f"/lrms_vm-{key}"), inside
    assert Path(f"/proc/{guest.pid}/oom_score_adj").read_text() == "0\n"
    used = cgroups.measure(key)
    assert used.memory_limit_bytes == MEMORY_MIB << 20
    assert used.memory_peak_bytes is not None and 100 << 20 < used.memory_peak_bytes <= MEMORY_MIB << 20
    (desk.directory / "go").touch()
    done = ended(desk, job_id, "n2")
    assert (done.job.state, done.job.exit_code) == ("FAILED", "137:0"), done.output
    assert "SURVIVED\n" in done.output
    assert re.search(
        "lrms-vm: killed; the guest's kernel had no memory left .*: .*Out of memory: Killed process [0-9]+ .python3.",
        done.output,
    ), done.output
    assert "oom_kills" not in done.used
    assert 100 < done.used["memory_peak_mib"] <= MEMORY_MIB == done.used["memory_limit_mib"]
    assert done.used["cpu_s"] > 1


def test_a_guest_that_wants_more_dies_alone_and_its_user_is_told(desk: Desk, hungry: int) -> None:
    done = ended(desk, hungry, "n1")
    assert (done.job.state, done.job.exit_code) == ("FAILED", "70:0"), done.output
    assert "SURVIVED" not in done.output
    assert f"lack of memory: it and its hypervisor came to their limit, {MEMORY_MIB} MiB" in done.output
    assert "--mem" in done.output
    assert done.used["oom_kills"] == 1
    assert desk.cluster.node_state("n1")[0] == "IDLE"


@contextmanager
def by_cgroups(cluster: Cluster) -> Iterator[Cluster]:
    """The same Slurm with proctrack/cgroup and task/cgroup."""
    other = replace(cluster, cgroups=True)
    assert cluster.stop() == []
    try:
        with other:
            yield other
    finally:
        for root in Path("/sys/fs/cgroup").glob("*/slurm_n[12]"):  # Slurm's daemons leave theirs
            for path, _, _ in os.walk(root, topdown=False):
                with suppress(OSError):
                    os.rmdir(path)
        cluster.start()


def test_where_slurm_has_cgroups_the_guests_is_in_the_jobs_own(cluster: Cluster, desk: Desk, hungry: int) -> None:
    desk.end(hungry)
    with by_cgroups(cluster) as other:
        mine = make_desk(other, "in-the-jobs-own")
        job_id = mine.sbatch(
            f"--mem={MEMORY_MIB}", "--nodelist=n1", "--vm-image=minimal", script="trap : USR1\n" + HOLD
        )
        mine.written(f"up-{job_id}")
        key = f"slurm-{job_id}.n1"
        uid = users.find(USER).uid
        inside = Guest.of(mine.layout.places("n1"), key).groups()["memory"]
        assert inside == f"/slurm_n1/uid_{uid}/job_{job_id}/lrms_vm-{key}"
        (group,) = [one.path for one in cgroups.find(key) if "memory" in one.controllers]
        above = Path(group).parent
        assert (above / "memory.limit_in_bytes").read_text() == f"{MEMORY_MIB << 20}\n"  # Slurm's own, of the whole job
        assert (above / "step_batch").is_dir()
        mine.user.cancel(job_id, "--full", "--signal=USR1")  # to every process of every step, and to no guest
        time.sleep(1)
        assert Guest.of(mine.layout.places("n1"), key).groups()["memory"] == inside
        (mine.directory / "go").touch()
        job = mine.end(job_id)
        assert job.state == "COMPLETED", mine.output(job)
        wait_until("the job's group is gone", lambda: not above.exists(), timeout_s=10)
