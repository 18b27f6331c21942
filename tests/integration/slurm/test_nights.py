"""Bad nights with real daemons: libvirtd hangs, a guest stops, the controller is away.

What needs no daemon is contract/test_nights.py's; more kinds, at random moments, are `make soak`'s.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from demo import hypervisor
from demo.cluster import Cluster
from demo.layout import NODES
from demo.programs import Daemon, wait_until
from tests.integration.slurm.conftest import Desk

pytestmark = pytest.mark.guest

SMALL = ("--mem=700", "--time=10", "--vm-image=minimal", "--nodelist=n1")
HOLD = "echo up > up\nwhile ! test -e go; do sleep 0.2; done\nexit 3\n"
STOPPED_S = 4.0


def qemu_of(job_id: int) -> int:
    return int(Path(f"/run/libvirt/qemu/lrms_vm-slurm-{job_id}.n1.pid").read_text())


def libvirtd(cluster: Cluster) -> Daemon:
    daemon = hypervisor.daemons(cluster.layout)[1]
    if daemon.pid is None:
        pytest.skip("libvirtd is the machine's own: it is not ours to kill")
    return daemon


def as_if_nothing_had_been(desk: Desk, job_id: int) -> None:
    (desk.directory / "go").touch()
    job = desk.end(job_id)
    assert (job.state, job.exit_code) == ("FAILED", "3:0"), job.output()
    assert desk.cluster.node_state("n1")[0] == "IDLE"


def test_a_libvirtd_that_hangs_under_a_prologue_costs_time_only(desk: Desk) -> None:
    pid = libvirtd(desk.cluster).pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        job_id = desk.sbatch(*SMALL, script=HOLD)
        time.sleep(STOPPED_S)
    finally:
        os.kill(pid, signal.SIGCONT)
    desk.written("up")
    as_if_nothing_had_been(desk, job_id)


def test_a_guest_that_is_stopped_can_be_cancelled_and_leaves_nothing(desk: Desk) -> None:
    """Its user sees a job that hangs; after two minutes its connection would count as lost (channel.py)."""
    job_id = desk.sbatch(*SMALL, script=HOLD)
    desk.written("up")
    os.kill(qemu_of(job_id), signal.SIGSTOP)
    desk.user.cancel(job_id)
    job = desk.end(job_id, timeout_s=90)
    assert job.state == "CANCELLED"
    assert desk.cluster.node_state("n1")[0] == "IDLE"


def test_a_controller_that_is_away_when_the_job_ends_learns_of_it_later(desk: Desk) -> None:
    controller = desk.cluster.daemons()[1]
    job_id = desk.sbatch(*SMALL, script=HOLD)
    desk.written("up")
    pid = controller.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until("slurmctld gone", lambda: controller.pid is None, timeout_s=10)
    (desk.directory / "go").touch()
    time.sleep(5)  # the payload ends, and its end cannot be told
    controller.start()
    as_if_nothing_had_been(desk, job_id)
    for node in NODES:  # until a slurmd has spoken to it, a new slurmctld calls its node UNKNOWN
        wait_until(f"{node} is idle", lambda node=node: desk.cluster.node_state(node)[0] == "IDLE", timeout_s=120)
