"""Every way to ask for a guest: submitted together, so that they share the machine; each test waits for its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from demo.cluster import Cluster
from demo.jobs import JobInfo
from demo.layout import GROUP, USER
from tests.integration.slurm.conftest import Desk, make_desk

pytestmark = pytest.mark.guest

WHERE = "test -d /run/lrms_vm/tasks && echo in the guest || echo ON THE HOST\n"
SMALL = ("--mem=700", "--time=10")


@dataclass
class Batch:
    """Jobs by the name of what they show."""

    desk: Desk
    ids: dict[str, int] = field(default_factory=dict)

    def end(self, name: str, task: str = "") -> tuple[JobInfo, str]:
        job = self.desk.end(f"{self.ids[name]}{task}")
        return job, self.desk.output(job)


@pytest.fixture(scope="module")
def batch(cluster: Cluster) -> Iterator[Batch]:
    desk = make_desk(cluster, "batch")
    batch = Batch(desk)
    image = "--vm-image=minimal"
    directive = "#SBATCH --vm-image=minimal\n"
    batch.ids["option"] = desk.sbatch(*SMALL, image, script=WHERE + "cat; exit 0\n")
    batch.ids["directive"] = desk.sbatch(*SMALL, script=directive + WHERE + "echo to stderr >&2; exit 7\n")
    batch.ids["bare"] = desk.sbatch(
        *SMALL, image, "--export=NONE", script=WHERE + "echo MINE=$MINE; exit 255\n", MINE="1"
    )
    batch.ids["comment"] = desk.sbatch(
        *SMALL, "--comment=lrms_vm:minimal", script=WHERE + "kill -SEGV $$\n", plugin=False
    )
    batch.ids["array"] = desk.sbatch(*SMALL, image, "--array=1-2", script=WHERE + "exit $SLURM_ARRAY_TASK_ID\n")
    batch.ids["both"] = desk.sbatch(
        *SMALL,
        image,
        "-N2",
        "--ntasks=2",
        script=WHERE + "hostname > lead; srun sh -c 'cat /proc/sys/kernel/random/boot_id'; srun false; echo rc=$?\n",
    )
    _only_the_group_can_read(desk)
    closed = desk.directory.parent / f"{desk.directory.name}-closed"
    batch.ids["closed"] = desk.sbatch(
        *SMALL, image, f"--chdir={closed}", script=WHERE + "cat data; touch new && echo WROTE; pwd\n"
    )
    yield batch
    desk.cancel_all()


def _only_the_group_can_read(desk: Desk) -> None:
    import grp
    import os

    closed = desk.directory.parent / f"{desk.directory.name}-closed"
    closed.mkdir(mode=0o750)
    (closed / "data").write_text("for the group\n")
    (closed / "data").chmod(0o640)
    for path in (closed, closed / "data"):
        os.chown(path, 0, grp.getgrnam(GROUP).gr_gid)


def test_an_option_of_sbatch(batch: Batch) -> None:
    job, output = batch.end("option")
    assert (job.state, job.exit_code) == ("COMPLETED", "0:0"), output
    assert output == "in the guest\n"


def test_a_directive_in_the_script_and_its_exit_code(batch: Batch) -> None:
    job, output = batch.end("directive")
    assert (job.state, job.exit_code) == ("FAILED", "7:0"), output
    assert output == "in the guest\nto stderr\n"


def test_export_none_and_exit_code_255(batch: Batch) -> None:
    job, output = batch.end("bare")
    assert (job.state, job.exit_code) == ("FAILED", "255:0"), output
    assert output == "in the guest\nMINE=\n"


def test_a_comment_from_a_login_node_without_the_plugin_and_a_death_by_signal(batch: Batch) -> None:
    job, output = batch.end("comment")
    assert output.startswith("in the guest\n")
    assert (job.state, job.exit_code) == ("FAILED", "0:11"), output


@pytest.mark.parametrize("task", ["1", "2"])
def test_each_task_of_an_array_has_its_own_guest(batch: Batch, task: str) -> None:
    job, output = batch.end("array", f"_{task}")
    assert (job.exit_code, output) == (f"{task}:0", "in the guest\n")


def test_srun_from_inside_reaches_the_guests_of_both_nodes(batch: Batch) -> None:
    job, output = batch.end("both")
    assert (job.state, job.exit_code) == ("COMPLETED", "0:0"), output
    boots = re.findall(r"^[0-9a-f-]{36}$", output, re.MULTILINE)
    assert len(set(boots)) == 2, output
    assert "rc=1" in output
    assert len(batch.desk.history(job.job_id)) == 2


def test_a_directory_that_only_the_group_can_read(batch: Batch) -> None:
    job, output = batch.end("closed")
    assert "for the group\n" in output, output
    assert "WROTE" not in output
    assert job.fields["UserId"].startswith(USER)
