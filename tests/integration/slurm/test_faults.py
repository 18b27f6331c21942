"""Something of the node or of ours breaks: jobs go elsewhere or fail closed, never to the host, and nothing is left."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo import leftovers
from demo.cluster import Cluster
from demo.jobs import JobInfo, wait
from lrms_vm import record
from tests.integration.slurm.conftest import Desk

SMALL = ("--mem=700", "--time=10", "--vm-image=minimal")
WHERE = "test -d /run/lrms_vm/tasks && echo in the guest || echo ON THE HOST\n"


@contextmanager
def changed(path: Path, text: str, cluster: Cluster, node: str) -> Iterator[None]:
    """Another text in a node's configuration, and its slurmd started with that; afterwards as before."""
    before = path.read_text()
    path.write_text(text)
    _restart(cluster, node)
    try:
        yield
    finally:
        path.write_text(before)
        _restart(cluster, node)


def _restart(cluster: Cluster, node: str) -> None:
    cluster.slurmd(node).stop()
    cluster.slurmd(node).start()
    time.sleep(0.5)  # registered


@pytest.mark.guest
def test_with_a_dead_hypervisor_the_node_is_drained_and_the_job_runs_elsewhere(desk: Desk) -> None:
    socket = desk.layout.libvirt_socket("n1")
    target = socket.readlink()
    socket.unlink()
    try:
        job_id = desk.sbatch(*SMALL, "--nodelist=n1", script=WHERE)
        wait(desk.layout, job_id, timeout_s=60, until=lambda job: job.state == "PENDING" and job.restarts > 0)
        state, reason = desk.cluster.node_state("n1")
        assert "DRAIN" in state
        assert reason.startswith("lrms_vm: ") and "libvirt" in reason
    finally:
        socket.symlink_to(target)
    # Nobody could ask the dead hypervisor whether the guest is gone, so its files stayed: for `reap` on a healthy node.
    reap(desk, "n1")
    desk.nothing_left(job_id)
    desk.cluster.client("root").call(["scontrol", "update", f"jobid={job_id}", "nodelist="])
    job = desk.end(job_id)
    assert (job.state, job.exit_code, job.nodes) == ("COMPLETED", "0:0", "n2")
    assert desk.output(job) == "in the guest\n"
    desk.cluster.resume("n1")


def reap(desk: Desk, node: str) -> None:
    """As an administrator does, or slurmd's node health check."""
    words = [desk.layout.command, "--config", desk.layout.config(node), "reap", "--lrms=slurm", f"--node={node}"]
    done = desk.cluster.client("root").call(words)
    assert done.returncode == 0, done.stderr.decode()


def test_with_the_plugin_missing_nothing_runs_on_the_host(desk: Desk) -> None:
    plugstack = desk.layout.etc / "n1" / "plugstack.conf"
    with changed(plugstack, "", desk.cluster, "n1"):
        job_id = desk.sbatch(*SMALL, "--nodelist=n1", script="echo RAN; touch ran\n")
        job = requeued(desk, job_id)
        assert "RAN" not in job.output() and not (desk.directory / "ran").exists()
        state, reason = desk.cluster.node_state("n1")
        assert "DRAIN" in state and reason.startswith("lrms_vm: plugin-missing"), (state, reason)
    desk.cluster.resume("n1")


def test_with_the_plugin_replaced_and_slurmd_not_restarted_the_reason_says_so(desk: Desk) -> None:
    plugin = desk.layout.plugin("n1")
    fresh = plugin.with_suffix(".new")
    shutil.copy2(plugin, fresh)
    fresh.replace(plugin)  # as `install` does
    job_id = desk.sbatch(*SMALL, "--nodelist=n1", script="echo RAN; touch ran\n")
    job = requeued(desk, job_id)
    assert "RAN" not in job.output() and not (desk.directory / "ran").exists()
    state, reason = desk.cluster.node_state("n1")
    assert "DRAIN" in state and reason.startswith("lrms_vm: plugin-missing") and "replaced" in reason, (state, reason)
    _restart(desk.cluster, "n1")
    desk.cluster.resume("n1")


def requeued(desk: Desk, job_id: int) -> JobInfo:
    """Wait until Slurm put the job back into its queue, or it ended; take it out of the queue, look for leftovers.

    Not with --no-requeue: slurmd 22.05 then tells the controller of the failed prolog again and again, for ever, and
    each time the node is drained (docs/slurm.md).
    """
    job = wait(
        desk.layout, job_id, timeout_s=60, until=lambda job: job.ended or (job.state == "PENDING" and job.restarts > 0)
    )
    desk.user.cancel(job_id)
    desk.nothing_left(job_id)
    return job


def test_with_the_prolog_missing_nothing_runs_on_the_host(desk: Desk) -> None:
    conf = desk.layout.slurm_conf("n1")
    without = "\n".join(line for line in conf.read_text().splitlines() if not line.startswith("Prolog="))
    with changed(conf, without + "\n", desk.cluster, "n1"):
        job_id = desk.sbatch(*SMALL, "--nodelist=n1", script="echo RAN; touch ran\n")
        job = desk.end(job_id, timeout_s=60)
        assert job.state == "FAILED"
        assert "RAN" not in job.output() and not (desk.directory / "ran").exists()
        assert "lrms_vm" in job.output()


@pytest.mark.parametrize("step", [step for step in record.STEPS if step != "network"])
def test_a_prologue_killed_at_a_step_leaves_nothing(desk: Desk, step: str) -> None:
    job_id = desk.sbatch(*SMALL, "--nodelist=n1", script="echo RAN\n")
    _when_noted(desk, job_id, "n1", step, lambda: _kill_prologue(desk, job_id))
    job = requeued(desk, job_id)
    # Where the prologue had come to its end before the signal did, the job ran: in its guest, and all is well.
    if job.state != "COMPLETED":
        assert "RAN" not in job.output()
        assert "DRAIN" in desk.cluster.node_state("n1")[0]
        desk.cluster.resume("n1")


def test_slurmd_killed_during_the_prologue_leaves_nothing(desk: Desk) -> None:
    slurmd = desk.cluster.slurmd("n1")
    job_id = desk.sbatch(*SMALL, "--nodelist=n1", script="echo RAN\n")

    def kill() -> None:
        pid = slurmd.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    _when_noted(desk, job_id, "n1", "lease", kill)
    desk.user.cancel(job_id)
    time.sleep(2)  # the prologue has no parent any more and goes on to its end
    slurmd.start()
    desk.end(job_id, timeout_s=90)
    assert "RAN" not in desk.cluster.job_info(job_id).output()


def test_a_job_without_a_request_is_untouched(desk: Desk) -> None:
    job_id = desk.sbatch("--mem=200", script=WHERE + "env | grep -c LRMS_VM; exit 5\n")
    job = desk.end(job_id, timeout_s=60)
    assert (job.state, job.exit_code, job.output()) == ("FAILED", "5:0", "ON THE HOST\n0\n")
    assert desk.history(job_id) == []


def _when_noted(desk: Desk, job_id: int, node: str, step: str, act: Callable[[], None]) -> None:
    """Do something as soon as the prologue's record says that a step is about to be taken."""
    noted = desk.layout.places(node).job(f"slurm-{job_id}.{node}").record
    needle = f'"step": "{step}"'
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if needle in noted.read_text():
                act()
                return
        except FileNotFoundError:
            pass
        time.sleep(0.001)
    raise AssertionError(f"the prologue of job {job_id} never came to {step}")


def _kill_prologue(desk: Desk, job_id: int) -> None:
    """By its environment: the hook of this very job."""
    for directory in leftovers.entries(Path("/proc")):
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
            environment = (directory / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"prologue" in words and f"SLURM_JOB_ID={job_id}".encode() in environment:
            os.kill(int(directory.name), signal.SIGKILL)
