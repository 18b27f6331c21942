"""A real OpenPBS, guests that really boot, payloads in them, every row of what its events are told, nothing left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from demo.layout import USER
from demo.programs import DemoError
from tests.integration.openpbs.conftest import Desk
from tests.integration.openpbs.openpbs_here import NODE
from tests.integration.slurm import authority

WHERE = "test -d /run/lrms_vm/tasks && echo in the guest || echo ON THE HOST\n"
pytestmark = pytest.mark.guest


@contextlib.contextmanager
def without_libvirt(desk: Desk) -> Iterator[None]:
    """Only this node's way to it."""
    link = desk.openpbs.layout.libvirt_socket(NODE)
    link.rename(link.with_suffix(".away"))
    try:
        yield
    finally:
        link.with_suffix(".away").rename(link)


def test_an_ordinary_job_is_untouched(desk: Desk) -> None:
    assert desk.end(desk.qsub(script=WHERE + "id -un; exit 3\n", image=None)) == (3, f"ON THE HOST\n{USER}\n")
    assert desk.said("err") == ""


def test_a_script_runs_in_the_guest_with_its_exit_code(desk: Desk) -> None:
    name = desk.qsub(script=WHERE + 'id -un; cd "$PBS_O_WORKDIR"; pwd; exit 7\n')
    assert desk.end(name) == (7, f"in the guest\n{USER}\n{desk.directory}\n")


def test_an_image_in_the_jobs_variables_and_a_command_with_arguments(desk: Desk) -> None:
    text = 'test -d /run/lrms_vm/tasks && printf "%s|" "$@"'
    words = ["-v", "VM_IMAGE=minimal,VM_MEMORY=400M", "--", "/bin/sh", "-c", text, "sh", "a  b", "it's"]
    assert desk.end(desk.qsub(*words, image=None)) == (0, "a  b|it's|")


def test_an_array_has_a_guest_for_each_task(desk: Desk) -> None:
    array = desk.qsub("-J", "1-2", script=WHERE + "exit $PBS_ARRAY_INDEX\n")
    for task in ("1", "2"):
        assert desk.end(array.replace("[]", f"[{task}]"))[0] == int(task)


def test_a_script_in_the_guest_starts_tasks_by_pbsdsh(desk: Desk) -> None:
    """The node's own pbsdsh runs them, through execjob_launch: in the guest, with the job's environment."""
    boot_id, here = "cat /proc/sys/kernel/random/boot_id", '"$PBS_O_WORKDIR"'
    script = f"""\
cd {here}; {boot_id} >lead; export MINE=theirs
pbsdsh sh -c '{boot_id} >{here}/task.$PBS_TASKNUM; echo "task ${{MINE-none}} ${{PBS_JOBCOOKIE-none}}" >>{here}/said'; echo rc $?
pbsdsh -n 1 -- sh -c 'exit 9' >problem; echo rc $?
pbsdsh -u true 2>refused; echo rc $?
"""
    name = desk.qsub("-l", "select=2:ncpus=1", "-l", "place=pack", script=script)
    assert desk.end(name) == (0, "rc 0\nrc 0\nrc 64\n"), desk.said("err")
    lead, *tasks = ((desk.directory / path.name).read_text() for path in sorted(desk.directory.glob("[lt]*[d0-9]")))
    assert tasks == [lead, lead]
    assert (desk.directory / "said").read_text() == "task none none\n" * 2
    assert "exit status 9" in (desk.directory / "problem").read_text()


def test_a_deleted_job_may_tidy_up(desk: Desk) -> None:
    text = 'cd "$PBS_O_WORKDIR"; trap "sleep 1; echo tidied > end; exit 3" TERM; echo up > up; '
    text += "while :; do sleep 0.2; done\n"
    name = desk.qsub(script=text)
    desk.written("up")
    desk.openpbs.ask("qdel", name)
    desk.written("end")
    assert desk.end(name)[0] == 3


def test_a_name_that_is_none_is_refused_by_qsub(desk: Desk) -> None:
    with pytest.raises(DemoError) as caught:
        desk.qsub(script=WHERE, image="../x")
    assert "is not the name of an image" in str(caught.value)


def test_a_refused_image_ends_the_job_with_the_reason_in_its_output(desk: Desk) -> None:
    assert desk.end(desk.qsub(script="echo RAN\n", image="no-such-image")) == (77, "")
    assert "'no-such-image' is not in the site's image list" in desk.said("err")
    assert "state = free" in desk.openpbs.node()


def test_what_the_site_lacks_is_tried_again_three_times_and_then_held(desk: Desk) -> None:
    with authority.crl(desk.openpbs.layout, expired=True):
        name = desk.qsub(script="echo RAN\n")
        fields = desk.openpbs.wait(name, "H", timeout_s=90)
    assert (fields["Hold_Types"], fields["run_count"]) == ("s", "4")
    assert "state = free" in desk.openpbs.node()
    desk.openpbs.ask("qrls", "-h", "s", name)
    assert desk.end(name) == (0, "RAN\n")


def test_the_nodes_fault_takes_it_out_and_the_job_waits(desk: Desk) -> None:
    with without_libvirt(desk):
        name = desk.qsub(script="echo RAN\n")
        fields = desk.openpbs.wait(name, "Q", timeout_s=60)
        while fields.get("run_count", "0") == "0":
            fields = desk.openpbs.job(name)
        assert "state = offline" in desk.openpbs.node()
        assert "comment = lrms_vm: " in desk.openpbs.node()
    desk.openpbs.in_service()
    assert desk.end(name) == (0, "RAN\n")


def test_what_is_left_behind_takes_the_node_out_and_leaves_the_job_alone(desk: Desk) -> None:
    name = desk.qsub(script='cd "$PBS_O_WORKDIR"; echo up > up; while [ ! -e go ]; do sleep 0.2; done; exit 5\n')
    desk.written("up")
    with without_libvirt(desk):
        (desk.directory / "go").touch()
        assert desk.openpbs.wait(name, "F", timeout_s=90)["Exit_status"] == "5"
        assert "comment = lrms_vm: leftovers" in desk.openpbs.node()
    desk.openpbs.in_service()
    assert desk.end(desk.qsub(script="true\n"))[0] == 0  # its prologue removes what that one left
    desk.nothing_left(name)


def test_a_vm_job_past_our_first_event_does_not_run(desk: Desk) -> None:
    desk.openpbs.event("-=execjob_begin")
    try:
        name = desk.qsub(script="echo RAN\n")
        desk.openpbs.wait(name, "H", timeout_s=60)
    finally:
        desk.openpbs.event("+=execjob_begin")
    assert desk.said("out") == ""
