"""Grid Engine's hook files without Grid Engine: whom they let go, what they hand on, what they start in the job's place."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from lrms_vm import gridengine_node, install_gridengine
from lrms_vm.errors import SiteError, UsageError
from lrms_vm.install_gridengine import Cell, GridEngineTargets
from lrms_vm.lrms.base import Call

HOSTILE = {
    "PYTHONPATH": "/evil", "OPENSSL_CONF": "/evil", "PATH": "/evil", "SGE_ROOT": "/evil", "LOCPATH": "/evil",
    "LC_ALL": "de_DE.UTF-8", "SGE_QMASTER_PORT": "1", "BASH_FUNC_exec%%": "() { echo EVIL; }", "SHELLOPTS": "xtrace",
    "PPID": "1",
}  # fmt: skip

Start = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Install with stand-ins for Python and exec that say how they were called, and run one of the files."""
    targets = GridEngineTargets(tmp_path / "opt")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "python $*"\n/usr/bin/env\nexit 9\n')
    python.chmod(0o755)
    cell = Cell("/var/lib/gridengine", "grid", "6444")
    for file in install_gridengine.plan(
        targets, python=str(python), config=Path("/etc/c.toml"), run_dir=tmp_path / "run", cell=cell, guest=b""
    ):
        file.path.parent.mkdir(parents=True, exist_ok=True)
        file.path.write_bytes(file.content)
        file.path.chmod(file.mode)
    targets.exec.write_text('#!/bin/sh\nprintf "%s|" exec "$@"\n')
    (tmp_path / "run" / "verdicts").mkdir(parents=True)

    def run(name: str, environ: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
        argv = [targets.libexec / f"gridengine.{name}", *words]
        return subprocess.run(argv, env=dict(environ), capture_output=True, text=True, timeout=30, cwd=tmp_path)

    return run


@pytest.mark.parametrize("name", ["prolog", "epilog"])
def test_an_ordinary_job_leaves_before_python(start: Start, name: str) -> None:
    for environ in ({}, {"VM_MEMORY": "1G"}, HOSTILE):
        done = start(name, environ)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("name", "verb", "code"), [("prolog", "prologue", 9), ("epilog", "epilogue", 0)])
def test_nothing_of_a_jobs_environment_reaches_python(start: Start, name: str, verb: str, code: int) -> None:
    done = start(name, {"VM_IMAGE": "", **HOSTILE})
    called, *environment = done.stdout.splitlines()
    assert called.startswith(f"python -I -m lrms_vm --config /etc/c.toml {verb} --lrms gridengine -- ")
    assert called.rpartition(" ")[2] == str(os.getpid())  # in Grid Engine: sge_shepherd's
    known = {"SGE_ROOT=/var/lib/gridengine", "SGE_CELL=grid", "SGE_QMASTER_PORT=6444", "SGE_EXECD_PORT="}
    shells_own = ("PWD=", "_=", "OLDPWD=", "SHLVL=")
    assert {line for line in environment if not line.startswith(shells_own)} == known
    assert (done.returncode, done.stderr) == (code, "")


def test_an_epilog_ends_well_even_without_a_python(start: Start, tmp_path: Path) -> None:
    (tmp_path / "python").unlink()
    assert start("epilog", {"VM_IMAGE": "x"}).returncode == 0
    assert start("prolog", {"VM_IMAGE": "x"}).returncode not in (0, 99, 100)


def starter_environment(tmp_path: Path, mode: str = "unix_behavior", **more: str) -> dict[str, str]:
    spool = tmp_path / "spool"
    for name in ("active_jobs/42.1", "job_scripts"):
        (spool / name).mkdir(parents=True, exist_ok=True)
    script = spool / "job_scripts" / "42"
    script.write_text('#!/bin/bash\necho "$0" "$BASH_VERSION"; printf "%s|" "$@"\n')
    script.chmod(0o755)
    (spool / "active_jobs" / "42.1" / "config").write_text(more.pop("config", "no_shell=0\n"))
    return {
        "PATH": "/usr/bin:/bin", "JOB_ID": "42", "SGE_TASK_ID": "undefined", "HOME": "/x", "SGE_STARTER_SHELL_PATH": "/bin/sh",
        "SGE_JOB_SPOOL_DIR": f"{spool}/active_jobs/42.1", "SGE_STARTER_SHELL_START_MODE": mode,
        "SGE_STARTER_USE_LOGIN_SHELL": "true", **more,
    }  # fmt: skip


@pytest.mark.parametrize(("task", "key"), [("undefined", "42"), ("3", "42-3")])
def test_a_job_with_a_verdict_goes_into_its_guest(start: Start, tmp_path: Path, task: str, key: str) -> None:
    verdict = tmp_path / "run" / "verdicts" / f"gridengine-{key}.n1.example.org.json"
    environ = starter_environment(tmp_path, SGE_TASK_ID=task)
    assert "exec|" not in start("starter", environ, "/bin/true").stdout
    verdict.touch()
    said = start("starter", environ, "/bin/echo", "a  b", "--verdict").stdout
    assert said == f"exec|exec|--lrms|gridengine|--verdict|{verdict}|--|/bin/echo|a  b|--verdict|"


def test_a_job_that_asked_and_has_no_verdict_does_not_run(start: Start, tmp_path: Path) -> None:
    (tmp_path / "run" / "verdicts" / "gridengine-421.n1.json").touch()  # another's
    done = start("starter", starter_environment(tmp_path, VM_IMAGE=""), "/bin/echo", "RAN")
    assert (done.returncode, done.stdout) == (78, "")
    assert "no prolog of ours" in done.stderr


@pytest.mark.parametrize(
    ("mode", "first"),
    [("unix_behavior", "{script} 5"), ("posix_compliant", "{script} "), ("script_from_stdin", "-sh ")],
)
def test_an_ordinary_script_is_started_as_grid_engine_would(
    start: Start, tmp_path: Path, mode: str, first: str
) -> None:
    environ = starter_environment(tmp_path, mode)
    script = f"{tmp_path}/spool/job_scripts/42"
    done = start("starter", environ, script, "a  b", "$HOME")
    began, _, arguments = done.stdout.partition("\n")
    assert began.startswith(first.format(script=script)), done
    assert arguments == "a  b|$HOME|"


@pytest.mark.parametrize(("config", "said"), [("no_shell=0\n", "a b /x\n"), ("x\nno_shell=1\n", "a  b $HOME\n")])
def test_an_ordinary_command_too(start: Start, tmp_path: Path, config: str, said: str) -> None:
    environ = starter_environment(tmp_path, config=config)
    assert start("starter", environ, "/bin/echo", "a  b", "$HOME").stdout == said


def test_what_a_job_exported_arrives(start: Start, tmp_path: Path) -> None:
    environ = starter_environment(tmp_path, **{"BASH_FUNC_mine%%": "() { echo mine; }", "ODD.NAME": "1"})
    said = start("starter", environ, f"{tmp_path}/spool/job_scripts/42").stdout
    assert "5." in said
    config = starter_environment(tmp_path, config="no_shell=1\n", **{"BASH_FUNC_mine%%": "() { echo mine; }", "A": "1"})
    assert "BASH_FUNC_mine%%" in start("starter", config, "/usr/bin/env").stdout


# -- the node's half


@pytest.mark.parametrize("words", [[], ["x"], ["1", "2"], ["999999999"], ["-1"]])
def test_a_caller_that_is_no_shepherd(words: Sequence[str]) -> None:
    with pytest.raises(SiteError):
        gridengine_node.call(words)


def test_we_ourselves_are_no_shepherd() -> None:
    with pytest.raises(SiteError) as error:
        gridengine_node.call([str(os.getpid())])
    assert error.value.code == "hook-environment"


def test_the_jobs_that_sge_execd_has_are_not_reaped(tmp_path: Path) -> None:
    from lrms_vm.config import Config

    for name in ("7.1", "8.2", "x"):
        (tmp_path / name).mkdir()
    keys = gridengine_node.active_keys("n1", Call(argv=(str(tmp_path),)), Config())
    assert {"gridengine-7.n1", "gridengine-8-2.n1"} <= keys
    assert "gridengine-9.n1" not in keys
    with pytest.raises(SiteError):
        gridengine_node.active_keys("n1", Call(argv=(str(tmp_path / "gone"),)), Config())
    with pytest.raises(UsageError):
        gridengine_node.active_keys("n1", Call(), Config())
