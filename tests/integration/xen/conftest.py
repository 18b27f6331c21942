"""One Xen node for the whole session, and what every test here asserts in the end: nothing is left in dom0."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo import users, xen_leftovers
from demo.jobs import Client, JobInfo, wait
from demo.layout import USER
from demo.machine import claim
from demo.programs import wait_until
from demo.xen_cluster import XenCluster
from demo.xen_layout import NODE
from demo.xen_node import Node

BOOT_S = 300  # the longest a guest may take here: a guest in an emulated machine with two processors
HERE = Path(__file__).parent
CONF = "/etc/lrms_vm/lrms_vm.toml"
LRMS_VM = "/opt/lrms_vm/bin/lrms-vm"
GRUB = "/usr/lib/grub-xen/grub-x86_64-xen.bin"
REAP = f"{LRMS_VM} reap --lrms slurm --node {NODE}"
MINIMAL = ("--mem=400", "--time=20", "--vm-image=minimal")  # of sbatch: the least that boots


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.xen)


@pytest.fixture(scope="session")
def cluster() -> Iterator[XenCluster]:
    """A node that `make xen-node` left running, and that is of this checkout, is used and left; else one of our own.

    LRMS_VM_XEN_AS_IS=1: the one that runs is used as it is, with whatever was copied into it by hand.
    """
    if os.geteuid() != 0:
        pytest.skip("the Xen node needs root")
    cluster = XenCluster.default()
    cluster.layout.base.mkdir(mode=0o755, parents=True, exist_ok=True)
    with claim(cluster.layout.base / ".lock"):
        found = cluster.node.daemon.pid
        if not (found and os.environ.get("LRMS_VM_XEN_AS_IS")):
            cluster.start()
        yield cluster
        if cluster.node.daemon.pid != found:
            left = cluster.stop()
            assert left == []


@pytest.fixture(scope="session")
def before(cluster: XenCluster) -> frozenset[str]:
    """What dom0 has without any guest. The cache's directories are made by a first look at it."""
    cluster.node.run(REAP, timeout_s=180)
    return xen_leftovers.look(cluster.node)


@dataclass(frozen=True)
class Desk:
    """A test's own directory, the same in dom0, and short words for what it does there."""

    cluster: XenCluster
    directory: Path  # the user's own
    submitted: list[int]
    before: frozenset[str]

    @property
    def node(self) -> Node:
        return self.cluster.node

    @property
    def user(self) -> Client:
        return self.cluster.client()

    def sbatch(self, *arguments: str, script: str) -> int:
        """Submit a script from this directory; its output goes to `<job id>.out` there unless said otherwise."""
        output = [] if any(word.startswith("--output") for word in arguments) else [f"--output={self.directory}/%j.out"]
        job_id = self.user.sbatch(*output, *arguments, script="#!/bin/sh\n" + script, cwd=self.directory)
        self.submitted.append(job_id)
        return job_id

    def end(self, job_id: int, *, timeout_s: float = BOOT_S + 120) -> JobInfo:
        """Wait for a job's end, its epilogue too."""
        return self.cluster.wait_job(job_id, timeout_s=timeout_s)

    def output(self, job: JobInfo) -> str:
        """What the payload wrote: without the lines that tell the user that a guest takes its time."""
        lines = job.output().splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("lrms-vm: waiting for the guest"))

    def written(self, name: str, *, timeout_s: float = BOOT_S) -> str:
        """Wait for a file that a payload writes to this directory; return its text."""
        path = self.directory / name
        wait_until(
            f"{name} written by the payload", lambda: path.exists() and path.stat().st_size > 0, timeout_s=timeout_s
        )
        return path.read_text()

    def domain(self, job_id: int) -> str:
        """The guest's name."""
        return f"lrms_vm-slurm-{job_id}.{NODE}"

    def record(self, job_id: int) -> str:
        """The prologue's record of the job, empty when there is none."""
        return self.node.call(f"cat /run/lrms_vm/jobs/slurm-{job_id}.{NODE}/record*").stdout.decode()

    def noted(self, job_id: int, step: str, *, timeout_s: float = BOOT_S) -> None:
        """Wait until the prologue is about to take a step. Raises `DemoError`."""
        needle = f'"step": "{step}"'
        wait_until(f"step {step}", lambda: needle in self.record(job_id), timeout_s=timeout_s)

    def sent_back(self, job_id: int) -> str:
        """Wait until the node is out and the job back in its queue; take it out of that. Return the node's reason."""
        job = wait(
            self.cluster.layout,
            job_id,
            timeout_s=BOOT_S,
            until=lambda job: job.ended or (job.state == "PENDING" and job.restarts > 0),
        )
        self.user.cancel(job_id)
        state, reason = self.cluster.node_state()
        assert "DRAIN" in state and "RAN" not in job.output(), (state, job.output())
        return reason

    def history(self, job_id: int) -> str:
        """What teardown kept of the job; empty: there was never a guest."""
        return self.node.call(f"cat /var/lib/lrms_vm/history/slurm-{job_id}.{NODE}.json").stdout.decode()

    def cancel_all(self) -> None:
        """What a failed test left running would fail the next ones too."""
        for job_id in self.submitted:
            if not self.cluster.job_info(job_id).ended:
                self.cluster.client("root").cancel(job_id)
                self.cluster.wait_job(job_id, timeout_s=120)

    def nothing_left(self) -> None:
        """No domain, xenstore entry, loop device, vif, table, process, mount, disk, record, verdict, lease."""
        assert xen_leftovers.search(self.node, self.before) == []

    def in_service(self, *, timeout_s: float = 30) -> None:
        """Slurm's node takes jobs."""
        deadline = time.monotonic() + timeout_s
        while (state := self.cluster.node_state())[0] not in ("IDLE", "MIXED", "ALLOCATED"):
            assert time.monotonic() < deadline, state
            time.sleep(0.5)


@pytest.fixture
def desk(cluster: XenCluster, before: frozenset[str], request: pytest.FixtureRequest) -> Iterator[Desk]:
    """See `Desk`. The node is in service before each test; after it nothing may be left."""
    made = make_desk(cluster, before, request.node.name)
    yield made
    made.cancel_all()
    made.nothing_left()


def make_desk(cluster: XenCluster, before: frozenset[str], name: str) -> Desk:
    state, _ = cluster.node_state()
    if "DRAIN" in state or "DOWN" in state:
        cluster.resume()
    user = users.find(USER)
    clean = "".join(letter if letter.isalnum() else "-" for letter in name)[:40]
    directory = cluster.layout.home(USER) / "tests" / f"{clean}-{uuid.uuid4().hex[:6]}"
    directory.mkdir(mode=0o755, parents=True)
    os.chown(directory, user.uid, user.gid)
    return Desk(cluster, directory, [], before)
