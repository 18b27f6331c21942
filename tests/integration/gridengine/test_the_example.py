"""The example with the HEP image under Grid Engine: its jets are those of the same payload outside, bit for bit."""

from __future__ import annotations

import shutil

import pytest

from demo import site, users, validation
from demo.layout import USER
from demo.run import IMAGE, JOB_SCRIPT
from tests.integration.gridengine.conftest import Desk


@pytest.mark.guest
def test_the_hep_payload_in_its_guest(desk: Desk) -> None:
    layout = desk.layout
    site.make_images(layout, [IMAGE])
    site.configure(layout, [desk.node], plugin=False)
    user = users.find(USER)
    for name in ("jets.py", "job.sh"):
        path = desk.directory / name
        shutil.copy(JOB_SCRIPT.parent / name, path)
        shutil.chown(path, user.uid, user.gid)
    words = ["-v", f"VM_IMAGE={IMAGE}", "-l", "vm_capable=TRUE", "-S", "/bin/sh"]
    job_id = desk.qsub(*words, str(desk.directory / "job.sh"), image=None)
    code, output = desk.end(job_id)
    assert code == 0, desk.said(job_id, kind="err")
    assert output.startswith(f"job {job_id} of {USER} on lrms-vm-gridengine-{job_id}-")
    assert len(desk.history(job_id)) == 1
    result = desk.directory / "jets.json"
    found = validation.compare(result, validation.run_outside(layout, like=result))
    assert found.identical
    assert found.jets > found.events > 0
