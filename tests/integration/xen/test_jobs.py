"""Real jobs in paravirtualised guests on a real Xen. The guests are started together and share the machine."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from demo import site, users, validation
from demo.jobs import JobInfo
from demo.layout import USER
from demo.xen_cluster import XenCluster
from tests.integration.xen.conftest import CONF, GRUB, MINIMAL, Desk, make_desk

JETS = ("--mem=1000", "--time=20", "--vm-image=hep-jets", "--vm-network=nat")
OWN_KERNEL = ("--mem=500", "--time=20", "--vm-image=own-kernel")
PYGRUB = 'pygrub = "restricted"\npygrub_uid = 64321\n'
WHERE = "test -d /run/lrms_vm/tasks && echo in the guest || echo ON THE HOST\n"
EVENTS = 3  # of the hundred that the example makes: a guest in an emulated machine is slow


@dataclass
class Batch:
    """Jobs by the name of what they show."""

    desk: Desk
    ids: dict[str, int] = field(default_factory=dict)

    def end(self, name: str) -> tuple[JobInfo, str]:
        job = self.desk.end(self.ids[name], timeout_s=600)
        return job, self.desk.output(job)


@pytest.fixture(scope="module")
def own_kernel(cluster: XenCluster) -> Iterator[None]:
    """The node's configuration with GRUB for Xen, pygrub, and the site's for PVH guests, among its kernels."""
    text = cluster.node.run(f"cat {CONF}")
    sha256 = cluster.node.run(f"sha256sum {GRUB}").split()[0]
    own = f'\n[kernels.own]\nboot = "guest"\nvmlinuz = "{GRUB}"\nvmlinuz_sha256 = "{sha256}"\n'
    direct = "".join(re.findall(r"^(?:vmlinuz|initrd|cmdline)\w* = .*\n", text, re.MULTILINE))
    pvh = f'\n[kernels.pvh]\nguest = "pvh"\n{direct}'
    cluster.node.write(CONF, PYGRUB + text + own + pvh + '\n[kernels.pygrub]\nboot = "pygrub"\n')
    yield
    cluster.node.write(CONF, text)


@pytest.fixture(scope="module")
def batch(cluster: XenCluster, before: frozenset[str], own_kernel: None) -> Iterator[Batch]:
    desk = make_desk(cluster, before, "batch")
    batch = Batch(desk)
    jets = desk.directory / "jets"
    shutil.copytree(validation.JETS, jets)
    user = users.find(USER)
    for path in (jets, *jets.iterdir()):
        os.chown(path, user.uid, user.gid)
    script = (jets / "job.sh").read_text().partition("\n")[2]
    # ways into the guest: over its network, and over its second console
    batch.ids["jets"] = desk.sbatch(*JETS, f"--chdir={jets}", script=f"set -- {EVENTS}\n{script}")
    batch.ids["codes"] = desk.sbatch(
        *(*MINIMAL, f"--error={desk.directory}/codes.err"),
        script=WHERE
        + "cat /sys/hypervisor/type; echo to stderr >&2\n"
        + "srun sh -c 'echo task in $(cat /sys/hypervisor/type); exit 9'; echo srun: $?\n"
        + "srun sh -c 'kill -SEGV $$'; echo srun: $?; exit 7\n",
    )
    for name in ("own", "pygrub"):
        batch.ids[name] = desk.sbatch(*OWN_KERNEL, f"--vm-kernel={name}", script=WHERE + "cat /proc/cmdline\n")
    batch.ids["pvh"] = desk.sbatch(*MINIMAL, "--vm-kernel=pvh", script=WHERE + "cat /sys/hypervisor/guest_type\n")
    batch.ids["none"] = desk.sbatch(*MINIMAL, "--vm-kernel=pygrub", script="echo RAN\n")
    yield batch
    desk.cancel_all()


def test_the_node_is_ready(desk: Desk) -> None:
    done = desk.node.call("/opt/lrms_vm/bin/lrms-vm doctor", timeout_s=120)
    said = done.stdout.decode()
    assert done.returncode == 0, said
    assert "xen:///system, domains of type xen" in said


@pytest.mark.guest
def test_the_jets_of_a_xen_guest_are_those_of_the_same_payload_outside(batch: Batch) -> None:
    job, output = batch.end("jets")
    assert (job.state, job.exit_code) == ("COMPLETED", "0:0"), output
    result = batch.desk.directory / "jets" / "jets.json"
    assert json.loads(result.read_text())["events"] == EVENTS
    found = validation.compare(result, validation.run_outside(batch.desk.cluster.layout.site, like=result))
    assert found.identical and found.jets > 0
    assert f"job {job.job_id} of {USER}" in output


@pytest.mark.guest
def test_exit_codes_streams_and_tasks(batch: Batch) -> None:
    job, output = batch.end("codes")
    assert (job.state, job.exit_code) == ("FAILED", "7:0"), output
    assert output == "in the guest\nxen\ntask in xen\nsrun: 9\nsrun: 139\n"
    error = (batch.desk.directory / "codes.err").read_text()
    assert "to stderr\n" in error and "ON THE HOST" not in error


@pytest.mark.guest
@pytest.mark.parametrize("by", ["own", "pygrub"])
def test_an_image_boots_its_own_kernel_by_grub_in_the_guest_or_pygrub_in_dom0(batch: Batch, by: str) -> None:
    job, output = batch.end(by)
    assert job.state == "COMPLETED", output
    assert output == "in the guest\nroot=/dev/xvda rw console=hvc0 quiet\n"  # of own-kernel.cfg, not the site's


@pytest.mark.guest
def test_a_pvh_guest(batch: Batch) -> None:
    job, output = batch.end("pvh")
    assert job.state == "COMPLETED", output
    assert output == "in the guest\nPVH\n"


def test_an_image_in_which_pygrub_finds_no_kernel_is_refused(batch: Batch) -> None:
    job, output = batch.end("none")
    assert (job.state, job.exit_code) == ("FAILED", "77:0"), output
    assert "RAN" not in output and "pygrub" in output


@pytest.mark.guest
def test_these_guests_leave_nothing(batch: Batch) -> None:
    for name, image in (
        ("jets", "hep-jets"),
        ("codes", "minimal"),
        ("own", "own-kernel"),
        ("pygrub", "own-kernel"),
        ("pvh", "minimal"),
    ):
        job, _ = batch.end(name)
        history = json.loads(batch.desk.history(job.job_id))
        assert history["complete"] and history["image"]["name"] == image
    batch.desk.nothing_left()
    batch.desk.in_service()


def test_a_job_without_a_request_is_untouched(desk: Desk) -> None:
    job_id = desk.sbatch("--mem=100", script=WHERE + "env | grep -c LRMS_VM; exit 5\n")
    job = desk.end(job_id, timeout_s=60)
    assert (job.state, job.exit_code, job.output()) == ("FAILED", "5:0", "ON THE HOST\n0\n")
    assert desk.history(job_id) == ""


@pytest.fixture
def unsigned(cluster: XenCluster) -> Iterator[Path]:
    """The good image without its signature: the same blocks."""
    layout = cluster.layout.site
    path = layout.images / "test-xen-unsigned.raw"
    path.unlink(missing_ok=True)
    os.link(site.image_path(layout, "minimal"), path)
    yield path
    path.unlink()


def test_an_unsigned_image_is_refused_and_the_node_stays_in_service(desk: Desk, unsigned: Path) -> None:
    job_id = desk.sbatch("--mem=400", f"--vm-image={unsigned}", script="echo RAN\n")
    job = desk.end(job_id, timeout_s=180)
    assert (job.state, job.exit_code) == ("FAILED", "77:0"), job.output()
    assert "RAN" not in job.output() and "sign" in job.output()
    desk.in_service()


def test_a_guest_that_asks_for_more_than_its_job_has_is_refused(desk: Desk) -> None:
    job_id = desk.sbatch(*MINIMAL, "--vm-memory=64M", script="echo RAN\n")
    job = desk.end(job_id, timeout_s=180)
    assert job.exit_code == "77:0" and "memory" in job.output(), job.output()
    desk.in_service()
