"""`lrms-vm submit` and its Python API with the real Grid Engine: through its libdrmaa, and by its own commands."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.integration.gridengine.conftest import BOOT_S, Desk

WHERE = "test -d /run/lrms_vm/tasks && echo in the guest || echo ON THE HOST; "
# What a user's program does; it prints what it saw, as JSON.
PROGRAM = """
import json, sys
from lrms_vm.submit import JobDescription, JobState, Session

def sh(text, **more):
    return JobDescription("/bin/sh", ("-c", text), **more)

said = {}
with Session(lrms="gridengine", library=sys.argv[1]) as session:
    said["backend"] = session.backend_name
    refused = session.submit(sh("echo RAN", image="no-such-image", stdout_path="refused.out", stderr_path="refused.err"))
    bulk = session.submit_bulk(sh('echo $BULK_INDEX > bulk.$BULK_INDEX; exit $((BULK_INDEX - 1))'), 8)
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
    result = session.wait(refused)
    said["refused"] = [result.job_id, result.state.value, result.exit_code, result.reason]
print(json.dumps(said))
"""


def call(desk: Desk, *words: object, timeout_s: float = BOOT_S) -> subprocess.CompletedProcess[bytes]:
    """As the user, in this directory."""
    argv = [str(word) for word in words]
    return desk.engine.client().call(argv, cwd=desk.directory, timeout_s=timeout_s, env=desk.engine.environment)


@pytest.mark.parametrize(
    ("library", "says", "why"),
    [
        ("drmaa", "by SGE 8.1.9", "refused by its prolog"),  # such a job ends, and is not kept in Eqw
        ("commands", "by its commands", "exit_status of prolog = 100; it stays in Grid Engine's error state"),
    ],
)
def test_a_session(desk: Desk, library: str, says: str, why: str) -> None:
    done = call(desk, desk.layout.python, "-c", PROGRAM, library, timeout_s=200)
    assert done.returncode == 0, done.stderr.decode()
    said = json.loads(done.stdout)
    job_id, state, code, reason = said["refused"]
    desk.submitted.append(int(job_id))
    assert says in said["backend"]
    assert said["bulk"] == list(range(8))
    assert len(list(desk.directory.glob("bulk.*"))) == 8
    assert said["codes"] == [0, 7, 127, 130, 139]
    assert said["idle"][0] == "canceled" and said["idle"][1] != 0 and said["idle"][2]
    assert (state, code) == ("failed", None)
    assert why in reason
    assert "no-such-image" in (desk.directory / "refused.err").read_text()
    assert not (desk.directory / "refused.out").read_text()
    if library == "commands":
        desk.engine.ask("qdel", job_id)
    desk.nothing_left(int(job_id))


@pytest.mark.guest
@pytest.mark.parametrize("library", ["drmaa", "commands"])
def test_a_command_in_a_guest_and_its_exit_code(desk: Desk, library: str) -> None:
    odd = 'it\'s "$HOME"\n#$ -h\n'
    script = WHERE + 'id -un; echo "$SEED"; printf "%s|" "$@"; exit 7'
    words = ["--vm-image=minimal", "--vm-memory=500M", "--env", "SEED=4 2", "--output=guest.out", "--error=guest.err"]
    words += [f"--library={library}", "--wait", "--", "sh", "-c", script, "sh", odd, "", "é"]
    done = call(desk, desk.layout.command, "submit", "--lrms=gridengine", *words)
    job_id = int(done.stdout)
    desk.submitted.append(job_id)
    errors = (desk.directory / "guest.err").read_text()
    assert done.returncode == 7, done.stderr.decode() + errors
    user = desk.engine.client().user
    assert (desk.directory / "guest.out").read_text() == f"in the guest\n{user}\n4 2\n{odd}||é|", errors
    assert len(desk.history(job_id)) == 1
    desk.nothing_left(job_id)
