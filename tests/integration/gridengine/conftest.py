"""One Grid Engine for this directory, and what every test here asserts in the end: nothing is left."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from demo import gridengine, leftovers, users
from demo.cluster import Cluster
from demo.gridengine import NODE, GridEngine
from demo.layout import USER, Layout, default_base
from demo.programs import wait_until

BOOT_S = 240  # the longest a guest may take here: emulation, two cores, several at once
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.gridengine)


@pytest.fixture(scope="package")
def engine() -> Iterator[GridEngine]:
    """The demo's Grid Engine with the small image. It stops with this directory: the Slurm tests use libvirt next."""
    if os.geteuid() != 0:
        pytest.skip("the test Grid Engine needs root")
    engine = GridEngine(default_base())
    Cluster(engine.base).prepare()  # waits for whoever else uses it
    engine.stop()
    gridengine.bring_up(engine, ["minimal"])
    yield engine
    left = engine.stop()
    assert left == []


@dataclass(frozen=True)
class Desk:
    """A test's own directory, and short words for what it does there."""

    engine: GridEngine
    directory: Path  # the user's own
    submitted: list[int] = field(default_factory=list)

    @property
    def layout(self) -> Layout:
        return self.engine.layout

    @property
    def node(self) -> str:
        """What names this host's directories."""
        return NODE

    def qsub(
        self,
        *arguments: str,
        script: str | None = None,
        image: str | None = "minimal",
        script_arguments: Sequence[str] = (),
    ) -> int:
        """Submit from this directory; stdout and stderr go to `<job>.out` and `<job>.err` there, tasks by their own."""
        asked = ["-v", f"VM_IMAGE={image},VM_MEMORY=500M"] if image is not None else []
        where = ["-wd", str(self.directory), "-o", f"{self.directory}/$JOB_ID.$TASK_ID.out"]
        where += ["-e", f"{self.directory}/$JOB_ID.$TASK_ID.err"]
        command = []
        if script is not None:
            path = self.directory / f"script-{len(self.submitted)}.sh"
            path.write_text("#!/bin/sh\n" + script)
            command = [str(path), *script_arguments]
        job_id = self.engine.qsub(*where, *asked, *arguments, *command, cwd=self.directory)
        self.submitted.append(job_id)
        return job_id

    def said(self, job_id: int, task: int | None = None, *, kind: str = "out") -> str:
        """What the job wrote, without the lines that tell the user that a guest takes its time."""
        path = self.directory / f"{job_id}.{task or 0}.{kind}"
        lines = path.read_text(errors="replace").splitlines(keepends=True) if path.exists() else []
        return "".join(line for line in lines if not line.startswith("lrms-vm: waiting for the guest"))

    def end(self, job_id: int, task: int | None = None, *, timeout_s: float = BOOT_S) -> tuple[int, str]:
        """Wait for a job's end, its epilog too; make sure that nothing is left; return its exit code and output."""
        self.engine.wait(job_id, timeout_s=timeout_s)
        assert self.engine.state(job_id) == "", self.said(job_id, task, kind="err") + self.engine.why(job_id)
        self.nothing_left(job_id)
        code = int(self.engine.accounting(job_id, task)["exit_status"].split()[0])
        return code, self.said(job_id, task)

    def refused(self, job_id: int) -> str:
        """Wait until the job is in an error state (Eqw); delete it; return what its user reads in its stderr."""
        wait_until(f"job {job_id} in Eqw", lambda: self.engine.state(job_id)[:1] == "E", timeout_s=60, pause_s=0.3)
        assert "exit_status of prolog = 100" in self.engine.why(job_id)
        self.engine.ask("qdel", str(job_id))
        self.nothing_left(job_id)
        assert "RAN" not in self.said(job_id)
        return self.said(job_id, kind="err")

    def engine_out_of_service(self, job_id: int) -> None:
        """Wait until a job's prolog has disabled the host's queues, and the job waits again."""
        wait_until(
            "the queue disabled and the job back in it",
            lambda: self.engine.queue_state() == "d" and self.engine.state(job_id) in ("qw", "Rq", "hqw"),
            timeout_s=60,
            pause_s=0.3,
        )

    def nothing_left(self, job_id: int, *, tasks: int = 2, timeout_s: float = 10) -> None:
        """No domain, process, overlay, seed, mount, cgroup, verdict, record, lease; the queue takes jobs."""
        names = (str(job_id), *(f"{job_id}-{task + 1}" for task in range(tasks)))
        keys = [f"gridengine-{name}.{self.engine.host}" for name in names]
        found = ["?"]
        deadline = time.monotonic() + timeout_s
        while found and time.monotonic() < deadline:
            found = [line for key in keys for line in leftovers.search_key(self.layout, NODE, key)]
            if found:
                time.sleep(0.2)
        assert found == []

    def written(self, name: str, *, timeout_s: float = BOOT_S) -> str:
        """Wait for a file that a payload writes to this directory; return its text."""
        path = self.directory / name
        wait_until(f"{name} written", lambda: path.exists() and path.stat().st_size > 0, timeout_s=timeout_s)
        return path.read_text()

    def history(self, job_id: int) -> list[Path]:
        """What teardown kept of a job's guests. Empty: there was never a guest."""
        return list(self.layout.places(NODE).history.glob(f"gridengine-{job_id}[-.]*"))


@pytest.fixture
def desk(engine: GridEngine, request: pytest.FixtureRequest) -> Iterator[Desk]:
    """See `Desk`. The queue is in service before each test, and after it."""
    made = make_desk(engine, request.node.name)
    yield made
    clear(made)


def make_desk(engine: GridEngine, name: str) -> Desk:
    if engine.queue_state():
        engine.enable()
    user = users.find(USER)
    clean = "".join(letter if letter.isalnum() else "-" for letter in name)[:40]
    directory = engine.layout.home(USER) / "tests" / f"ge-{clean}-{uuid.uuid4().hex[:6]}"
    directory.mkdir(mode=0o755, parents=True)
    os.chown(directory, user.uid, user.gid)
    return Desk(engine, directory)


def clear(desk: Desk) -> None:
    """What a failed test left running would fail the next ones too."""
    for job_id in desk.submitted:
        if desk.engine.state(job_id):
            desk.engine.succeeds("qdel", str(job_id))
            wait_until(f"job {job_id} deleted", lambda: not desk.engine.state(job_id), timeout_s=60)
