"""`lrms-vm submit` and its Python API with a real Torque by its commands, and through a libdrmaa that is named."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator

import pytest

from tests.integration.torque.conftest import BOOT_S, Desk

pytestmark = pytest.mark.guest
LIBRARY = os.environ.get("LRMS_VM_TEST_PBS_DRMAA", "")  # a libdrmaa for Torque: pbs-drmaa's
# What a user's program does; it prints what it saw, as JSON.
PROGRAM = """
import json, sys, time
from lrms_vm.submit import JobDescription, JobState, Session, Vm

ODD = 'it\\'s "$HOME"\\n#PBS -h\\n'
IN_GUEST = 'test -d /run/lrms_vm/tasks && echo in the guest; echo "$SEED"; printf "%s|" "$@"; exit 7'

def sh(text, *more, **words):
    return JobDescription("/bin/sh", ("-c", text, *more), **words)

said = {}
with Session(lrms="torque", library=sys.argv[1]) as session:
    said["backend"] = session.backend_name
    refused = session.submit(sh("echo RAN > ran", image="no-such-image"))
    bulk = session.submit_bulk(sh('echo $BULK_INDEX > bulk.$BULK_INDEX; exit $((BULK_INDEX - 1))'), 8)
    words = {"environment": {"SEED": "4 2"}, "stdout_path": "guest.out", "stderr_path": "guest.err"}
    inside = session.submit(sh(IN_GUEST, "sh", ODD, "", "\\u00e9", image="minimal", vm=Vm(memory="400M"), **words))
    idle = session.submit(sh("sleep 600"))
    while session.status(idle).state is JobState.QUEUED:
        session.wait(idle, timeout=0.3)
    session.control(idle, "terminate")
    result = session.wait(idle)
    said["idle"] = [result.state.value, result.returncode, session.wait(idle) == result]
    codes = [session.submit(sh(f"exit {code}")) for code in (0, 7, 127, 130)]
    codes.append(session.submit(sh("kill -SEGV $$")))
    said["bulk"] = [each.exit_code for each in session.wait_all(bulk)]
    said["codes"] = [each.returncode for each in session.wait_all(codes)]
    said["inside"] = [inside, session.wait(inside).returncode]
    result = session.wait(refused)
    said["refused"] = [result.state.value, result.exit_code, result.reason]
print(json.dumps(said))
"""


@pytest.fixture
def scheduler(desk: Desk) -> Iterator[None]:
    """Starts whatever waits: this Torque has none."""
    done = threading.Event()

    def start_all() -> None:
        while not done.wait(0.3):
            for name, fields in desk.torque.jobs().items():
                if fields.get("job_state") == "Q" and "[]" not in name:
                    desk.torque.ask("qrun", name, check=False)

    thread = threading.Thread(target=start_all)
    thread.start()
    yield
    done.set()
    thread.join()


@pytest.mark.usefixtures("scheduler")
@pytest.mark.parametrize("library", ["commands", *(["drmaa"] if LIBRARY else [])])
def test_a_session(desk: Desk, library: str) -> None:
    environ = dict(desk.torque.environment)
    if library == "drmaa":
        environ["DRMAA_LIBRARY_PATH"] = LIBRARY
    client = desk.torque.client()
    done = client.call(
        [desk.torque.layout.python, "-c", PROGRAM, library], cwd=desk.directory, timeout_s=BOOT_S, env=environ
    )
    assert done.returncode == 0, done.stderr.decode()
    said = json.loads(done.stdout)
    assert ("by its commands" in said["backend"]) == (library == "commands")
    assert said["bulk"] == list(range(8))
    assert len(list(desk.directory.glob("bulk.*"))) == 8
    assert said["codes"] == [0, 7, 127, 130, 139]
    assert said["idle"][0] == "canceled" and said["idle"][1] != 0 and said["idle"][2]
    job_id, code = said["inside"]
    assert code == 7, (desk.directory / "guest.err").read_text()
    assert (desk.directory / "guest.out").read_text() == 'in the guest\n4 2\nit\'s "$HOME"\n#PBS -h\n||é|'
    state, code, reason = said["refused"]
    assert (state, code) == ("failed", None)
    assert "image-unknown" in reason
    assert not (desk.directory / "ran").exists()
    desk.nothing_left(job_id)
