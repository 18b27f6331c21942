"""Something of a Xen node breaks: the right one is blamed, nothing runs on the host, and nothing is left in dom0."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import pytest

from demo.jobs import wait
from demo.programs import wait_until
from demo.xen_layout import NODE, SITE_BRIDGE
from lrms_vm import network_rules
from tests.integration.xen.conftest import BOOT_S, CONF, MINIMAL, REAP, Desk

GUEST_LOST = "70:0"
SLOW_S = 8  # that xenstored does not answer
HUNG_S = 20
UNTIL_GO = "echo up > up; while test ! -e go; do sleep 0.5; done; "


@pytest.mark.guest
def test_a_crashed_and_a_destroyed_guest_fail_their_jobs_and_not_the_node(desk: Desk) -> None:
    """Two guests at once: a kernel panic, and `xl destroy` behind our back."""
    crashed, destroyed = (
        desk.sbatch(*MINIMAL, script=f"echo up > up-{name}; sleep 600; echo RAN ON\n")
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
def test_a_slow_xenstored_and_libvirtd_restarted_under_a_job_are_not_noticed(desk: Desk) -> None:
    """xenstored says nothing for a while as the guest is made, and again as it goes; on a bridge of the site's."""
    job_id = desk.sbatch(
        *(*MINIMAL, f"--vm-network=bridge:{SITE_BRIDGE}"),
        script=f"{UNTIL_GO} cat /sys/class/net/eth0/address; exit 4\n",
    )
    desk.noted(job_id, "domain")
    with silent_xenstored(desk):
        desk.node.run(f"sleep {SLOW_S}")
    desk.written("up")
    key = f"slurm-{job_id}.{NODE}"
    port = desk.node.run(f"ip link show master {SITE_BRIDGE}")
    assert network_rules.port_of(key) in port
    assert f"table bridge {network_rules.table_of(key)}\n" in desk.node.run("nft list tables")
    desk.node.run("systemctl restart libvirtd", timeout_s=120)
    assert desk.domain(job_id) in desk.node.run("xl list")
    with silent_xenstored(desk):
        (desk.directory / "go").touch()
        desk.node.run(f"sleep {SLOW_S}")
    job = desk.end(job_id, timeout_s=180)
    said = (job.state, job.exit_code, desk.output(job))
    assert said == ("FAILED", "4:0", f"{network_rules.mac_of(key)}\n")
    phases_ms = json.loads(desk.history(job_id))["phases_ms"]
    assert phases_ms["create"] > SLOW_S * 500 and phases_ms["teardown"] > SLOW_S * 500, phases_ms
    desk.nothing_left()
    desk.in_service()


@contextlib.contextmanager
def silent_xenstored(desk: Desk) -> Iterator[None]:
    """It is there, and answers nobody."""
    desk.node.run("kill -STOP $(pidof xenstored oxenstored)")
    try:
        yield
    finally:
        desk.node.run("kill -CONT $(pidof xenstored oxenstored)")


@pytest.fixture
def impatient(desk: Desk) -> Iterator[None]:
    """A node whose hooks wait for nothing long."""
    before = desk.node.run(f"cat {CONF}")
    desk.node.run(f"sed -i 's/^\\(prologue\\|epilogue\\)_timeout_s = .*/\\1_timeout_s = {HUNG_S}/' {CONF}")
    yield
    desk.node.write(CONF, before)


@pytest.mark.usefixtures("impatient")
def test_with_a_hung_xenstored_the_node_is_drained_and_reap_ends_what_came_late(desk: Desk) -> None:
    """libvirtd goes on making the guest when xenstored speaks again: long after the prologue gave up."""
    job_id = desk.sbatch(*MINIMAL, script="echo RAN\n")
    desk.noted(job_id, "domain")
    with silent_xenstored(desk):
        reason = desk.sent_back(job_id)
    assert reason.startswith("lrms_vm: ") and "libvirt" in reason
    wait_until("an answer", lambda: desk.node.call("timeout 5 xl list").returncode == 0, timeout_s=60)
    wait(desk.cluster.layout, job_id, timeout_s=120, until=lambda job: job.ended)
    desk.node.run(REAP, timeout_s=180)
    desk.nothing_left()
    desk.cluster.resume()


def test_a_killed_prologues_guest_is_removed_by_reap(desk: Desk) -> None:
    """slurmd dies with the prologue, so no epilogue comes; libvirt goes on starting the guest."""
    job_id = desk.sbatch(*MINIMAL, "--no-requeue", script="echo RAN\n")
    desk.noted(job_id, "domain")
    desk.node.run("systemctl kill --kill-whom=all --signal=KILL slurmd; systemctl stop slurmd")
    domain = desk.domain(job_id)
    wait_until("a guest without a job", lambda: domain in desk.node.run("xl list"), timeout_s=60, pause_s=0.5)
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
