"""The clock of a node is set under all that runs there; the controller's is right.

munge takes a credential that is at most five minutes off. Within them Slurm notices nothing; beyond, node and controller do
not hear each other until the clock is right again, or until SlurmdTimeout makes the node DOWN (docs/slurm.md).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from demo.jobs import control, wait
from demo.programs import wait_until
from demo.systemd_cluster import SystemdCluster
from demo.systemd_node import NODE
from tests.integration.systemd.conftest import LRMS_VM, MINIMAL, Desk

pytestmark = pytest.mark.guest

HOLD = "echo up > up-$SLURM_JOB_ID; while ! test -e go-$SLURM_JOB_ID; do sleep 0.5; done\n"
HOUR_S = 3600
WITHIN_MUNGE_S = 240
BEYOND_MUNGE_S = 2 * HOUR_S
RESET = f'{LRMS_VM} trust reset clock --reason "test_clock.py set it"'


@dataclass(frozen=True)
class Clock:
    """The node's, which `date` sets for all of its processes."""

    cluster: SystemdCluster

    def set(self, off_by_s: float) -> None:
        """So far ahead of ours, or behind."""
        self.cluster.node.run(f"date --set=@{time.time() + off_by_s:.3f}")


@pytest.fixture
def clock(desk: Desk) -> Iterator[Clock]:
    """Right again in the end, and the node back in service: after a failed test by the way that docs/slurm.md says."""
    made = Clock(desk.cluster)
    yield made
    made.set(0)
    if "DOWN" in desk.cluster.node_state()[0]:
        desk.node.run("systemctl restart slurmd")
    desk.in_service()


def release(desk: Desk, job_id: int) -> None:
    (desk.directory / f"go-{job_id}").touch()


def told_right(desk: Desk, job_id: int, *, since: float) -> None:
    """The job's is the one guest, and `lrms-vm status` says how long it is there."""
    rows = json.loads(desk.node.run(f"{LRMS_VM} status --json"))
    (row,) = (row for row in rows if row["phase"] == "guest up")
    assert row["job_id"] == str(job_id) and 0 < row["seconds"] < time.monotonic() - since, row


def kept_right(desk: Desk, job_id: int, *, at_most_s: float) -> None:
    """No duration of the job is negative, and none is longer than the test."""
    kept = desk.history(job_id)
    (row,) = json.loads(desk.node.run(f"{LRMS_VM} status --json {job_id}"))
    phases_s = {name: ms / 1e3 for name, ms in kept["phases_ms"].items()}
    assert {"create", "guest_up", "payload", "teardown"} <= set(phases_s)
    assert all(0 <= seconds < at_most_s for seconds in phases_s.values()), phases_s
    assert sum(phases_s[name] for name in ("create", "payload")) < kept["lasted_s"] < at_most_s
    assert row["seconds"] == pytest.approx(kept["lasted_s"], abs=0.1)


def clean(desk: Desk) -> None:
    """Nothing is left, and nobody has taken the node out."""
    desk.nothing_left()
    assert desk.cluster.node_state() == ("IDLE", "")


def clock_found(desk: Desk) -> dict[str, Any]:
    """What `doctor` says of the clock."""
    (found,) = (one for one in json.loads(desk.node.call(f"{LRMS_VM} doctor --json").stdout) if one["check"] == "clock")
    assert isinstance(found, dict)
    return found


def unheard(desk: Desk, job_id: int) -> int:
    """How often slurmstepd could not tell of the job's end."""
    return int(desk.node.run(f"grep -cF '[{job_id}.batch] Retrying job complete RPC' /var/log/slurmd.log || true"))


def test_after_two_days_ahead_and_back_vm_jobs_are_refused_until_an_administrator_lets_the_time_count(
    desk: Desk, clock: Clock
) -> None:
    desk.node.run(f"{LRMS_VM} image pull minimal")  # no bytes to fetch later: SlurmdTimeout is a minute
    clock.set(48 * HOUR_S)
    desk.node.run(f"{LRMS_VM} image pull minimal")  # decided about, at that time
    clock.set(0)
    desk.in_service()
    job = desk.end(desk.sbatch(*MINIMAL, script="echo RAN\n"))
    said = desk.output(job)
    assert (job.state, job.exit_code) == ("FAILED", "75:0"), said
    assert "the clock says" in said and 'lrms-vm trust reset clock --reason "..."' in said and "RAN" not in said
    job = desk.end(desk.sbatch("--mem=100", "--time=5", script="echo RAN\n"))
    assert (job.state, job.output()) == ("COMPLETED", "RAN\n")  # without a VM
    clean(desk)
    found = clock_found(desk)
    assert not found["ok"] and "the clock says" in found["found"]
    desk.node.run(RESET)
    assert clock_found(desk)["ok"]


def test_a_job_goes_on_under_a_clock_that_is_off_and_its_end_is_told_when_slurm_hears_the_node_again(
    desk: Desk, clock: Clock
) -> None:
    """Four minutes are nothing. Two hours: Slurm gives the job up once; slurmd's restart clears the node for it. Then not."""
    layout, began = desk.cluster.layout, time.monotonic()
    job_id = desk.sbatch(*MINIMAL, script=HOLD + "exit 3\n")
    desk.guest(job_id)
    clock.set(WITHIN_MUNGE_S)  # while it boots
    desk.up(job_id)
    told_right(desk, job_id, since=began)
    clock.set(BEYOND_MUNGE_S)
    control(layout, "update", f"nodename={NODE}", "state=down", "reason=as after SlurmdTimeout")
    wait(layout, job_id, timeout_s=30, until=lambda job: job.restarts == 1)
    told_right(desk, job_id, since=began)  # nobody reaches it
    clock.set(0)

    again, before = time.monotonic(), unheard(desk, job_id)
    (desk.directory / f"up-{job_id}").unlink()
    desk.node.run("systemctl restart slurmd")
    desk.up(job_id, restarts=1)
    clock.set(-WITHIN_MUNGE_S)
    told_right(desk, job_id, since=again)
    clock.set(BEYOND_MUNGE_S)
    release(desk, job_id)
    wait_until("the controller does not hear the node", lambda: unheard(desk, job_id) > before, timeout_s=40)
    assert desk.cluster.job_info(job_id).state == "RUNNING"
    clock.set(WITHIN_MUNGE_S)
    job = desk.end(job_id)
    assert (job.state, job.exit_code, job.restarts, desk.output(job)) == ("FAILED", "3:0", 1, "")
    kept_right(desk, job_id, at_most_s=time.monotonic() - again)
    clean(desk)
