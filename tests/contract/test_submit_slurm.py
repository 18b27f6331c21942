"""The wrapper and job_submit.lua with a real Slurm, by its commands: states, ends, control, and what a comment becomes."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrms_vm import install
from lrms_vm.errors import RequestError
from lrms_vm.submit import JobDescription, JobState, Session, Vm
from tests.contract.slurm_alone import SlurmAlone, slurm_alone

ROOT = Path(__file__).parent.parent.parent
LUA = ROOT / "spank" / "job_submit.lua"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmAlone]:
    if os.geteuid() != 0:
        pytest.skip("slurmd needs root")
    with slurm_alone(tmp_path_factory.mktemp("slurm"), job_submit_lua=LUA) as alone:
        yield alone


@pytest.fixture
def session(slurm: SlurmAlone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Session]:
    monkeypatch.setenv("SLURM_CONF", slurm.environ["SLURM_CONF"])
    monkeypatch.chdir(tmp_path)
    with Session(lrms="slurm", library="commands") as made:
        yield made


def sh(text: str, **more: object) -> JobDescription:
    return JobDescription("/bin/sh", ("-c", text), **more)  # type: ignore[arg-type]


def field(slurm: SlurmAlone, job_id: str, name: str) -> str:
    text = slurm.call("scontrol", "show", "job", job_id).stdout
    return next(
        (line.partition(f"{name}=")[2].strip() for line in text.splitlines() if line.strip().startswith(f"{name}=")), ""
    )


def test_exit_codes_and_signals(session: Session) -> None:
    jobs = [session.submit(sh(f"exit {code}")) for code in (0, 7, 127, 130, 255)]
    jobs.append(session.submit(sh("kill -SEGV $$")))
    results = session.wait_all(jobs)
    assert [result.returncode for result in results] == [0, 7, 127, 130, 255, 139]
    assert [result.state for result in results] == [JobState.COMPLETED] + [JobState.FAILED] * 5
    assert session.wait(jobs[1]) is results[1]


def test_everything_reaches_the_payload(session: Session, tmp_path: Path) -> None:
    odd = ("a b", "", "it's", '"$HOME"', "x\r\n#SBATCH --hold\n", "é\\n", "-n")
    place = tmp_path / "a place"
    place.mkdir()
    show = "import os,sys; print([sys.argv[1:], os.environ['A'], os.getcwd(), 'SEED' in os.environ])"
    job = JobDescription(
        "python3", ("-c", show, *odd), environment={"A": "x,y=\n'"}, directory=str(place), stdout_path="out {job}"
    )
    job_id = session.submit(job)
    result = session.wait(job_id)
    assert result is not None and result.state is JobState.COMPLETED
    assert (place / f"out {job_id}").read_text() == repr([list(odd), "x,y=\n'", str(place), False]) + "\n"


def test_a_bulk(session: Session, tmp_path: Path) -> None:
    jobs = session.submit_bulk(sh("echo $BULK_INDEX; exit $((BULK_INDEX - 1))", stdout_path="b.{index}"), 3)
    assert len(set(jobs)) == 3
    first = session.wait_any(jobs)
    assert first is not None
    assert [result.exit_code for result in session.wait_all(jobs)] == [0, 1, 2]
    assert [(tmp_path / f"b.{index}").read_text() for index in (1, 2, 3)] == ["1\n", "2\n", "3\n"]


def test_hold_release_suspend_resume_and_terminate(session: Session) -> None:
    job = session.submit(sh("sleep 600", held=True))
    assert session.status(job).state is JobState.HELD
    assert job in [look.job_id for look in session.list()]
    assert session.wait(job, timeout=0.3) is None
    session.control(job, "release")
    reach(session, job, JobState.ACTIVE)
    session.control(job, "suspend")
    reach(session, job, JobState.SUSPENDED)
    session.control(job, "resume")
    reach(session, job, JobState.ACTIVE)
    session.control(job, "terminate")
    result = session.wait(job)
    assert result is not None
    assert result.state is JobState.CANCELED
    assert result.returncode in (143, 137)
    assert job not in [look.job_id for look in session.list()]


def test_one_that_traps_our_termination_and_ends_with_0_is_canceled_all_the_same(session: Session) -> None:
    job = session.submit(sh("trap 'exit 0' TERM; while :; do sleep 0.1; done"))
    reach(session, job, JobState.ACTIVE)
    time.sleep(0.5)
    session.control(job, "terminate")
    result = session.wait(job)
    assert result is not None and result.state is JobState.CANCELED and result.returncode != 0


def test_a_job_deleted_before_it_ran(session: Session) -> None:
    job = session.submit(sh("true", held=True))
    session.control(job, "terminate")
    result = session.wait(job)
    assert result is not None and result.state is JobState.CANCELED


def test_what_slurm_refuses_is_told(session: Session) -> None:
    with pytest.raises(RequestError) as caught:
        session.submit(sh("true", queue="no-such"))
    assert "invalid partition" in str(caught.value)
    with pytest.raises(RequestError) as caught:
        session.wait("4000000")
    assert caught.value.code == "job-unknown"
    with pytest.raises(RequestError):
        session.control("1; true", "terminate")


def test_the_request_travels_in_the_comment_beside_the_users(slurm: SlurmAlone, session: Session) -> None:
    asked = sh("echo ran", image="hep/jets@1", vm=Vm(cpus="2"), custom_attributes={"slurm.comment": "run 7 = night"})
    job = session.submit(asked)
    assert field(slurm, job, "Comment") == "run 7 = night,lrms_vm:hep/jets@1,lrms_vm-cpus:2"
    result = session.wait(job)  # this Slurm has no hooks of ours: the payload must not run on the host
    assert result is not None and result.exit_code == 78
    assert "no guest" in Path(f"slurm-{job}.out").read_text()


# -- job_submit.lua in slurmctld's own Lua


def sbatch(slurm: SlurmAlone, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return slurm.call("sbatch", "--parsable", "--hold", *words, "--wrap=true", env=env)


def test_lua_brings_the_environments_request_into_the_comment(slurm: SlurmAlone) -> None:
    done = sbatch(slurm, "--comment=my own", VM_IMAGE="hep/jets@1", VM_MEMORY="2G", VM_SHARE="/data,/more")
    comment = field(slurm, done.stdout.strip(), "Comment")
    assert comment == "my own,lrms_vm:hep/jets@1,lrms_vm-memory:2G,lrms_vm-share:/data,lrms_vm-share:/more"


def test_lua_leaves_everybody_else_alone(slurm: SlurmAlone) -> None:
    assert field(slurm, sbatch(slurm, "--comment=my own").stdout.strip(), "Comment") == "my own"
    assert field(slurm, sbatch(slurm).stdout.strip(), "Comment") == ""
    said = sbatch(slurm, "--comment=x lrms_vm:mine", VM_IMAGE="other")
    assert field(slurm, said.stdout.strip(), "Comment") == "x lrms_vm:mine"
    assert slurm.call("srun", "true", env={"VM_IMAGE": "a"}).returncode == 0


@pytest.mark.parametrize("image", ["", "a b", "a,b", "a\nb", "../x", "a=b", "é", "x" * 2000, "lrms_vm:a;lrms_vm:b"])
def test_lua_refuses_what_is_no_name(slurm: SlurmAlone, image: str) -> None:
    done = sbatch(slurm, VM_IMAGE=image)
    assert done.returncode != 0
    assert "lrms_vm: VM_IMAGE: " in done.stderr


def test_a_sites_own_job_submit_calls_ours_as_install_prints_it(slurm: SlurmAlone, tmp_path: Path) -> None:
    prefix = tmp_path / "opt"
    (prefix / "lib").mkdir(parents=True)
    (prefix / "lib" / "lrms_vm.lua").write_bytes(LUA.read_bytes())
    _, dofile, _, call, check = install.job_submit_lines(install.SlurmTargets(prefix, tmp_path), "-- theirs")
    theirs = slurm.base / "job_submit.lua"
    theirs.write_text(
        f"{dofile}\nfunction slurm_job_submit(job_desc, part_list, submit_uid)\n{call}\n{check}\n"
        'job_desc.name = "theirs"\nreturn slurm.SUCCESS\nend\n'
        "function slurm_job_modify() return slurm.SUCCESS end\nreturn slurm.SUCCESS\n"
    )
    os.utime(theirs, (time.time() + 10,) * 2)  # slurmctld reads it again when it is newer
    try:
        assert slurm.call("scontrol", "reconfigure").returncode == 0
        job = sbatch(slurm, VM_IMAGE="hep-jets").stdout.strip()
        assert field(slurm, job, "Comment") == "lrms_vm:hep-jets"
        assert slurm.call("squeue", "-h", "-j", job, "-o", "%j").stdout.strip() == "theirs"
        assert "VM_IMAGE: " in sbatch(slurm, VM_IMAGE="a b").stderr
    finally:
        theirs.write_bytes(LUA.read_bytes())
        os.utime(theirs, (time.time() + 20,) * 2)


# -- and in any Lua, with a stub of Slurm's table

STUB = """
slurm = { SUCCESS = 0, ERROR = -1, log_user = function(text, ...) told = string.format(text, ...) end }
dofile(arg[1])
local function submit(comment, environment, script)
  told = ""
  local job = { comment = comment, environment = environment, script = script }
  local code = slurm_job_submit(job, {}, 0)
  io.write(code, "|", tostring(job.comment), "|", told, "\\n")
end
submit(nil, { VM_IMAGE = "hep-jets" }, "#!/bin/sh")
submit("", { VM_IMAGE = "a", VM_CPUS = "2", VM_KERNEL = "k-6.1", VM_NETWORK = "bridge:br0", VM_ENV = "A,B" }, "#!/bin/sh")
submit("mine", {}, "#!/bin/sh")
submit("mine", nil, "#!/bin/sh")
submit(nil, { VM_IMAGE = "a" }, nil)
submit(nil, { VM_MEMORY = "2G" }, "#!/bin/sh")
submit("mine", { VM_IMAGE = "a", VM_CPUS = "0" }, "#!/bin/sh")
submit("mine", { VM_IMAGE = "a", VM_SHARE = "/a,/b/../c" }, "#!/bin/sh")
io.write(slurm_job_modify({}, {}, {}, 0), "\\n")
"""
EXPECTED = """\
0|lrms_vm:hep-jets|
0|lrms_vm:a,lrms_vm-cpus:2,lrms_vm-network:bridge:br0,lrms_vm-kernel:k-6.1,lrms_vm-env:A,lrms_vm-env:B|
0|mine|
0|mine|
0|nil|
0|nil|
-1|mine|lrms_vm: VM_CPUS: '0' cannot be read (see the table in docs/users.md)
-1|mine|lrms_vm: VM_SHARE: '/b/../c' cannot be read (see the table in docs/users.md)
0
"""


@pytest.mark.parametrize("lua", ["/usr/bin/lua5.1", "/usr/bin/lua5.4"])
def test_lua_of_several_ages(lua: str, tmp_path: Path) -> None:
    stub = tmp_path / "stub.lua"
    stub.write_text(STUB)
    done = subprocess.run([lua, str(stub), str(LUA)], capture_output=True, text=True, timeout=20)
    assert done.stdout == EXPECTED, done.stderr


def reach(session: Session, job_id: str, state: JobState, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while (now := session.status(job_id).state) is not state:
        assert time.monotonic() < deadline, f"{job_id} is {now}"
        assert not now.ended
        time.sleep(0.1)
