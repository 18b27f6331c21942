"""`lrms-vm submit` and its Python API with the real Slurm, by its commands, from a login node without our plugin."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from demo.cluster import Cluster
from tests.integration.slurm.conftest import BOOT_S, Desk

WHERE = "test -d /run/lrms_vm/tasks && echo in the guest || echo ON THE HOST; "
# What a user's program does; it prints what it saw, as JSON.
PROGRAM = """
import json
from lrms_vm.submit import JobDescription, JobState, Session

def sh(text, **more):
    return JobDescription("/bin/sh", ("-c", text), **more)

said = {}
with Session(lrms="slurm", library="commands") as session:
    said["backend"] = session.backend_name
    bulk = session.submit_bulk(sh('echo $BULK_INDEX > bulk.$BULK_INDEX'), 3)
    codes = [session.submit(sh(f"exit {code}")) for code in (0, 7, 127, 130)]
    idle = session.submit(sh("sleep 600"))
    while session.status(idle).state is JobState.QUEUED:
        session.wait(idle, timeout=0.3)
    session.control(idle, "terminate")
    result = session.wait(idle)
    said["idle"] = [result.state.value, result.returncode, session.wait(idle) == result]
    said["bulk"] = [each.state.value for each in session.wait_all(bulk)]
    said["codes"] = [each.exit_code for each in session.wait_all(codes)]
    said["ids"] = [*bulk, *codes, idle]
print(json.dumps(said))
"""


def submit(
    desk: Desk, *words: str, plugin: bool = False, timeout_s: float = BOOT_S
) -> subprocess.CompletedProcess[bytes]:
    """`lrms-vm submit` as the user, in this directory."""
    client = desk.cluster.client(plugin=plugin)
    argv = [desk.layout.command, "submit", "--lrms=slurm", *words]
    return client.call(argv, cwd=desk.directory, timeout_s=timeout_s)


@pytest.mark.guest
@pytest.mark.parametrize("plugin", [False, True], ids=["comment", "option"])
def test_a_command_in_a_guest_and_its_exit_code(desk: Desk, plugin: bool) -> None:
    odd = 'it\'s "$HOME"\n#SBATCH --hold\n'
    script = WHERE + 'id -un; echo "$SEED"; printf "%s|" "$@"; grep MemTotal /proc/meminfo >&2; exit 7'
    words = ["--vm-image=minimal", "--vm-memory=400M", "--memory=700M", "--duration=10m", "--env", "SEED=4 2"]
    words += ["--output={job}.out", "--error={job}.err", "--wait", "--json", "--attribute", "slurm.comment=run 7"]
    done = submit(desk, *words, "--", "sh", "-c", script, "sh", odd, "", "é", plugin=plugin)
    assert done.returncode == 7, done.stderr.decode()
    [told] = json.loads(done.stdout)["jobs"]
    job = desk.end(told["id"])
    assert (job.exit_code, told["exit_code"], told["state"]) == ("7:0", 7, "failed")
    user = job.fields["UserId"].partition("(")[0]
    assert (desk.directory / f"{told['id']}.out").read_text() == f"in the guest\n{user}\n4 2\n{odd}||é|"
    memory = re.search(r"MemTotal: +([0-9]+) kB", (desk.directory / f"{told['id']}.err").read_text())
    assert memory is not None and int(memory[1]) < 400 << 10
    comment = "run 7" if plugin else "run 7,lrms_vm:minimal,lrms_vm-memory:400M"
    assert job.fields["Comment"].strip() == comment
    assert len(desk.history(job.job_id)) == 1


def test_an_image_that_nobody_knows_is_refused_with_the_reason(desk: Desk) -> None:
    done = submit(desk, "--vm-image=no-such", "--output=refused.out", "--wait", "--", "echo", "RAN")
    assert done.returncode == 77, done.stderr.decode()
    text = (desk.directory / "refused.out").read_text()
    assert "lrms-vm:" in text and "no-such" in text
    assert "RAN" not in text
    desk.end(int(done.stdout))


def test_a_session(desk: Desk, cluster: Cluster) -> None:
    done = cluster.client(plugin=False).call([desk.layout.python, "-c", PROGRAM], cwd=desk.directory, timeout_s=120)
    assert done.returncode == 0, done.stderr.decode()
    said = json.loads(done.stdout)
    assert said["backend"].startswith("slurm by its commands: asked for")
    assert said["bulk"] == ["completed"] * 3
    assert sorted(path.name for path in desk.directory.glob("bulk.*")) == ["bulk.1", "bulk.2", "bulk.3"]
    assert said["codes"] == [0, 7, 127, 130]
    state, code, same = said["idle"]
    assert (state, same) == ("canceled", True)
    assert code != 0
