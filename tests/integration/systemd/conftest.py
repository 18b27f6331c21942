"""One node with systemd and cgroup v2 for the whole session, and what is asserted in the end: nothing is left in it."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from demo import systemd_leftovers, users
from demo.jobs import Client, JobInfo
from demo.layout import USER
from demo.machine import Machine, claim
from demo.programs import wait_until
from demo.systemd_cluster import SystemdCluster
from demo.systemd_node import NODE

BOOT_S = 300  # the longest a guest may take here: in an emulated machine with two processors
HERE = Path(__file__).parent
LRMS_VM = "/opt/lrms_vm/bin/lrms-vm"
MEMORY_MIB = 450
MINIMAL = (f"--mem={MEMORY_MIB}", "--time=30", "--vm-image=minimal")  # of sbatch
STOOD_STILL = os.EX_TEMPFAIL  # pytest's exit code then
SCOPE = f"/sys/fs/cgroup/system.slice/{NODE}_slurmstepd.scope"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.systemd)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Ends all where the machine does not answer any more: that is its emulator's fault (tests/machines.py)."""
    node = SystemdCluster.default().node
    if report.failed and HERE.name in report.nodeid and not node.answers():
        pytest.exit(f"{NODE} does not answer; the end of {node.layout.console}:\n{node.said()}", STOOD_STILL)


@pytest.fixture(scope="session")
def cluster() -> Iterator[SystemdCluster]:
    """A node that `make systemd-node` left running, and that is of this checkout, is used and left; else one of our own.

    LRMS_VM_SYSTEMD_AS_IS=1: the one that runs is used as it is, with whatever was copied into it by hand.
    """
    if os.geteuid() != 0:
        pytest.skip("the node with systemd needs root")
    cluster = SystemdCluster.default()
    cluster.layout.base.mkdir(mode=0o755, parents=True, exist_ok=True)
    with claim(cluster.layout.base / ".lock"):
        found = cluster.node.running
        if not (found and os.environ.get("LRMS_VM_SYSTEMD_AS_IS")):
            cluster.start()
        yield cluster
        if not found:
            answers = cluster.node.answers()
            left = cluster.stop()
            assert left == [] or not answers


@dataclass(frozen=True)
class Desk:
    """A test's own directory, the same in the node, and short words for what it does there."""

    cluster: SystemdCluster
    directory: Path  # the user's own
    submitted: list[int]
    before: frozenset[str]

    @property
    def node(self) -> Machine:
        return self.cluster.node

    @property
    def user(self) -> Client:
        return self.cluster.client()

    def sbatch(self, *arguments: str, script: str) -> int:
        """Submit a script from this directory; its output goes to `<job id>.out` there."""
        job_id = self.user.sbatch(
            f"--output={self.directory}/%j.out", *arguments, script="#!/bin/sh\n" + script, cwd=self.directory
        )
        self.submitted.append(job_id)
        return job_id

    def end(self, job_id: int, *, timeout_s: float = BOOT_S) -> JobInfo:
        """Wait for a job's end, its epilogue too."""
        return self.cluster.wait_job(job_id, timeout_s=timeout_s)

    def output(self, job: JobInfo) -> str:
        """What the payload wrote: without the lines that tell the user that a guest takes its time."""
        lines = job.output().splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("lrms-vm: waiting for the guest"))

    def up(self, job_id: int, *, restarts: int = 0) -> int:
        """Wait until the payload has written up-<job id>, having been requeued so often and no more; return the job."""
        path = self.directory / f"up-{job_id}"
        deadline = time.monotonic() + BOOT_S
        while not (path.exists() and path.stat().st_size > 0):
            job = self.cluster.job_info(job_id)
            assert not job.ended and job.restarts == restarts and time.monotonic() < deadline, (job, job.output())
            time.sleep(0.5)
        return job_id

    def guest(self, job_id: int, *, timeout_s: float = 120) -> int:
        """Wait until the prologue is done; return the pid of the guest's QEMU, in the node."""
        needle = f"cat /run/lrms_vm/jobs/slurm-{job_id}.{NODE}/record.jsonl"
        wait_until(
            f"job {job_id} has a guest",
            lambda: b'"done"' in self.node.call(needle).stdout,
            timeout_s=timeout_s,
            pause_s=0.5,
        )
        return int(self.node.run(f"cat /run/libvirt/qemu/{self.domain(job_id)}.pid"))

    def domain(self, job_id: int) -> str:
        """The guest's name."""
        return f"lrms_vm-slurm-{job_id}.{NODE}"

    def group(self, job_id: int) -> str:
        """Where Slurm's cgroup/v2 plugin has the job, and the guest's own below it."""
        return f"{SCOPE}/job_{job_id}/{self.domain(job_id)}"

    def history(self, job_id: int) -> dict[str, Any]:
        """What teardown kept of the job."""
        text = self.node.run(f"cat /var/lib/lrms_vm/history/slurm-{job_id}.{NODE}.json")
        found: dict[str, Any] = json.loads(text)
        return found

    def cancel_all(self) -> None:
        """What a failed test left running would fail the next ones too."""
        for job_id in self.submitted:
            if not self.cluster.job_info(job_id).ended:
                self.cluster.client("root").cancel(job_id)
                self.cluster.wait_job(job_id, timeout_s=120)

    def nothing_left(self) -> None:
        """No domain, machine, scope, failed unit, group, process, mount, disk, record, verdict, lease."""
        assert systemd_leftovers.search(self.node, self.before) == []

    def in_service(self, *, timeout_s: float = 60) -> None:
        """Slurm's node takes jobs."""
        deadline = time.monotonic() + timeout_s
        while (state := self.cluster.node_state())[0] not in ("IDLE", "MIXED", "ALLOCATED"):
            assert time.monotonic() < deadline, state
            time.sleep(0.5)


@pytest.fixture(scope="session")
def before(cluster: SystemdCluster) -> frozenset[str]:
    """What the node has without any guest. The cache's directories are made by a first look at it."""
    cluster.node.run(f"{LRMS_VM} reap --lrms slurm --node {NODE}", timeout_s=180)
    return systemd_leftovers.look(cluster.node)


@pytest.fixture
def desk(cluster: SystemdCluster, before: frozenset[str], request: pytest.FixtureRequest) -> Iterator[Desk]:
    """See `Desk`. The node is in service before each test; after it nothing may be left."""
    made = make_desk(cluster, before, request.node.name)
    yield made
    made.cancel_all()
    made.nothing_left()


def make_desk(cluster: SystemdCluster, before: frozenset[str], name: str) -> Desk:
    state, _ = cluster.node_state()
    if "DRAIN" in state or "DOWN" in state:
        cluster.resume()
    user = users.find(USER)
    clean = "".join(letter if letter.isalnum() else "-" for letter in name)[:40]
    directory = cluster.layout.home(USER) / "tests" / f"{clean}-{uuid.uuid4().hex[:6]}"
    directory.mkdir(mode=0o755, parents=True)
    os.chown(directory, user.uid, user.gid)
    return Desk(cluster, directory, [], before)
