"""The node at fault, a guest that cannot be removed, jobs that are deleted; and the load sensor, which sees the first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from demo import hypervisor
from demo.gridengine import NODE
from demo.programs import wait_until
from tests.integration.gridengine.conftest import Desk


@contextlib.contextmanager
def without_libvirt(desk: Desk) -> Iterator[None]:
    """Only this node's way to it."""
    link = desk.layout.libvirt_socket(NODE)
    link.unlink()
    try:
        yield
    finally:
        link.symlink_to(hypervisor.SOCKET)


def test_the_nodes_fault_disables_its_queues_and_the_load_sensor_sees_it(desk: Desk) -> None:
    with without_libvirt(desk):
        job_id = desk.qsub(script="echo RAN\n")
        desk.engine_out_of_service(job_id)
        assert desk.engine.state(job_id) in ("qw", "Rq")
        counter = desk.layout.places(NODE).retries / f"gridengine-{job_id}.{desk.engine.host}"
        assert counter.read_text() == "1"
        wait_until("vm_capable=0", lambda: "vm_capable=0" in desk.engine.ask("qstat", "-F", "vm_capable"), timeout_s=60)
    desk.engine.ask("qdel", str(job_id))
    desk.engine.enable()
    wait_until("vm_capable=1", lambda: "vm_capable=1" in desk.engine.ask("qstat", "-F", "vm_capable"), timeout_s=60)
    counter.unlink()


@pytest.mark.guest
def test_an_epilog_that_leaves_something_never_runs_the_job_again(desk: Desk) -> None:
    job_id = desk.qsub(script="echo RAN >> ran; while [ ! -e go ]; do sleep 0.2; done; exit 5\n")
    desk.written("ran")
    with without_libvirt(desk):
        (desk.directory / "go").touch()
        desk.engine.wait(job_id, timeout_s=120)
        assert desk.engine.state(job_id) == ""
        assert desk.engine.queue_state() == "d"
        assert desk.engine.accounting(job_id)["exit_status"].split()[0] == "5"
        assert "left behind" in desk.said(job_id, kind="err")
    desk.engine.enable()
    # the next prologue removes what that one left
    desk.refused(desk.qsub(script="echo RAN\n", image="no-such-image"))
    desk.nothing_left(job_id)
    assert (desk.directory / "ran").read_text() == "RAN\n"


@pytest.mark.guest
def test_a_deleted_job_may_tidy_up_and_a_notified_one_is_told(desk: Desk) -> None:
    loop = "echo up > {0}-up; while :; do sleep 0.2; done\n"
    polite = desk.qsub(script="trap 'echo tidied > polite-end; exit 0' TERM\n" + loop.format("polite"))
    told = desk.qsub("-notify", script="trap 'echo told > told-end' USR2; trap 'exit 0' TERM\n" + loop.format("told"))
    plain = desk.qsub(script="trap 'echo TIDIED > plain-end; exit 0' TERM\n" + loop.format("plain"), image=None)
    for name in ("polite-up", "told-up", "plain-up"):
        desk.written(name)
    for job_id in (polite, told, plain):
        desk.engine.ask("qdel", str(job_id))
    assert desk.written("polite-end", timeout_s=30) == "tidied\n"
    assert desk.written("told-end", timeout_s=30) == "told\n"
    for job_id in (polite, told, plain):
        desk.engine.wait(job_id, timeout_s=60)
        desk.nothing_left(job_id)
    assert not (desk.directory / "plain-end").exists()  # killed at once, as Grid Engine does
    assert desk.engine.queue_state() == ""
