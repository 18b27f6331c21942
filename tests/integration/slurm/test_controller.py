"""The controller hangs, dies, stays away: what becomes of the job, of its guest and of the node.

What a hook asks it, and for how long, is one patience (lrms/base.py); unit/test_patience.py.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from demo import leftovers
from demo.jobs import JobInfo
from demo.layout import NODES
from demo.programs import Daemon, DemoError, wait_until
from tests.integration.slurm.conftest import Desk
from tests.integration.slurm.test_faults import reap
from tests.integration.slurm.test_nights import (
    HOLD,
    SMALL,
    libvirtd,
    processes_of,
    qemu_of,
    words_of,
)

pytestmark = pytest.mark.guest

STOPPED_S = 4.0
AWAY_S = 22.0  # longer than one question's patience, lrms/base.py
SAVED_S = 6.5


def slurmctld(desk: Desk) -> Daemon:
    return desk.cluster.daemons()[1]


def kill(daemon: Daemon) -> None:
    pid = daemon.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(f"{daemon.name} gone", lambda: daemon.pid is None, timeout_s=10)


def stopped(daemon: Daemon) -> AbstractContextManager[None]:
    pid = daemon.pid
    assert pid is not None
    return standing_still(pid)


@contextmanager
def standing_still(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def away(desk: Desk) -> Iterator[None]:
    """Killed, and started again in the end whatever happens."""
    kill(slurmctld(desk))
    try:
        yield
    finally:
        slurmctld(desk).start()


def in_hook(job_id: int, hook: bytes) -> bool:
    return any(hook in words.split(b"\0") for words in words_of(job_id))


def wait_for_hook(job_id: int, hook: bytes) -> None:
    wait_until(f"the {hook.decode()}", lambda: in_hook(job_id, hook), timeout_s=60, pause_s=0.002)


def wait_for_its_end(job_id: int, hook: bytes, *, timeout_s: float) -> None:
    wait_until(f"the {hook.decode()}'s end", lambda: not in_hook(job_id, hook), timeout_s=timeout_s)


def all_idle(desk: Desk) -> None:
    """Until a slurmd has spoken to it, a new slurmctld calls its node UNKNOWN."""
    for node in NODES:
        wait_until(f"{node} is idle", lambda node=node: desk.cluster.node_state(node)[0] == "IDLE", timeout_s=120)


def test_a_controller_that_hangs_for_longer_than_a_prologue_waits_fails_the_job_and_spares_the_node(desk: Desk) -> None:
    job_id = desk.sbatch(*SMALL, script=HOLD)
    wait_for_hook(job_id, b"prologue")
    with stopped(slurmctld(desk)):
        since = time.monotonic()
        wait_for_its_end(job_id, b"prologue", timeout_s=40)
        waited_s = time.monotonic() - since
    assert 18 < waited_s < 30
    job = desk.end(job_id)
    assert (job.state, job.exit_code) == ("FAILED", "75:0"), job.output()
    assert "the Slurm controller does not answer" in job.output()
    assert not (desk.directory / "up").exists()
    all_idle(desk)


def saved(desk: Desk) -> None:
    """slurmctld writes down what it knows of jobs five seconds later at the most; what it has not, it forgets when it
    is killed."""
    state, now = desk.layout.state / "slurmctld" / "job_state", time.time()
    deadline = time.monotonic() + SAVED_S
    while state.stat().st_mtime <= now and time.monotonic() < deadline:
        time.sleep(0.1)


def has_step(job_id: int) -> bool:
    return any(words.startswith(b"slurmstepd") for words in words_of(job_id))


def test_a_controller_that_hangs_under_the_prologue_and_is_killed_thrice_later_costs_time_only(desk: Desk) -> None:
    """Killed while the guest boots, while the payload comes to its end, and under the epilogue."""
    job_id = desk.sbatch(*SMALL, script=HOLD)
    wait_for_hook(job_id, b"prologue")
    with stopped(slurmctld(desk)):
        time.sleep(STOPPED_S)
        assert in_hook(job_id, b"prologue"), "it was to wait for the controller: for the job's memory"
    wait_until("the batch step", lambda: has_step(job_id), timeout_s=60)
    with standing_still(qemu_of(job_id)):
        saved(desk)
        with away(desk):
            time.sleep(1)
        assert desk.cluster.job_info(job_id).state == "RUNNING"
        assert not (desk.directory / "up").exists(), "the guest was to boot still"
    desk.written("up")
    with stopped(libvirtd(desk.cluster)):  # an epilogue takes long enough to be met
        with away(desk):
            (desk.directory / "go").touch()
            time.sleep(5)  # the payload ends, and its end cannot be told
        wait_for_hook(job_id, b"epilogue")
        saved(desk)
        kill(slurmctld(desk))
    try:
        wait_for_its_end(job_id, b"epilogue", timeout_s=60)
        desk.nothing_left(job_id)  # the controller is still away
    finally:
        slurmctld(desk).start()
    job = desk.end(job_id)
    assert (job.state, job.exit_code) == ("FAILED", "3:0"), job.output()
    all_idle(desk)


def without_its_script(desk: Desk, job_id: int) -> JobInfo:
    """As Slurm has it after a controller died under a prologue: the script is started by nobody, until the job's time
    limit or BatchStartTimeout is over (docs/slurm.md)."""
    time.sleep(4)
    assert not (desk.directory / "up").exists()
    assert not has_step(job_id)
    return desk.cluster.job_info(job_id)


def hook_of(job_id: int, hook: bytes) -> int:
    for pid in processes_of(job_id):
        with suppress(OSError):
            if hook in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return pid
    raise AssertionError(f"no {hook.decode()} of job {job_id}")


@pytest.mark.parametrize("when", ["before it asks", "before the guest is made"])
def test_a_controller_killed_under_a_prologue_forgets_the_script(desk: Desk, when: str) -> None:
    """What was made for the job stays as long as the job, and goes with it."""
    asks = when == "before it asks"
    job_id = desk.sbatch(*SMALL, script=HOLD)
    wait_for_hook(job_id, b"prologue")
    with standing_still(hook_of(job_id, b"prologue")) if asks else stopped(libvirtd(desk.cluster)):
        saved(desk)
        kill(slurmctld(desk))
        since = time.monotonic()
    try:
        wait_for_its_end(job_id, b"prologue", timeout_s=60)
        assert (18 if asks else 0) < time.monotonic() - since < 30
    finally:
        slurmctld(desk).start()
    assert without_its_script(desk, job_id).state == "RUNNING"
    made = {line.partition(" ")[0] for line in leftovers.search(desk.layout, job_id)}
    assert made == {"verdict"} if asks else {"verdict", "domain", "record", "disk"} <= made
    desk.user.cancel(job_id)
    assert desk.end(job_id, timeout_s=60).state == "CANCELLED"
    all_idle(desk)


def test_a_job_that_a_killed_controller_had_not_saved_is_ended_with_its_guest(desk: Desk) -> None:
    """No job then, and no node out of service. The next job may get its number (docs/slurm.md)."""
    state = desk.layout.state / "slurmctld" / "job_state"
    saved(desk)
    before = state.read_bytes()
    job_id = desk.sbatch(*SMALL, script=HOLD)
    wait_until("the batch step", lambda: has_step(job_id), timeout_s=60)
    with away(desk):
        state.write_bytes(before)
    desk.submitted.remove(job_id)
    wait_until("the step's end", lambda: not has_step(job_id), timeout_s=60)
    desk.nothing_left(job_id, timeout_s=30)
    with pytest.raises(DemoError, match="Invalid job id"):
        desk.cluster.job_info(job_id)
    all_idle(desk)


@pytest.fixture
def short_epilogue(desk: Desk) -> Iterator[None]:
    config: Path = desk.layout.config("n1")
    before = config.read_text()
    config.write_text(before.replace("epilogue_timeout_s = 60\n", "epilogue_timeout_s = 8\n"))
    assert config.read_text() != before
    yield
    config.write_text(before)


@pytest.mark.parametrize(
    ("how", "reason"),
    [("killed", "Epilog error"), ("hung", "lrms_vm: leftovers")],  # what hangs reads what scontrol sent later
)
def test_a_node_that_keeps_something_while_the_controller_is_away_is_drained_all_the_same(
    desk: Desk, short_epilogue: None, how: str, reason: str
) -> None:
    killed = how == "killed"
    job_id = desk.sbatch(*SMALL, script=HOLD)
    desk.written("up")
    with stopped(libvirtd(desk.cluster)):
        (desk.directory / "go").touch()
        wait_for_hook(job_id, b"epilogue")
        saved(desk)
        with away(desk) if killed else stopped(slurmctld(desk)):
            since = time.monotonic()
            wait_for_its_end(job_id, b"epilogue", timeout_s=40)
            assert time.monotonic() - since < 20, "one patience, and no longer than an epilogue may take"
            if killed:
                time.sleep(max(0.0, since + AWAY_S - time.monotonic()))
    wait_until("n1 is drained", lambda: "DRAIN" in desk.cluster.node_state("n1")[0], timeout_s=60)
    assert desk.cluster.node_state("n1")[1].startswith(reason)
    job = desk.cluster.wait_job(job_id, timeout_s=60)
    assert (job.state, job.exit_code) == ("FAILED", "3:0"), job.output()
    reap(desk, "n1")
    desk.nothing_left(job_id)
    desk.cluster.resume("n1")
    all_idle(desk)
