"""Xen has no room for one more guest: the node is blamed before anything is started, and nothing is left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from demo.programs import wait_until
from tests.integration.xen.conftest import LRMS_VM, MINIMAL, Desk

HOG = "hog"
LEFT_MIB = 200


@pytest.fixture
def hog(desk: Desk) -> Iterator[None]:
    """Somebody else's guest, which takes what Xen has free but for so much, and never runs."""
    mib = int(desk.node.run("xl info free_memory")) - LEFT_MIB
    kernel = "/var/lib/lrms_vm-site/vmlinuz"
    desk.node.write("/root/hog.cfg", f'name = "{HOG}"\nmemory = {mib}\nvcpus = 1\nkernel = "{kernel}"\n')
    desk.node.run("xl create -q -p /root/hog.cfg", timeout_s=180)
    yield
    desk.node.call(f"xl destroy {HOG}; rm /root/hog.cfg")
    wait_until(f"{HOG} gone", lambda: HOG not in desk.node.run("xl list"), timeout_s=60)


@pytest.mark.usefixtures("hog")
def test_too_little_memory_in_xen_drains_the_node_and_says_so(desk: Desk) -> None:
    """libvirt knows only its own guests: one that `xl` started is the site's, stays, and is nothing Slurm could give."""
    line = desk.node.run(f"{LRMS_VM} doctor --slurm-conf", timeout_s=180).splitlines()[0]
    assert 0 < int(line.rpartition("=")[2]) < LEFT_MIB
    job_id = desk.sbatch(*MINIMAL, script="echo RAN\n")
    reason = desk.sent_back(job_id)
    assert reason.startswith("lrms_vm: hypervisor-memory: ") and "MiB free, the guest needs" in reason
    assert "lrms_vm-" not in desk.node.run("xl list")
