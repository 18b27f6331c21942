"""Python's drmaa with Grid Engine's own libdrmaa, as a user has it: docs/submit.md says what our wrapper adds."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from demo import users
from demo.gridengine import DRMAA_LIBRARY
from demo.layout import USER
from demo.programs import ENVIRONMENT
from tests.integration.gridengine.conftest import Desk

# The library is loaded as root, whose Python this is, and used as the user.
PROGRAM = """
import drmaa, json, os, sys
directory, uid, gid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.setgroups([gid]); os.setgid(gid); os.setuid(uid); os.chdir(directory)

def template(session, script, image=None):
    made = session.createJobTemplate()
    made.remoteCommand, made.args = "/bin/sh", [script]
    made.workingDirectory, made.joinFiles = directory, True
    made.outputPath = ":" + directory + "/drmaa." + script
    if image:
        made.jobEnvironment, made.nativeSpecification = {"VM_IMAGE": image, "VM_MEMORY": "500M"}, "-l vm_capable=TRUE"
    return made

def ended(session, job_id):
    info = session.wait(job_id, 200)
    return [info.hasExited, info.exitStatus, info.wasAborted]

said = {}
session = drmaa.Session()
session.initialize()
guest = session.runJob(template(session, "guest.sh", "minimal"))
refused = session.runJob(template(session, "guest.sh", "no-such-image"))
bulk = session.runBulkJobs(template(session, "bulk.sh"), 1, 8, 1)
idle = session.runJob(template(session, "idle.sh"))
said["bulk"] = sorted(ended(session, job_id)[1] for job_id in bulk)
session.control(idle, drmaa.JobControlAction.TERMINATE)
said["idle"] = ended(session, idle)
said["guest"] = ended(session, guest)
said["refused"] = session.jobStatus(refused)
session.control(refused, drmaa.JobControlAction.TERMINATE)
session.exit()
said["ids"] = [guest, refused]
print(json.dumps(said))
"""


@pytest.mark.guest
def test_a_session_with_a_bulk_of_eight_a_guest_a_refusal_and_a_termination(desk: Desk) -> None:
    scripts = {
        "guest.sh": "test -d /run/lrms_vm/tasks && echo in the guest; exit 7\n",
        "bulk.sh": "exit $SGE_TASK_ID\n",
        "idle.sh": "sleep 300\n",
    }
    for name, text in scripts.items():
        (desk.directory / name).write_text(text)
    user = users.find(USER)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(desk.directory), str(user.uid), str(user.gid)],
        env={
            **ENVIRONMENT,
            **desk.engine.environment,
            "HOME": user.home,
            "DRMAA_LIBRARY_PATH": str(DRMAA_LIBRARY),
            "LD_PRELOAD": "libjemalloc.so.2",  # Debian's libdrmaa wants more static TLS than a running Python has left
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    guest, refused = map(int, said["ids"])
    assert said["bulk"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert said["guest"] == [True, 7, False]
    assert said["refused"] == "failed"
    assert said["idle"][2] is True  # aborted: never to be read as success
    assert "in the guest" in (desk.directory / "drmaa.guest.sh").read_text()
    for job_id in (guest, refused):
        desk.engine.wait(job_id, timeout_s=60)
        desk.nothing_left(job_id)
