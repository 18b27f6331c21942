"""Every way to ask for a guest, and to ask for none: submitted together, so that they share the machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from demo.gridengine import GridEngine
from demo.layout import USER
from demo.programs import wait_until
from tests.integration.gridengine.conftest import BOOT_S, Desk, clear, make_desk

pytestmark = pytest.mark.guest

WHERE = "test -d /run/lrms_vm/tasks && echo in the guest || echo ON THE HOST\n"


@dataclass
class Batch:
    """Jobs by the name of what they show."""

    desk: Desk
    ids: dict[str, int] = field(default_factory=dict)

    def end(self, name: str, task: int | None = None) -> tuple[int, str]:
        return self.desk.end(self.ids[name], task)


@pytest.fixture(scope="module")
def batch(engine: GridEngine) -> Iterator[Batch]:
    desk = make_desk(engine, "batch")
    batch = Batch(desk)
    ids = batch.ids
    ids["ordinary"] = desk.qsub(script=WHERE + "id -un; env | sort > env; exit 3\n", image=None)
    ids["binary"] = desk.qsub("-b", "y", "/bin/echo", "a  b", "$HOME", image=None)
    ids["0"] = desk.qsub("-l", "vm_capable=TRUE", script=WHERE + "id -un; pwd; exit 0\n")
    ids["array"] = desk.qsub("-t", "1-2", script=WHERE + "exit $SGE_TASK_ID\n")
    joined = ["-j", "y", "-l", "h_vmem=900M"]
    text = WHERE + 'echo on stderr >&2; printf "%s|" "$@"; exit 7\n'
    ids["7"] = desk.qsub(*joined, script=text, script_arguments=["a", "b  c"])
    ids["127"] = desk.qsub("-b", "y", "/no/such/program")
    ids["signal"] = desk.qsub("-S", "/bin/sh", script=WHERE + "kill -SEGV $$\n")
    ids["error"] = desk.qsub(script=WHERE + "exit 100\n")
    ids["suspended"] = desk.qsub(script="while [ ! -e end ]; do echo . >> ticks; sleep 0.2; done; exit 5\n")
    yield batch
    clear(desk)


def test_an_ordinary_job_is_untouched(batch: Batch) -> None:
    code, output = batch.end("ordinary")
    assert (code, output) == (3, f"ON THE HOST\n{USER}\n")
    names = {line.partition("=")[0] for line in (batch.desk.directory / "env").read_text().splitlines()}
    assert {"JOB_ID", "SGE_JOB_SPOOL_DIR", "TMPDIR"} <= names
    assert batch.desk.history(batch.ids["ordinary"]) == []


def test_an_ordinary_command_goes_through_the_shell_as_ever(batch: Batch) -> None:
    code, output = batch.end("binary")
    assert (code, output) == (0, f"a b {batch.desk.layout.home(USER)}\n")


def test_an_image_in_the_jobs_environment(batch: Batch) -> None:
    code, output = batch.end("0")
    assert (code, output) == (0, f"in the guest\n{USER}\n{batch.desk.directory}\n")
    assert len(batch.desk.history(batch.ids["0"])) == 1


def test_an_exit_code_and_arguments(batch: Batch) -> None:
    code, output = batch.end("7")
    assert output.count("on stderr\n") == 1, "-j y"
    assert (code, output.replace("on stderr\n", "")) == (7, "in the guest\na|b  c|")


@pytest.mark.parametrize("task", [1, 2])
def test_each_task_of_an_array_has_its_own_guest(batch: Batch, task: int) -> None:
    assert batch.end("array", task) == (task, "in the guest\n")
    assert len(batch.desk.history(batch.ids["array"])) == 2


def test_a_command_that_the_guest_does_not_have(batch: Batch) -> None:
    code, output = batch.end("127")
    assert (code, output) == (127, "")


def test_a_death_by_signal(batch: Batch) -> None:
    code, output = batch.end("signal")
    assert (code, output) == (128 + 11, "in the guest\n")


def test_a_payloads_own_100_means_what_it_means_in_grid_engine(batch: Batch) -> None:
    desk, job_id = batch.desk, batch.ids["error"]
    desk.engine.wait(job_id, timeout_s=240)
    assert desk.engine.state(job_id) == "Eqw"
    assert desk.said(job_id) == "in the guest\n"
    desk.engine.ask("qdel", str(job_id))
    desk.nothing_left(job_id)


def test_a_suspended_job_s_payload_stops_and_goes_on(batch: Batch) -> None:
    """Here by SIGSTOP with nothing before: queue_conf(5), suspend_method."""
    desk, job_id = batch.desk, batch.ids["suspended"]
    ticks = desk.directory / "ticks"
    wait_until("it works", ticks.exists, timeout_s=BOOT_S)
    desk.engine.ask("qmod", "-sj", str(job_id))
    time.sleep(6)  # three until the guest takes the silence for a stop
    before = ticks.stat().st_size
    time.sleep(3)
    assert ticks.stat().st_size == before
    desk.engine.ask("qmod", "-usj", str(job_id))
    wait_until("it goes on", lambda: ticks.stat().st_size > before + 2, timeout_s=30)
    (desk.directory / "end").touch()
    assert batch.end("suspended")[0] == 5


def test_the_queue_is_in_service_after_all_that(batch: Batch) -> None:
    assert batch.desk.engine.queue_state() == ""
