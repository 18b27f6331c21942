"""The ways to a batch system with stand-ins: programs that write down how they were called, and a DRMAA of paper."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lrms_vm.errors import RequestError, SiteError
from lrms_vm.submit import JobDescription, JobState, Session, pyslurm_look
from lrms_vm.submit.by_commands import ByCommands
from lrms_vm.submit.by_library import ByLibrary, find_library
from lrms_vm.submit.session import choose

# One program for all names: writes down its argv, stdin and environment, prints what is in the file of its name.
PROGRAM = f"""#!{sys.executable} -IS
import json, os, sys
base = os.path.dirname(os.path.abspath(sys.argv[0]))
name = os.path.basename(sys.argv[0])
stdin = sys.stdin.read() if name in ("qsub", "sbatch") else ""
with open(base + "/calls", "a") as calls:
    calls.write(json.dumps([name, sys.argv[1:], stdin, dict(os.environ), os.getcwd()]) + "\\n")
if os.path.exists(base + "/" + name + ".fails"):
    sys.exit(open(base + "/" + name + ".fails").read())
print(open(base + "/" + name + ".out").read(), end="") if os.path.exists(base + "/" + name + ".out") else None
"""


class Host:
    """A submit host's programs."""

    def __init__(self, base: Path, *names: str) -> None:
        self.base = base
        for name in names:
            path = base / name
            path.write_text(PROGRAM)
            path.chmod(0o755)

    @property
    def environ(self) -> dict[str, str]:
        return {"PATH": str(self.base), "HOME": "/home/me", "SECRET": "x", "PBS_DEFAULT": "head"}

    def says(self, name: str, text: str) -> None:
        (self.base / f"{name}.out").write_text(text)

    def fails(self, name: str, text: str) -> None:
        (self.base / f"{name}.fails").write_text(text)

    def calls(self, name: str) -> list[tuple[list[str], str, dict[str, str], str]]:
        lines = (self.base / "calls").read_text().splitlines()
        return [tuple(rest) for who, *rest in map(json.loads, lines) if who == name]  # type: ignore[misc]


@pytest.fixture
def torque(tmp_path: Path) -> Host:
    return Host(tmp_path, "qsub", "qstat", "qdel", "qhold", "qrls", "qsig", "qmgr", "momctl")


def test_torque_by_its_commands(torque: Host, tmp_path: Path) -> None:
    backend = choose(lrms=None, library="commands", environ=torque.environ)
    assert backend.name == "torque by its commands: asked for; qsub and momctl are on PATH"
    session = Session(backend=backend, sleep=lambda _: None)
    torque.says("qsub", "42[].head\n")
    job = JobDescription("echo", ("a b",), directory=str(tmp_path), stdin_path="in", image="hep-jets", queue="main")
    assert session.submit_bulk(job, 2) == ["42[1].head", "42[2].head"]
    [(argv, stdin, environ, cwd)] = torque.calls("qsub")
    assert argv == [*("-S", "/bin/sh", "-q", "main", "-l", "other=vm:hep-jets", "-t", "1-2", "-v", "VM_IMAGE=hep-jets")]
    assert cwd == str(tmp_path)
    assert stdin.startswith("#!/bin/sh\nset --; ")
    assert f"LRMS_VM_V={tmp_path}; cd " in stdin
    assert "exec <" in stdin
    assert (environ["PBS_DEFAULT"], environ["HOME"]) == ("head", "/home/me")
    assert "SECRET" not in environ
    torque.says("qstat", "Job Id: 42[1].head\n    job_state = C\n    exit_status = 0\n")
    result = session.wait("42[1].head")
    assert result is not None and result.state is JobState.COMPLETED
    session.control("42[2].head", "hold")
    session.control("42[2].head", "terminate")
    assert torque.calls("qhold")[0][0] == ["-h", "u", "42[2].head"]
    assert torque.calls("qdel")[0][0] == ["42[2].head"]


def test_one_forgotten_job_does_not_hide_the_others(tmp_path: Path) -> None:
    host = Host(tmp_path, "qsub", "qmgr", "momctl")
    known = "Job Id: 2.h\\n    job_state = R\\n"
    path = tmp_path / "qstat"  # as Torque: one unknown id, and the exit code is 153
    path.write_text(
        f'#!/bin/sh\n[ "$*" = "-f 2.h" ] && printf "{known}" && exit 0\necho "qstat: Unknown Job Id 1.h" >&2; exit 153\n'
    )
    path.chmod(0o755)
    backend = choose(lrms=None, library="commands", environ=host.environ)
    assert {job_id: look.state for job_id, look in backend.look(["1.h", "2.h"]).items()} == {"2.h": JobState.ACTIVE}


def test_what_a_program_says_when_it_refuses(torque: Host) -> None:
    backend = choose(lrms=None, library="commands", environ=torque.environ)
    torque.fails("qsub", "qsub: Unknown queue MSG=cannot locate queue")
    with pytest.raises(RequestError) as caught:
        backend.submit(JobDescription("true"), {}, None)
    assert str(caught.value) == "qsub: qsub: Unknown queue MSG=cannot locate queue"
    torque.fails("qstat", "qstat: cannot connect to server head")
    with pytest.raises(SiteError):
        backend.look(["1.h"])


def test_a_program_that_is_missing(tmp_path: Path) -> None:
    host = Host(tmp_path, "qsub", "momctl")
    with pytest.raises(SiteError) as caught:
        choose(lrms=None, library="commands", environ=host.environ).look(["1.h"])
    assert caught.value.code == "command-missing"


# -- pyslurm


def test_pyslurm_only_of_the_same_release(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"job_id": 7, "array_job_id": None, "array_task_id": None, "job_state": "FAILED", "exit_code": "7:0"},
        {"job_id": 9, "array_job_id": 8, "array_task_id": 1, "job_state": "RUNNING", "exit_code": "0:0"},
    ]

    class Job:
        def find_id(self, job_id: str) -> list[dict[str, Any]]:
            found = [row for row in rows if str(row["array_job_id"] or row["job_id"]) == job_id]
            if not found:
                raise ValueError("Invalid job id specified")
            return found

    monkeypatch.setitem(sys.modules, "pyslurm", SimpleNamespace(__version__="22.5.1", job=Job))
    assert pyslurm_look.find("23.02.1") is None
    looks = pyslurm_look.find("22.05.8")
    assert looks is not None
    found = looks.look(["7", "8_1", "99"])
    assert found["7"].result is not None and found["7"].result.exit_code == 7
    assert found["8_1"].state is JobState.ACTIVE
    assert "99" not in found
    monkeypatch.setitem(sys.modules, "pyslurm", None)
    assert pyslurm_look.find("22.05.8") is None


# -- a DRMAA library of paper: what python's drmaa would be, with the libraries' measured ways

DRMAA = """
import os
class errors:
    class InvalidJobException(Exception): pass
    class ExitTimeoutException(Exception): pass
    class DeniedByDrmException(Exception): pass
class JobState:
    DONE, FAILED = "done", "failed"
class Info:
    hasExited, hasSignal, wasAborted, exitStatus, terminatedSignal = True, False, False, 0, ""
class Session:
    TIMEOUT_NO_WAIT = 0
    drmsInfo, drmaaImplementation = os.environ["DRMAA_LIBRARY_PATH"].split("/")[-1], "paper"
    jobs = {}
    def initialize(self): print("a library may print")
    def exit(self): pass
    def createJobTemplate(self): return type("Template", (), {})()
    def deleteJobTemplate(self, template): pass
    def runJob(self, template):
        if getattr(template, "nativeSpecification", b"") == b"-l deny=1":
            raise errors.DeniedByDrmException("code 17: no")
        job = str(len(self.jobs) + 1)
        self.jobs[job] = "running"
        if template.jobName == b"crash": os.kill(os.getpid(), 11)
        return job
    def jobStatus(self, job): return self.jobs[job]
    def control(self, job, action): self.jobs[job] = "done"  # slurm-drmaa: exited with 0
    def wait(self, job, timeout): return Info()
"""


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "drmaa.py").write_text(DRMAA)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def library(system: str, name: str, host: Host) -> ByLibrary:
    commands = choose(lrms=system, library="commands", environ=host.environ)
    assert isinstance(commands, ByCommands)
    return ByLibrary(system, "test", f"/paper/{name}", commands)


def job(name: str, **attributes: str) -> JobDescription:
    return JobDescription("true", name=name, custom_attributes=attributes)


def test_a_job_that_slurm_drmaa_calls_a_success_after_our_termination(paper: Path) -> None:
    with Session(backend=library("slurm", "SLURM", Host(paper)), sleep=lambda _: None) as session:
        job_id = session.submit(job("a"))
        assert session.status(job_id).state is JobState.ACTIVE
        session.control(job_id, "terminate")
        result = session.wait(job_id)
        assert result is not None
        assert (result.state, result.returncode) == (JobState.CANCELED, 143)


def test_a_job_that_slurm_drmaa_calls_a_success_after_somebody_elses_scancel(paper: Path) -> None:
    host = Host(paper, "squeue")
    made = library("slurm", "SLURM", host)
    with Session(backend=made, sleep=lambda _: host.says("squeue", row("CANCELLED", "15"))) as session:
        job_id = session.submit(job("a"))
        host.says("squeue", row("COMPLETING", "15"))
        made._ask({"do": "control", "job": job_id, "action": "terminate"})  # not through the session
        assert session.status(job_id).state is JobState.ACTIVE
        result = session.wait(job_id)
        assert result is not None
        assert (result.state, result.returncode) == (JobState.CANCELED, 143)


def test_a_suspension_that_slurm_drmaa_does_not_see(paper: Path) -> None:
    host = Host(paper, "squeue")
    with Session(backend=library("slurm", "SLURM", host)) as session:
        job_id = session.submit(job("a"))
        host.says("squeue", row("SUSPENDED", "0"))
        assert session.status(job_id).state is JobState.SUSPENDED
        host.says("squeue", row("RUNNING", "0"))
        assert session.status(job_id).state is JobState.ACTIVE


@pytest.mark.parametrize(
    ("qstat", "code", "reason"),
    [
        ("exit_status = -2\n    comment = lrms_vm: image-unknown: no", None, "lrms_vm: image-unknown: no"),
        ("exit_status = 255", 255, ""),
        (None, 255, ""),  # the server has forgotten it
    ],
)
def test_a_refusal_that_pbs_drmaa_calls_an_exit_code(paper: Path, qstat: str | None, code: int, reason: str) -> None:
    said = "hasExited, hasSignal, wasAborted, exitStatus, terminatedSignal = "
    text = DRMAA.replace(f'{said}True, False, False, 0, ""', f'{said}False, False, True, 255, ""')
    assert text != DRMAA
    (paper / "drmaa.py").write_text(text)
    host = Host(paper, "qstat")
    if qstat is None:
        host.fails("qstat", "qstat: Unknown Job Id 1")
    else:
        host.says("qstat", f"Job Id: 1\n    job_state = C\n    {qstat}\n")
    made = library("torque", "Torque", host)
    with Session(backend=made, sleep=lambda _: None) as session:
        job_id = session.submit(job("a"))
        made._ask({"do": "control", "job": job_id, "action": "terminate"})  # not through the session
        result = session.wait(job_id)
    assert result is not None
    assert (result.state, result.exit_code, result.reason) == (JobState.FAILED, code, reason)


def row(state: str, code: str) -> str:
    return f"1                   N/A                 {state:<24}{code:<16}None\n"


def test_a_library_that_dies_is_told_and_the_caller_lives(paper: Path) -> None:
    with Session(backend=library("torque", "Torque", Host(paper)), sleep=lambda _: None) as session:
        with pytest.raises(SiteError) as caught:
            session.submit(job("crash"))
        assert caught.value.code == "library-broken"
        assert "-11" in str(caught.value)


def test_what_the_library_denies_is_the_requests_fault(paper: Path) -> None:
    with Session(backend=library("torque", "Torque", Host(paper))) as session:
        with pytest.raises(RequestError) as caught:
            session.submit(job("a", **{"torque.l": "deny=1"}))
        assert "DeniedByDrmException: code 17: no" in str(caught.value)


def test_a_library_of_another_system_is_not_used(paper: Path) -> None:
    made = library("slurm", "SGE", Host(paper))
    with pytest.raises(SiteError) as caught:
        made.open()
    assert caught.value.code == "library-unfit"
    environ = {**Host(paper, "sbatch").environ, "DRMAA_LIBRARY_PATH": "/paper/SGE"}
    Host(paper).says("sbatch", "slurm 22.05.8\n")
    backend = choose(lrms="slurm", library="auto", environ=environ)
    assert isinstance(backend, ByCommands)
    assert "not for slurm" in backend.name
    with pytest.raises(SiteError):
        choose(lrms="slurm", library="drmaa", environ=environ)


def test_where_the_library_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_library("slurm", {"DRMAA_LIBRARY_PATH": "/my/lib.so"}) == ("/my/lib.so", "DRMAA_LIBRARY_PATH")
    made = tmp_path / "lib" / "lx-amd64"
    made.mkdir(parents=True)
    (made / "libdrmaa.so").touch()
    found, _ = find_library("gridengine", {"SGE_ROOT": str(tmp_path)})
    assert found is not None and found.startswith(("/usr/lib/gridengine-drmaa/", str(made)))
    nothing, why = find_library("torque", {})
    if nothing is None:
        assert "DRMAA_LIBRARY_PATH" in why


def test_the_jobs_of_a_library_do_not_inherit_what_loads_it(paper: Path) -> None:
    """slurm-drmaa gives its jobs the environment of the process it lives in."""
    text = DRMAA.replace("def initialize(self): ", "def initialize(self): self.seen(); ") + (
        "    def seen(self): open(os.environ['HOME'] + '/seen', 'w').write(' '.join(os.environ))\n"
    )
    (paper / "drmaa.py").write_text(text)
    host = Host(paper)
    environ = {**host.environ, "HOME": str(paper)}
    commands = choose(lrms="slurm", library="commands", environ=environ)
    assert isinstance(commands, ByCommands)
    made = ByLibrary("slurm", "test", "/paper/SLURM", commands)
    made.open()
    made.close()
    names = set((paper / "seen").read_text().split())
    assert names <= {"PATH", "LANG", "LC_ALL", "TZ", "HOME", "LC_CTYPE", "PBS_DEFAULT"}, names
    assert "PYTHONPATH" not in names and "DRMAA_LIBRARY_PATH" not in names
    assert os.environ.get("DRMAA_LIBRARY_PATH") is None
