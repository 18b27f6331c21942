"""One cluster for the whole session, and what every test here asserts in the end: nothing is left."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo import hypervisor, leftovers, site, users
from demo.cluster import Cluster
from demo.jobs import Client, JobInfo
from demo.layout import NODES, USER, Layout, default_base
from demo.programs import DemoError, wait_until

BOOT_S = 240  # the longest a guest may take here: emulation, two cores, several at once
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The demo's cluster with the small image; images that were built before are used again."""
    if os.geteuid() != 0:
        pytest.skip("the test cluster needs root")
    cluster = Cluster(default_base())
    cluster.prepare()  # waits for whoever else uses it
    cluster.stop()
    site.bring_up(cluster, ["minimal"])
    yield cluster
    left = cluster.stop()
    assert left == []


@dataclass(frozen=True)
class Desk:
    """A test's own directory on the cluster, and short words for what it does there."""

    cluster: Cluster
    directory: Path  # the user's own
    submitted: list[int]

    @property
    def layout(self) -> Layout:
        return self.cluster.layout

    @property
    def user(self) -> Client:
        return self.cluster.client()

    def sbatch(self, *arguments: str, script: str, user: str = USER, plugin: bool = True, **env: str) -> int:
        """Submit a script from this directory; its output goes to `<job id>.out` there."""
        client = self.cluster.client(user, plugin=plugin)
        output = [] if any(word.startswith("--output") for word in arguments) else [f"--output={self.directory}/%j.out"]
        job_id = client.sbatch(*output, *arguments, script="#!/bin/sh\n" + script, cwd=self.directory, env=env)
        self.submitted.append(job_id)
        return job_id

    def cancel_all(self) -> None:
        """What a failed test left running would fail the next ones too."""
        for job_id in self.submitted:
            if not self.cluster.job_info(job_id).ended:
                self.cluster.client("root").cancel(job_id)
                self.cluster.wait_job(job_id, timeout_s=60)

    def end(self, job_id: int | str, *, timeout_s: float = BOOT_S + 60) -> JobInfo:
        """Wait for a job's end, its epilogue too, and make sure that nothing of it is left."""
        job = self.cluster.wait_job(job_id, timeout_s=timeout_s)
        self.nothing_left(job.job_id)
        return job

    def output(self, job: JobInfo) -> str:
        """What the payload wrote: without the lines that tell the user that a guest takes its time."""
        lines = job.output().splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("lrms-vm: waiting for the guest"))

    def nothing_left(self, job_id: int, *, timeout_s: float = 5) -> None:
        """No domain, process, overlay, seed, mount, cgroup, verdict, record, lease."""
        found = ["?"]
        deadline = time.monotonic() + timeout_s
        while found and time.monotonic() < deadline:
            found = leftovers.search(self.layout, job_id)
            if found:
                time.sleep(0.2)  # the epilogue of a cancelled job may still be at it
        assert found == []

    def started(self, job_id: int | str, *, timeout_s: float = BOOT_S) -> str:
        """Wait until the job runs; return its node."""
        deadline = time.monotonic() + timeout_s
        while (job := self.cluster.job_info(job_id)).state in ("PENDING", "CONFIGURING"):
            if time.monotonic() > deadline:
                raise DemoError(f"job {job_id} does not start: {job.reason}")
            time.sleep(0.1)
        return job.nodes

    def written(self, name: str, *, timeout_s: float = BOOT_S) -> str:
        """Wait for a file that a payload writes to this directory; return its text."""
        path = self.directory / name
        wait_until(
            f"{name} written by the payload", lambda: path.exists() and path.stat().st_size > 0, timeout_s=timeout_s
        )
        return path.read_text()

    def history(self, job_id: int) -> list[Path]:
        """What teardown kept of a job's guests; one file a node. Empty: there was never a guest."""
        return [p for node in NODES for p in self.layout.places(node).history.glob(f"slurm-{job_id}.*")]


@pytest.fixture
def desk(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Desk]:
    """See `Desk`. The nodes are in service before each test."""
    made = make_desk(cluster, request.node.name)
    yield made
    made.cancel_all()


def make_desk(cluster: Cluster, name: str) -> Desk:
    for node in NODES:
        state, _ = cluster.node_state(node)
        if "DRAIN" in state or "DOWN" in state:
            cluster.resume(node)
    user = users.find(USER)
    clean = "".join(letter if letter.isalnum() else "-" for letter in name)[:40]
    directory = cluster.layout.home(USER) / "tests" / f"{clean}-{uuid.uuid4().hex[:6]}"
    directory.mkdir(mode=0o755, parents=True)
    os.chown(directory, user.uid, user.gid)
    return Desk(cluster, directory, [])


@pytest.fixture(scope="session")
def domains() -> Callable[[], list[str]]:
    """Names of all running guests."""
    return hypervisor.domains
