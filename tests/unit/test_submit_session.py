"""Waiting, results that stay, and what a lost job is; with a batch system of paper and a clock of our own."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Mapping, Sequence

import pytest

from lrms_vm.cli import submit as cli
from lrms_vm.errors import RequestError, SiteError, UsageError
from lrms_vm.submit import JobDescription, JobResult, JobState, JobStatus, Session
from lrms_vm.submit.carry import Way
from lrms_vm.submit.result import ended

TRUE = JobDescription("true")


class Paper:
    """A `backend.Backend`: each look at a job takes the next of its statuses, the last one stays."""

    system = "slurm"
    way = Way.COMMANDS
    name = "paper"

    def __init__(self, *stories: Sequence[JobStatus | None]) -> None:
        self.stories = {str(at): list(story) for at, story in enumerate(stories, 1)}
        self.asked: list[tuple[str, ...]] = []
        self.controlled: list[tuple[str, str]] = []
        self.closed = False
        self.submitted: list[tuple[JobDescription, dict[str, str], int | None]] = []

    def submit(self, description: JobDescription, environment: Mapping[str, str], count: int | None) -> list[str]:
        self.submitted.append((description, dict(environment), count))
        return list(self.stories)[: count or 1]

    def look(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        self.asked.append(tuple(job_ids))
        found = {}
        for job_id in job_ids:
            story = self.stories.get(job_id, [None])
            status = story.pop(0) if len(story) > 1 else story[0]
            if status is not None:
                found[job_id] = status
        return found

    def control(self, job_id: str, action: str) -> None:
        self.controlled.append((job_id, action))

    def mine(self) -> list[JobStatus]:
        return []

    def close(self) -> None:
        self.closed = True


class Time:
    now = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def session(*stories: Sequence[JobStatus | None]) -> tuple[Session, Paper, Time]:
    paper, time = Paper(*stories), Time()
    return Session(backend=paper, clock=time.clock, sleep=time.sleep), paper, time


def active(job_id: str) -> JobStatus:
    return JobStatus(job_id, JobState.ACTIVE)


def test_waiting_looks_until_the_end_and_twice_is_the_same() -> None:
    made, paper, time = session([active("1")] * 5 + [ended("1", exit_code=7), None])
    job = made.submit(TRUE)
    result = made.wait(job)
    assert result == JobResult("1", JobState.FAILED, 7)
    assert made.wait(job) is result
    assert made.status(job).result is result
    assert len(paper.asked) == 6
    assert 1 < time.now < 5


def test_a_timeout_gives_none() -> None:
    made, _, time = session([active("1")])
    assert made.wait(made.submit(TRUE), timeout=10) is None
    assert time.now == pytest.approx(10)
    assert made.wait("1", timeout=0) is None


def test_wait_any_takes_the_first_and_then_the_others() -> None:
    made, paper, _ = session([active("1")] * 9 + [ended("1", exit_code=1)], [active("2"), ended("2", exit_code=0)])
    made.submit_bulk(TRUE, 2)
    first, second = made.wait_any(), made.wait_any()
    assert first is not None and second is not None
    assert (first.job_id, second.job_id) == ("2", "1")
    assert paper.asked[-1] == ("1",)
    with pytest.raises(UsageError):
        made.wait_any()


def test_wait_all_keeps_the_order() -> None:
    made, _, _ = session([active("1"), ended("1", exit_code=3)], [ended("2", exit_code=0)])
    jobs = made.submit_bulk(TRUE, 2)
    assert [result.exit_code for result in made.wait_all(jobs)] == [3, 0]


def test_what_we_terminated_is_canceled_whatever_the_system_says() -> None:
    made, paper, _ = session([active("1"), ended("1", exit_code=0)])
    job = made.submit(TRUE)
    made.control(job, "terminate")
    result = made.wait(job)
    assert result is not None
    assert (result.state, result.exit_code, result.returncode) == (JobState.CANCELED, None, 143)
    assert paper.controlled == [("1", "terminate")]


def test_terminating_a_job_that_has_ended_changes_nothing() -> None:
    made, paper, _ = session([ended("1", exit_code=0)])
    job = made.submit(TRUE)
    made.control(job, "terminate")
    assert paper.controlled == []
    assert made.wait(job) == JobResult("1", JobState.COMPLETED, 0)


def test_a_job_terminated_before_it_ran_may_leave_no_trace() -> None:
    made, _, time = session([JobStatus("1", JobState.QUEUED), None])
    job = made.submit(TRUE)
    made.control(job, "terminate")
    assert made.wait(job) == JobResult("1", JobState.CANCELED)
    assert time.now < 10


def test_a_job_that_was_never_there() -> None:
    made, _, _ = session([None])
    with pytest.raises(RequestError) as caught:
        made.wait("77")
    assert caught.value.code == "job-unknown"
    assert made.status("77").state is JobState.UNKNOWN


def test_a_job_that_the_system_forgot_is_no_success() -> None:
    made, _, time = session([active("1"), None])
    job = made.submit(TRUE)
    with pytest.raises(SiteError) as caught:
        made.wait(job)
    assert caught.value.code == "result-lost"
    assert time.now > 30


def test_a_job_between_two_lists_is_waited_for() -> None:
    made, _, _ = session([active("1"), None, None, None, ended("1", exit_code=5)])
    result = made.wait(made.submit(TRUE))
    assert result is not None and result.exit_code == 5


def test_unknown_actions_and_sizes_are_refused() -> None:
    made, paper, _ = session([active("1")])
    with pytest.raises(UsageError):
        made.control("1", "destroy")
    for count in (0, -1, 10**9):
        with pytest.raises(UsageError):
            made.submit_bulk(TRUE, count)
    assert paper.submitted == []


def test_a_session_closes_its_backend() -> None:
    made, paper, _ = session([active("1")])
    with made:
        pass
    assert paper.closed


# -- results


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (JobResult("1", JobState.COMPLETED, 0), 0),
        (JobResult("1", JobState.FAILED, 127), 127),
        (JobResult("1", JobState.FAILED, signal=11), 139),
        (JobResult("1", JobState.FAILED, reason="NODE_FAIL"), 70),
        (JobResult("1", JobState.CANCELED), 143),
        (JobResult("1", JobState.CANCELED, signal=9), 137),
    ],
)
def test_return_codes(result: JobResult, code: int) -> None:
    assert result.returncode == code


@pytest.mark.parametrize(
    ("state", "code"), [(JobState.COMPLETED, 1), (JobState.COMPLETED, None), (JobState.FAILED, 0), (JobState.ACTIVE, 0)]
)
def test_a_result_that_contradicts_itself_cannot_be_made(state: JobState, code: int | None) -> None:
    with pytest.raises(ValueError, match=r"is no end|with exit code"):
        JobResult("1", state, code)


# -- the command line


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.register(parser.add_subparsers())
    return parser.parse_args(["submit", *words])


def test_the_command_line_is_a_description() -> None:
    args = parsed(
        *("--vm-image=hep-jets", "--vm-cpus=2", "--queue=main", "--duration=2h", "--directory=/data", "--memory=2G"),
        *(
            "--env",
            "SEED=a=b",
            "--env",
            "HOME",
            "--attribute",
            "slurm.comment=x=y",
            "--",
            "./sim",
            "-n",
            "a b",
            "--wait",
        ),
    )
    job = cli.describe(args, {"HOME": "/home/me"})
    assert (job.executable, job.arguments) == ("./sim", ("-n", "a b", "--wait"))
    assert job.environment == {"SEED": "a=b", "HOME": "/home/me"}
    assert job.custom_attributes == {"slurm.comment": "x=y"}
    assert (job.image, job.vm.cpus, job.queue, job.directory) == ("hep-jets", "2", "main", "/data")
    assert job.duration is not None and job.duration.total_seconds() == 7200
    assert job.resources.memory_mib == 2048
    assert not args.wait
    with pytest.raises(UsageError):
        cli.describe(parsed("--env", "NOT_SET", "--", "true"), {})


@pytest.fixture
def paper_session(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    made: list[Session] = []
    monkeypatch.setattr(cli, "Session", lambda **_: made[0])
    return made


def test_it_prints_ids_and_ends_like_the_job(paper_session: list[Session], capsys: pytest.CaptureFixture[str]) -> None:
    paper_session.append(session([ended("1", exit_code=0)], [ended("2", signal=9)])[0])
    assert cli._submit(parsed("--bulk=2", "--wait", "--", "true")) == 137
    out = capsys.readouterr()
    assert out.out == "1\n2\n"
    assert out.err == "lrms-vm: job 2: failed, signal 9\n"


def test_json(paper_session: list[Session], capsys: pytest.CaptureFixture[str]) -> None:
    paper_session.append(session([ended("1", exit_code=7)])[0])
    assert cli._submit(parsed("--json", "--wait", "--", "true")) == 7
    told = json.loads(capsys.readouterr().out)
    assert told["lrms"] == "slurm"
    assert told["jobs"] == [
        {"id": "1", "state": "failed", "exit_code": 7, "signal": None, "returncode": 7, "reason": ""}
    ]


def test_the_progress_line_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    shown = cli._Shown()
    shown({"1": active("1"), "2": JobStatus("2", JobState.QUEUED)})
    assert "1 active, 1 queued" in terminal.getvalue()
    shown.clear()
    assert terminal.getvalue().endswith("\r")
