"""Something of a Xen node breaks: the right one is blamed, nothing runs on the host, and nothing is left in dom0."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from demo.jobs import wait
from demo.xen_layout import NODE
from tests.integration.xen.conftest import BOOT_S, Desk

SMALL = ("--mem=900", "--time=20", "--vm-image=hep-jets")
GUEST_LOST = "70:0"
REAP = f"/opt/lrms_vm/bin/lrms-vm reap --lrms slurm --node {NODE}"


@pytest.mark.guest
def test_a_crashed_and_a_destroyed_guest_fail_their_jobs_and_not_the_node(desk: Desk) -> None:
    """Two guests at once: a kernel panic, and `xl destroy` behind our back."""
    crashed, destroyed = (
        desk.sbatch(*SMALL, script=f"echo up > up-{name}; sleep 600; echo RAN ON\n")
        for name in ("crashed", "destroyed")
    )
    desk.written("up-crashed", timeout_s=2 * BOOT_S)
    desk.written("up-destroyed")
    desk.node.run(f"xl sysrq {desk.domain(crashed)} c")
    desk.node.run(f"xl destroy {desk.domain(destroyed)}")
    for job_id in (crashed, destroyed):
        job = desk.end(job_id, timeout_s=180)
        assert (job.state, job.exit_code) == ("FAILED", GUEST_LOST), job.output()
        assert "lrms-vm: " in job.output() and "guest" in job.output()
        assert "RAN ON" not in job.output()
    desk.nothing_left()
    desk.in_service()


@pytest.mark.guest
def test_libvirtd_restarted_under_a_job_is_not_noticed(desk: Desk) -> None:
    job_id = desk.sbatch(*SMALL, script="echo up > up; while test ! -e go; do sleep 1; done; echo fine; exit 4\n")
    desk.written("up", timeout_s=2 * BOOT_S)
    desk.node.run("systemctl restart libvirtd", timeout_s=120)
    assert desk.domain(job_id) in desk.node.run("xl list")
    (desk.directory / "go").touch()
    job = desk.end(job_id, timeout_s=180)
    assert (job.state, job.exit_code, desk.output(job)) == ("FAILED", "4:0", "fine\n")
    desk.nothing_left()
    desk.in_service()


def test_a_killed_prologues_guest_is_removed_by_reap(desk: Desk) -> None:
    """slurmd dies with the prologue, so no epilogue comes; libvirt goes on starting the guest."""
    job_id = desk.sbatch(*SMALL, "--no-requeue", script="echo RAN\n")
    desk.noted(job_id, "domain")
    desk.node.run("systemctl kill --kill-whom=all --signal=KILL slurmd; systemctl stop slurmd")
    deadline = time.monotonic() + 60
    while desk.domain(job_id) not in desk.node.run("xl list"):
        assert time.monotonic() < deadline, "the guest was never started"
        time.sleep(0.5)
    _forget(desk, job_id)
    desk.node.run(REAP, timeout_s=180)
    try:
        desk.nothing_left()
    finally:
        desk.node.run("systemctl start slurmd")
    desk.cluster.resume()
    assert "RAN" not in desk.cluster.job_info(job_id).output()


def _forget(desk: Desk, job_id: int) -> None:
    """Have the controller take a job of a dead node for ended."""
    root = desk.cluster.client("root")
    root.cancel(job_id)
    done = root.call(["scontrol", "update", f"nodename={NODE}", "state=down", "reason=test"])
    assert done.returncode == 0, done.stderr.decode()
    wait(desk.cluster.layout, job_id, timeout_s=60, until=lambda job: job.ended)


@contextlib.contextmanager
def hog(desk: Desk, leave_mib: int) -> Iterator[None]:
    """Somebody else's paused guest, which takes what Xen has free but for so much."""
    free = int(desk.node.run("xl info free_memory"))
    config = (
        'name="hog"\nkernel="/var/lib/lrms_vm-site/vmlinuz"\nramdisk="/var/lib/lrms_vm-site/initrd.img"\n'
        f"memory={free - leave_mib}\nvcpus=1\n"
    )
    desk.node.run("cat > /root/hog.cfg; xl create -p /root/hog.cfg", stdin=config.encode())
    try:
        yield
    finally:
        desk.node.run("xl destroy hog; rm /root/hog.cfg")


def test_too_little_memory_in_xen_drains_the_node_and_says_so(desk: Desk) -> None:
    with hog(desk, leave_mib=500):
        job_id = desk.sbatch(*SMALL, script="echo RAN\n")
        job = wait(
            desk.cluster.layout,
            job_id,
            timeout_s=BOOT_S,
            until=lambda job: job.ended or (job.state == "PENDING" and job.restarts > 0),
        )
        desk.user.cancel(job_id)
        state, reason = desk.cluster.node_state()
        assert "DRAIN" in state and reason.startswith("lrms_vm: hypervisor-memory"), (state, reason)
        assert "RAN" not in job.output()
    desk.nothing_left()
    desk.cluster.resume()
