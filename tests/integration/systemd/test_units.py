"""Our units as `lrms-vm install` leaves them where systemd runs: enabled, accepted, run; and what they do after a power
cut."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from demo.jobs import wait
from demo.systemd_cluster import SystemdCluster
from demo.systemd_node import NODE
from tests.integration.systemd.conftest import LRMS_VM, MINIMAL, Desk

INSTALL = f"{LRMS_VM} install --lrms=slurm"
TIMERS = "lrms-vm-scrub.timer lrms-vm-lists.timer"
REAP = "lrms-vm-reap@slurm.service"
TWO_DAYS_S = 2 * 86400
SCRUB_AT_MOST_S = 27 * 3600  # a day, and the timer's RandomizedDelaySec
UNITS = "/etc/systemd/system/lrms-vm-*"


@pytest.fixture(scope="module")
def said(cluster: SystemdCluster) -> Iterator[str]:
    """What `install` says on a node where systemd runs: the node was installed when it did not."""
    yield cluster.node.run(INSTALL, timeout_s=180)


def test_installing_enables_the_units_and_systemd_takes_them(desk: Desk, said: str) -> None:
    assert "by hand" not in said
    node = desk.node
    assert node.run(f"systemctl is-enabled {TIMERS} {REAP}").split() == ["enabled"] * 3
    assert node.run(f"systemctl is-active {TIMERS}").split() == ["active"] * 2
    assert node.run(f"systemctl list-timers --no-legend {TIMERS} | wc -l") == "2\n"
    # a unit's manual page comes with the Debian package only
    done = node.call(f"systemd-analyze verify --man=no {UNITS} && systemd-tmpfiles --create lrms_vm.conf")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert node.run("stat -c '%A %U' /run/lrms_vm") == "drwxr-xr-x root\n"


def test_what_the_timers_start_ends_well(desk: Desk, said: str) -> None:
    for unit in ("lrms-vm-scrub", "lrms-vm-lists"):
        desk.node.run(f"systemctl start {unit}.service", timeout_s=300)
        shown = desk.node.run(f"systemctl show --property=Result,ExecMainStatus,ConditionResult {unit}.service")
        assert sorted(shown.split()) == ["ConditionResult=yes", "ExecMainStatus=0", "Result=success"], unit
    journal = desk.node.run("journalctl --boot --no-pager --output=cat --unit=lrms-vm-scrub.service")
    assert " good\n" in journal or "nothing" in journal


def test_the_nightly_timer_is_due_as_ever_after_the_clock_was_two_days_ahead(desk: Desk, said: str) -> None:
    def due_in_s() -> float:
        shown = desk.node.run("systemctl show --value --property=NextElapseUSecRealtime lrms-vm-scrub.timer")
        return float(desk.node.run(f"date --date='{shown.strip()}' +%s")) - time.time()

    try:
        desk.node.run(f"date --set=@{time.time() + TWO_DAYS_S}")
        assert TWO_DAYS_S <= due_in_s() < TWO_DAYS_S + SCRUB_AT_MOST_S
    finally:
        desk.node.run(f"date --set=@{time.time()}")
    assert 0 < due_in_s() < SCRUB_AT_MOST_S


@pytest.mark.guest
def test_after_a_power_cut_reap_comes_before_slurmd_and_nothing_is_left(desk: Desk, said: str) -> None:
    """With a guest up: its disks are still there when the machine is, and the controller takes its job for running."""
    job_id = desk.up(desk.sbatch(*MINIMAL, script="echo up > up-$SLURM_JOB_ID; sleep 600\n"))
    disks = f"/var/lib/lrms_vm/jobs/slurm-{job_id}.{NODE}"
    desk.node.run(f"sync {disks}/*")
    desk.cluster.node.cut_power()
    desk.node.run("systemctl is-system-running --wait", timeout_s=120)
    reaped, slurmd = (
        int(desk.node.run(f"systemctl show --value --property=ExecMain{which}TimestampMonotonic {unit}"))
        for which, unit in (("Exit", REAP), ("Start", "slurmd.service"))
    )
    assert 0 < reaped < slurmd
    journal = desk.node.run("journalctl --boot --no-pager --output=cat -t lrms_vm")
    assert f'event=job job=slurm-{job_id}.{NODE} text="its guest was lost in a reboot: requeued"' in journal
    assert f"event=reaped job=slurm-{job_id}.{NODE}" in journal
    wait(desk.cluster.layout, job_id, timeout_s=60, until=lambda job: job.restarts == 1)
    desk.cluster.client("root").cancel(job_id)
    desk.end(job_id, timeout_s=120)
    desk.nothing_left()
    desk.in_service()


def test_what_was_installed_can_be_taken_away_again(desk: Desk, said: str) -> None:
    node = desk.node
    built = "/opt/lrms_vm/lib/lrms_vm.so", "/opt/lrms_vm/libexec/lrms-vm-guest"
    node.run(f"cp {' '.join(built)} /root")
    try:
        undone = node.run(f"{INSTALL} --undo")
        assert "by hand" not in undone
        assert node.call(f"systemctl is-active {TIMERS}").stdout.split() == [b"inactive"] * 2
        assert node.call(f"systemctl cat {TIMERS} {REAP}").returncode != 0
        assert node.run("systemctl --failed --no-legend; ls -d /etc/systemd/system/*lrms* 2>/dev/null || true") == ""
    finally:
        node.run(f"{INSTALL} --plugin=/root/lrms_vm.so --guest=/root/lrms-vm-guest && systemctl restart slurmd")
