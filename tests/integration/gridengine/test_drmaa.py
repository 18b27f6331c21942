"""python's drmaa itself with the real libdrmaa: whatever a program does by it today, in guests."""

from __future__ import annotations

import json

import pytest

from demo.gridengine import DRMAA_LIBRARY
from tests.integration.gridengine.conftest import BOOT_S, Desk

# What a user's program does; it prints what it saw, as JSON. $1: exit code, or what else the task does.
PROGRAM = """
import json, os, time
import drmaa

def template(session, text, image="minimal"):
    made = session.createJobTemplate()
    made.remoteCommand, made.args, made.joinFiles = "/bin/sh", ["-c", text], False
    made.jobEnvironment = {"VM_IMAGE": image, "VM_MEMORY": "300M"}
    made.nativeSpecification = "-w n -l vm_capable=TRUE"
    made.workingDirectory = os.getcwd()
    made.outputPath, made.errorPath = f":{os.getcwd()}/{image}.out", f":{os.getcwd()}/{image}.err"
    return made

def told(info):
    return [info.hasExited, info.exitStatus, info.wasAborted]

said = {}
with drmaa.Session() as session:
    said["library"] = session.drmsInfo
    idle = session.runJob(template(session, "echo up > idle; sleep 600"))
    refused = session.runJob(template(session, "echo RAN", "no-such-image"))
    text = "test -d /run/lrms_vm/tasks && touch guest.$SGE_TASK_ID; set -- 0 7 127 130 0 1 125 255; "
    bulk = session.runBulkJobs(template(session, text + "shift $((SGE_TASK_ID - 1)); exit $1"), 1, 8, 1)
    while not os.path.exists("idle"):
        time.sleep(0.3)
    session.control(idle, drmaa.JobControlAction.TERMINATE)
    session.synchronize([idle, refused, *bulk], 200, False)
    said["idle"] = told(session.wait(idle, 60))
    said["bulk"] = [told(session.wait(job, 60)) for job in bulk]
    said["refused"] = told(session.wait(refused, 60))
    said["ids"] = [idle, refused, bulk[0]]
print(json.dumps(said))
"""


@pytest.mark.guest
def test_a_session_with_a_bulk_of_eight_guests(desk: Desk) -> None:
    environ = {
        **desk.engine.environment,
        "DRMAA_LIBRARY_PATH": str(DRMAA_LIBRARY),
        "GLIBC_TUNABLES": "glibc.rtld.optional_static_tls=4096",  # what Debian's libdrmaa needs to be loaded at all
    }
    argv = [str(desk.layout.python), "-c", PROGRAM]
    done = desk.engine.client().call(argv, cwd=desk.directory, timeout_s=BOOT_S, env=environ)
    assert done.returncode == 0, done.stderr.decode()
    said = json.loads(done.stdout)
    ids = [int(job_id.partition(".")[0]) for job_id in said["ids"]]
    desk.submitted.extend(ids)
    assert said["library"].startswith("SGE 8.1.9")
    assert said["bulk"] == [[True, code, False] for code in (0, 7, 127, 130, 0, 1, 125, 255)]
    assert len(list(desk.directory.glob("guest.*"))) == 8, "each in a guest of its own"
    assert len(desk.history(ids[2])) == 8
    assert said["idle"] == [False, 0, True]
    assert said["refused"][2], "aborted"
    assert "'no-such-image' is not in the site's image list" in (desk.directory / "no-such-image.err").read_text()
    assert "RAN" not in (desk.directory / "no-such-image.out").read_text()
    for job_id in ids:
        desk.nothing_left(job_id, tasks=8)
    assert desk.engine.queue_state() == ""
