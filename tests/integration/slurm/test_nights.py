"""Bad nights with real daemons: libvirtd hangs, a guest stops, a node reboots.

What needs no daemon is contract/test_nights.py's, the controller test_controller.py's; more kinds, at random moments,
are `make soak`'s.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from demo import hypervisor, leftovers
from demo.cluster import Cluster
from demo.jobs import control, wait
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


def test_a_libvirtd_that_is_killed_and_comes_back_leaves_nothing_of_the_guest(desk: Desk) -> None:
    """It no longer knows of the control groups in which it had put the guest (docs/confinement.md)."""
    daemon = libvirtd(desk.cluster)
    pid = daemon.pid
    assert pid is not None
    job_id = desk.sbatch(*SMALL, script=HOLD)
    desk.written("up")
    os.kill(pid, signal.SIGKILL)
    wait_until("libvirtd gone", lambda: daemon.pid is None, timeout_s=10)
    daemon.start()
    wait_until("libvirtd answers", hypervisor.answers, timeout_s=60, pause_s=0.5)
    as_if_nothing_had_been(desk, job_id)


@pytest.fixture
def five_seconds(desk: Desk) -> Iterator[None]:
    """For so long a guest may say nothing."""
    config = desk.layout.config("n1")
    before = config.read_text()
    config.write_text(before.replace("version = 1\n", "version = 1\nguest_silent_s = 5\n"))
    yield
    config.write_text(before)


def test_a_guest_that_is_stopped_for_too_long_is_lost_and_its_user_is_told(desk: Desk, five_seconds: None) -> None:
    job_id = desk.sbatch(*SMALL, script=HOLD)
    desk.written("up")
    os.kill(qemu_of(job_id), signal.SIGSTOP)
    stopped_at = time.monotonic()
    job = desk.end(job_id, timeout_s=60)
    assert (job.state, job.exit_code) == ("FAILED", "70:0"), job.output()
    assert 4 < time.monotonic() - stopped_at < 40
    assert "lrms-vm: the guest was lost under the payload" in job.output()
    assert desk.cluster.node_state("n1")[0] == "IDLE"


def test_a_guest_that_is_stopped_can_be_cancelled_and_leaves_nothing(desk: Desk) -> None:
    job_id = desk.sbatch(*SMALL, script=HOLD)
    desk.written("up")
    os.kill(qemu_of(job_id), signal.SIGSTOP)
    desk.user.cancel(job_id)
    job = desk.end(job_id, timeout_s=90)
    assert job.state == "CANCELLED"
    assert desk.cluster.node_state("n1")[0] == "IDLE"


def kill_slurmd(desk: Desk) -> None:
    slurmd = desk.cluster.slurmd("n1")
    pid = slurmd.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until("slurmd gone", lambda: slurmd.pid is None, timeout_s=10)


def test_a_slurmd_killed_while_the_guest_boots_runs_and_goes_costs_nothing(desk: Desk) -> None:
    """Killed while the prologue runs: test_faults.py."""
    slurmd, libvirt = desk.cluster.slurmd("n1"), libvirtd(desk.cluster).pid
    assert libvirt is not None
    job_id = desk.sbatch(*SMALL, script=HOLD)
    wait_until(
        "the batch step", lambda: any(words.startswith(b"slurmstepd") for words in words_of(job_id)), timeout_s=60
    )
    kill_slurmd(desk)
    slurmd.start()
    desk.written("up")
    kill_slurmd(desk)
    slurmd.start()
    os.kill(libvirt, signal.SIGSTOP)  # an epilogue takes long enough to be met
    try:
        (desk.directory / "go").touch()
        wait_until("the epilogue", lambda: any(b"epilogue" in words for words in words_of(job_id)), timeout_s=60)
        kill_slurmd(desk)
    finally:
        os.kill(libvirt, signal.SIGCONT)
    slurmd.start()
    as_if_nothing_had_been(desk, job_id)


def words_of(job_id: int) -> list[bytes]:
    """The command lines of what runs for a job, its hooks included."""
    found = []
    for pid in processes_of(job_id):
        with suppress(OSError):
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    return found


def lose_power(desk: Desk, job_id: int) -> None:
    """What a reboot of n1 ends: its slurmd, the job's slurmstepd, its processes and guest, its run_dir and cgroups."""
    key, cluster = f"slurm-{job_id}.n1", desk.cluster
    pid = cluster.slurmd("n1").pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    while victims := {*processes_of(job_id), *(int(line.split()[0]) for line in leftovers.processes(key))}:
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)

    def no_cgroup() -> bool:
        for group in leftovers.cgroups(f"{hypervisor.DOMAIN_PREFIX}{key}"):
            with suppress(OSError):
                group.rmdir()  # libvirtd, which n2 has too, takes its own away
        return not leftovers.cgroups(f"{hypervisor.DOMAIN_PREFIX}{key}")

    wait_until("no cgroup left of it", no_cgroup, timeout_s=20)
    shutil.rmtree(desk.layout.places("n1").run_dir)


def processes_of(job_id: int) -> Iterator[int]:
    for directory in leftovers.entries(Path("/proc")):
        with suppress(OSError):
            words, environment = ((directory / name).read_bytes() for name in ("cmdline", "environ"))
            if words.startswith(
                f"slurmstepd: [{job_id}.".encode()
            ) or f"SLURM_JOB_ID={job_id}".encode() in environment.split(b"\0"):
                yield int(directory.name)


def boot(desk: Desk) -> None:
    """As systemd has it: reap, and then slurmd, which says how long the machine has been up."""
    reap = ["--config", desk.layout.config("n1"), "reap", "--lrms=slurm", "--node=n1"]
    done = desk.cluster.client("root").call([desk.layout.command, *reap])
    assert done.returncode == 0, done.stderr
    slurmd = desk.cluster.slurmd("n1")
    replace(slurmd, argv=(*slurmd.argv, "-b")).start()


def back_in_the_queue(desk: Desk, job_id: int) -> None:
    """And of its first time on n1, which is in service again, nothing is left."""
    wait(desk.layout, job_id, timeout_s=30, until=lambda job: job.state == "PENDING" and job.restarts == 1)
    desk.nothing_left(job_id)
    wait_until("n1 is idle", lambda: desk.cluster.node_state("n1")[0] == "IDLE", timeout_s=30)


def test_a_node_that_reboots_quickly_loses_its_guest_and_the_job_starts_anew(desk: Desk) -> None:
    """Slurm itself would take it for running until BatchStartTimeout is over."""
    job_id = desk.sbatch(*SMALL, script=HOLD)
    desk.written("up")
    lose_power(desk, job_id)
    assert desk.cluster.job_info(job_id).state == "RUNNING"
    boot(desk)
    back_in_the_queue(desk, job_id)
    (desk.directory / "up").unlink()
    desk.written("up")
    as_if_nothing_had_been(desk, job_id)


@pytest.fixture
def impatient(desk: Desk) -> Iterator[None]:
    """A controller that gives a silent node up sooner."""
    confs = [desk.layout.slurm_conf(node) for node in (None, *NODES)]
    before = [conf.read_text() for conf in confs]
    for conf, text in zip(confs, before, strict=True):
        conf.write_text(re.sub("(?m)^SlurmdTimeout=.*$", "SlurmdTimeout=12", text))
    control(desk.layout, "reconfigure")
    yield
    for conf, text in zip(confs, before, strict=True):
        conf.write_text(text)
    control(desk.layout, "reconfigure")


def test_a_node_that_is_away_for_long_comes_back_clean(desk: Desk, impatient: None) -> None:
    job_id = desk.sbatch(*SMALL, script=HOLD)
    desk.written("up")
    lose_power(desk, job_id)
    wait_until("n1 is given up", lambda: "DOWN" in desk.cluster.node_state("n1")[0], timeout_s=60)
    assert desk.cluster.job_info(job_id).state == "PENDING"
    boot(desk)
    back_in_the_queue(desk, job_id)
