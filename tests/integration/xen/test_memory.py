"""Xen has no room for one more guest: the node is blamed before anything is started, and nothing is left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from demo.programs import wait_until
from tests.integration.xen.conftest import Desk

LRMS_VM = "/opt/lrms_vm/bin/lrms-vm"
HOG = "hog"
HOG_MIB = 3000


@pytest.fixture
def hog(desk: Desk) -> Iterator[None]:
    """Somebody else's guest, which takes most of the memory and never runs."""
    kernel = "/var/lib/lrms_vm-site/vmlinuz"
    desk.node.write("/root/hog.cfg", f'name = "{HOG}"\nmemory = {HOG_MIB}\nvcpus = 1\nkernel = "{kernel}"\n')
    desk.node.run("xl create -q -p /root/hog.cfg", timeout_s=180)
    yield
    desk.node.call(f"xl destroy {HOG}; rm /root/hog.cfg")
    wait_until(f"{HOG} gone", lambda: HOG not in desk.node.run("xl list"), timeout_s=60)


@pytest.mark.usefixtures("hog")
def test_a_guest_that_does_not_fit_into_xens_memory_is_the_nodes_fault(desk: Desk) -> None:
    job = f"{LRMS_VM} run --vm-image=minimal --memory 2G --user physicist -- true"
    done = desk.node.call(job, timeout_s=300)
    said = done.stderr.decode()
    assert done.returncode == 69, said
    assert "MiB free, the guest needs" in said and "--slurm-conf" in said
    assert "lrms_vm-" not in desk.node.run("xl list")


@pytest.mark.usefixtures("hog")
def test_what_others_guests_took_is_nothing_that_slurm_could_give(desk: Desk) -> None:
    """libvirt knows only its own; a domain that `xl` started is the site's, and stays."""
    line = desk.node.run(f"{LRMS_VM} doctor --slurm-conf", timeout_s=180).splitlines()[0]
    assert 500 < int(line.rpartition("=")[2]) < 4096 - HOG_MIB
