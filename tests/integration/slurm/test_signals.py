"""What Slurm sends reaches the payload, and in the end everything goes. Three guests at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.cluster import Cluster
from demo.programs import wait_until
from demo.slurm_conf import KILL_WAIT_S
from tests.integration.slurm.conftest import Desk, make_desk

pytestmark = pytest.mark.guest

SMALL = ("--mem=700", "--vm-image=minimal")
# `sleep` in the background: a shell runs its traps only between commands.
IDLE = "while :; do sleep 0.2 & wait $!; done\n"


@pytest.fixture(scope="module")
def jobs(cluster: Cluster) -> Iterator[tuple[Desk, dict[str, int]]]:
    desk = make_desk(cluster, "signals")
    ids = {
        "limit": desk.sbatch(
            *SMALL, "--time=2", "--signal=B:USR1@15",
            script="trap 'echo soon >> limit-usr1' USR1; trap 'echo term >> limit-term; exit 9' TERM; echo up > limit-up\n" + IDLE,
        ),
        "polite": desk.sbatch(
            *SMALL, "--time=10",
            script="trap 'echo usr1 >> polite-usr1' USR1; trap 'sleep 1; echo cleaned > polite-term; exit 0' TERM; echo up > polite-up\n"
            "(trap '' USR1; while :; do echo . >> polite-ticks; sleep 0.2; done) &\n" + IDLE,
        ),
        "stubborn": desk.sbatch(
            *SMALL, "--time=10", script="trap 'echo ignored > stubborn-term' TERM; echo up > stubborn-up\n" + IDLE
        ),
    }  # fmt: skip
    yield desk, ids
    desk.cancel_all()


def test_a_signal_to_the_batch_script_arrives(jobs: tuple[Desk, dict[str, int]]) -> None:
    desk, ids = jobs
    desk.written("polite-up")
    desk.user.cancel(ids["polite"], "--batch", "--signal=USR1")
    assert desk.written("polite-usr1", timeout_s=30) == "usr1\n"
    desk.user.cancel(ids["polite"], "--batch", "--signal=USR1")
    twice = "usr1\nusr1\n"
    wait_until("the second USR1", lambda: (desk.directory / "polite-usr1").read_text() == twice, timeout_s=30)


def test_a_suspended_job_s_payload_stops_and_goes_on(jobs: tuple[Desk, dict[str, int]]) -> None:
    """What a job leaves to another one, as where a partition preempts by suspending, is its processors."""
    desk, ids = jobs
    desk.written("polite-ticks")
    ticks, root, job_id = desk.directory / "polite-ticks", desk.cluster.client("root"), str(ids["polite"])
    before = ticks.stat().st_size
    wait_until("it works", lambda: ticks.stat().st_size > before, timeout_s=30)
    root.call(["scontrol", "suspend", job_id])
    time.sleep(8)  # two seconds until Slurm's SIGSTOP, three until the guest takes the silence for one
    before = ticks.stat().st_size
    time.sleep(3)
    assert ticks.stat().st_size == before
    assert desk.cluster.job_info(ids["polite"]).state == "SUSPENDED"
    root.call(["scontrol", "resume", job_id])
    wait_until("it goes on", lambda: ticks.stat().st_size > before + 2, timeout_s=30)


def test_a_cancelled_payload_can_clean_up(jobs: tuple[Desk, dict[str, int]]) -> None:
    desk, ids = jobs
    desk.written("polite-up")
    desk.user.cancel(ids["polite"])
    assert desk.written("polite-term", timeout_s=KILL_WAIT_S) == "cleaned\n"
    assert desk.end(ids["polite"], timeout_s=60).state == "CANCELLED"


def test_a_payload_that_ignores_term_is_killed_after_kill_wait(jobs: tuple[Desk, dict[str, int]]) -> None:
    desk, ids = jobs
    desk.written("stubborn-up")
    start = time.monotonic()
    desk.user.cancel(ids["stubborn"])
    assert desk.end(ids["stubborn"], timeout_s=90).state == "CANCELLED"
    assert time.monotonic() - start > KILL_WAIT_S - 2
    assert (desk.directory / "stubborn-term").read_text() == "ignored\n"


def test_the_time_limit_warns_then_ends(jobs: tuple[Desk, dict[str, int]]) -> None:
    desk, ids = jobs
    job = desk.end(ids["limit"], timeout_s=400)
    assert job.state == "TIMEOUT"
    assert (desk.directory / "limit-usr1").read_text() == "soon\n"
    assert (desk.directory / "limit-term").read_text() == "term\n"


def test_cancelled_while_it_boots(desk: Desk) -> None:
    job_id = desk.sbatch(*SMALL, script="echo never\n")
    node = desk.started(job_id)
    deadline = time.monotonic() + 60
    while not _exec_runs(f"slurm-{job_id}.{node}.json") and time.monotonic() < deadline:
        time.sleep(0.05)  # a TERM from before Slurm has started the step reaches no task, of any job
    desk.user.cancel(job_id)
    job = desk.end(job_id, timeout_s=60)
    assert job.state == "CANCELLED"
    assert "never" not in job.output()


def _exec_runs(verdict: str) -> bool:
    """Whether the job's own half is there: a process that was given this verdict and is not attach."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # ended meanwhile
        if "exec" in words and any(word.endswith(f"/{verdict}") for word in words):
            return True
    return False
