"""Guests are counted, nodes are found by their hypervisor, and a sick hypervisor costs a node its VMs and nothing else."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo.jobs import control, wait
from demo.layout import NODES, Layout
from demo.programs import wait_until
from demo.slurm_conf import NODE_GUESTS
from lrms_vm.lrms import slurm
from tests.integration.slurm.conftest import Desk

SMALL = ("--mem=700", "--time=10", "--vm-image=minimal")
PLAIN = ("--mem=100", "--time=5", "--output=/dev/null")
VM = ("--gres=vm:1", "--constraint=vm")
LUA = """\
dofile("{lua}")
lrms_vm.vm_jobs_ask = {{ tres_per_node = "gres:vm:1", features = "vm" }}
"""


def node(layout: Layout, name: str) -> slurm.Node:
    return slurm.parse_node(control(layout, "-o", "show", "node", name), name)


def health(desk: Desk, name: str) -> subprocess.CompletedProcess[bytes]:
    """As slurmd runs it, by the file that `install` put in place, and without a word of where slurm.conf is."""
    program = desk.layout.prefix(name) / "libexec" / "slurm.health"
    return desk.cluster.client("root").call([program], env={"SLURMD_NODENAME": name, "SLURM_CONF": ""})


@contextmanager
def hypervisor_gone(desk: Desk, name: str) -> Iterator[None]:
    socket = desk.layout.libvirt_socket(name)
    target = socket.readlink()
    socket.unlink()
    try:
        yield
    finally:
        socket.symlink_to(target)


@pytest.fixture
def no_vm(desk: Desk) -> Iterator[None]:
    """The site would rather lose a node's VMs than the node."""
    before = {name: desk.layout.config(name).read_text() for name in NODES}
    for name, text in before.items():
        desk.layout.config(name).write_text(text.replace("version = 1\n", 'version = 1\nsick_node = "no-vm"\n', 1))
    try:
        yield
    finally:
        for name, text in before.items():
            desk.layout.config(name).write_text(text)
            control(desk.layout, "update", f"nodename={name}", "activefeatures=vm,vm_qemu", "comment=")


def test_no_more_guests_than_the_node_may_have(desk: Desk) -> None:
    """One job holds all the guests that n1 may have; there are memory and cpus for the next, which waits."""
    held = desk.sbatch(*PLAIN, "--nodelist=n1", f"--gres=vm:{NODE_GUESTS}", "-n1", script="sleep 60\n")
    desk.started(held, timeout_s=30)
    with pytest.raises(Exception, match=r"not available|configuration"):
        desk.sbatch(*PLAIN, "--nodelist=n1", f"--gres=vm:{NODE_GUESTS + 1}", script="true\n")
    waiting = desk.sbatch(*PLAIN, "--nodelist=n1", "--gres=vm:1", "-n1", script="true\n")
    job = wait(desk.layout, waiting, timeout_s=20, until=lambda job: job.reason not in ("None", "(null)", "Prolog"))
    assert (job.state, job.reason) == ("PENDING", "Resources")
    desk.cancel_all()


def test_a_node_is_found_by_its_hypervisor(desk: Desk) -> None:
    assert node(desk.layout, "n1").active == ("vm", "vm_qemu")
    job = desk.end(desk.sbatch(*PLAIN, "--constraint=vm_qemu", script="true\n"), timeout_s=60)
    assert job.state == "COMPLETED"
    with pytest.raises(Exception, match="feature"):
        desk.sbatch(*PLAIN, "--constraint=vm_xen", script="true\n")


def test_doctor_compares_slurms_words_with_the_node(desk: Desk) -> None:
    def doctor(name: str) -> dict[str, dict[str, object]]:
        words = [desk.layout.command, "--config", desk.layout.config(name), "doctor", "--json"]
        done = desk.cluster.client("root").call(words, env={"SLURMD_NODENAME": name})
        return {one["check"]: one for one in json.loads(done.stdout)}

    found = doctor("n1")
    assert found["slurm features"]["ok"] and found["slurm gres/vm"]["ok"], found
    assert found["hooks for slurm"]["ok"], found
    assert "2 cpus and 4000 MiB hold at most 2" in str(found["slurm gres/vm"]["found"])
    assert "memory" in str(found["confinement"]["found"])
    assert "1024 MiB" in str(found["hypervisor's memory"]["found"])
    control(desk.layout, "update", "nodename=n1", "activefeatures=vm_qemu")
    try:
        found = doctor("n1")
        assert not found["slurm features"]["ok"] and "health" in str(found["slurm features"]["remedy"])
    finally:
        control(desk.layout, "update", "nodename=n1", "activefeatures=vm,vm_qemu")


@pytest.mark.guest
def test_a_sick_hypervisor_costs_the_node_its_vms_and_the_job_runs_elsewhere(desk: Desk, no_vm: None) -> None:
    with hypervisor_gone(desk, "n1"):
        job_id = desk.sbatch(*SMALL, *VM, script="test -d /run/lrms_vm/tasks && echo IN\n")
        wait(desk.layout, job_id, timeout_s=60, until=lambda job: job.restarts > 0)
        known = node(desk.layout, "n1")
        assert "DRAIN" not in known.state and "DOWN" not in known.state
        assert known.active == () and known.available == ("vm", "vm_qemu")
        assert known.comment.startswith("lrms_vm: no VMs: ") and "libvirt" in known.comment
        plain = desk.sbatch(*PLAIN, "--nodelist=n1", script="true\n")
        assert desk.end(plain, timeout_s=60).state == "COMPLETED"
        assert health(desk, "n1").returncode == 69
        assert node(desk.layout, "n1").active == ()
    assert desk.started(job_id, timeout_s=60) == "n2"
    done = health(desk, "n1")
    assert (done.returncode, done.stdout) == (0, b"n1: can run VMs\n"), done.stderr
    known = node(desk.layout, "n1")
    assert (known.active, known.comment) == (("vm", "vm_qemu"), "")
    job = desk.end(job_id)
    assert (job.state, job.exit_code, job.nodes, desk.output(job)) == ("COMPLETED", "0:0", "n2", "IN\n")


def test_a_job_that_cannot_be_requeued_is_told(desk: Desk, no_vm: None) -> None:
    with hypervisor_gone(desk, "n1"):
        done = desk.user.call(
            ["srun", *SMALL[:2], "--vm-image=minimal", "--nodelist=n1", "echo", "RAN"], cwd=desk.directory
        )
        assert done.returncode == 69, done.stderr
        assert b"RAN" not in done.stdout and b"libvirt" in done.stderr
        assert "DRAIN" not in node(desk.layout, "n1").state
    assert health(desk, "n1").returncode == 0


def test_the_health_check_drains_where_the_site_says_so(desk: Desk) -> None:
    assert health(desk, "n1").returncode == 0
    with hypervisor_gone(desk, "n1"):
        assert health(desk, "n1").returncode == 69
        state, reason = desk.cluster.node_state("n1")
        assert "DRAIN" in state and reason.startswith("lrms_vm: hypervisor: ")
    desk.cluster.resume("n1")


@contextmanager
def health_checked(layout: Layout, every_s: int) -> Iterator[None]:
    """Each slurmd calls its node's health program, as `install` prints it for slurm.conf."""
    confs = {name: layout.slurm_conf(name) for name in (None, *NODES)}
    before = {name: conf.read_text() for name, conf in confs.items()}
    try:
        for name, conf in confs.items():
            program = layout.prefix(name or NODES[0]) / "libexec" / "slurm.health"
            conf.write_text(f"{before[name]}HealthCheckProgram={program}\nHealthCheckInterval={every_s}\n")
        control(layout, "reconfigure")
        yield
    finally:
        for name, conf in confs.items():
            conf.write_text(before[name])
        control(layout, "reconfigure")


def test_slurms_own_health_check_takes_vms_away_and_gives_them_back_and_a_job_that_waits_starts(
    desk: Desk, no_vm: None
) -> None:
    """Of no guest: what Slurm does with features, and when."""
    asks = (*PLAIN, "--nodelist=n1", "--constraint=vm")
    held = desk.sbatch(*asks, "--begin=now+1hour", script="true\n")  # while the node has them: sbatch refuses it else
    with health_checked(desk.layout, 5):
        with hypervisor_gone(desk, "n1"):
            wait_until("n1 has no VM features", lambda: node(desk.layout, "n1").active == (), timeout_s=60)
            assert "DRAIN" not in node(desk.layout, "n1").state
            assert node(desk.layout, "n2").active == ("vm", "vm_qemu")
            control(desk.layout, "update", f"jobid={held}", "starttime=now")
            wait(desk.layout, held, timeout_s=30, until=lambda job: job.reason == "BadConstraints")
        wait_until("n1 has them again", lambda: node(desk.layout, "n1").active == ("vm", "vm_qemu"), timeout_s=60)
        assert desk.end(held, timeout_s=120).state == "COMPLETED"


def test_each_vm_job_asks_for_a_guest_by_itself_where_the_site_says_so(desk: Desk) -> None:
    script = desk.layout.etc / "job_submit.lua"
    script.write_text(LUA.format(lua=Path(__file__).parents[3] / "spank" / "job_submit.lua"))
    with with_lua(desk.layout):
        for words in (["--vm-image=none-such"], ["--comment=lrms_vm:none-such"]):
            job_id = desk.sbatch("--mem=700", "--hold", *words, script="true\n")
            fields = desk.cluster.job_info(job_id).fields
            assert fields.get("TresPerNode") == "gres:vm:1", fields
            assert fields["Features"] == "vm"
        asked = desk.sbatch(
            "--mem=700", "--hold", "--vm-image=a", "--constraint=vm_qemu", "--gres=vm:2", script="true\n"
        )
        fields = desk.cluster.job_info(asked).fields
        assert fields.get("TresPerNode") == "gres:vm:2" and fields["Features"] == "(vm_qemu)&vm", fields
        plain = desk.cluster.job_info(desk.sbatch("--mem=100", "--hold", script="true\n")).fields
        assert "TresPerNode" not in plain and plain["Features"] == "(null)"
        desk.cancel_all()


@contextmanager
def with_lua(layout: Layout) -> Iterator[None]:
    conf = layout.slurm_conf()
    before = conf.read_text()
    try:
        conf.write_text(before + "JobSubmitPlugins=lua\n")
        control(layout, "reconfigure")
        wait_until(
            "lua is in use",
            lambda: "lua" in control(layout, "show", "config").split("JobSubmitPlugins")[1][:20],
            timeout_s=20,
        )
        yield
    finally:
        conf.write_text(before)
        control(layout, "reconfigure")
        (layout.etc / "job_submit.lua").unlink()
