"""Torque's submit filter and node check as the programs that `install` writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lrms_vm import install_pbs
from lrms_vm.install import hook


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """With this Python; `lrms_vm.toml` is not there yet."""
    names = {"PYTHON": sys.executable, "CONFIG": str(tmp_path / "lrms_vm.toml")}
    for name in ("torque.submit_filter", "torque.node_check"):
        path = tmp_path / name
        path.write_bytes(hook(install_pbs.PROGRAMS[name], names))
        path.chmod(0o755)
    return tmp_path


def filtered(programs: Path, script: bytes, *words: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [programs / "torque.submit_filter", *words], input=script, capture_output=True, timeout=60, env=environ
    )


def test_the_filter_prints_the_script_in_torques_words(programs: Path) -> None:
    done = filtered(programs, b"#!/bin/sh\n#VM --vm-image=hep-jets --vm-cpus=2\nhostname\n", "-N", "x")
    assert done.stdout == b"#!/bin/sh\n#PBS -l other=vm:hep-jets\n#PBS -v VM_CPUS=2\nhostname\n"
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_it_refuses_qsub_says(programs: Path) -> None:
    done = filtered(programs, b"hostname\n", "--vm-image=hep-jets")
    assert (done.returncode, done.stdout) == (255, b"")
    assert b"#VM --vm-image=NAME" in done.stderr


def test_a_script_of_any_bytes_passes(programs: Path) -> None:
    script = bytes(range(256)) * 40_000
    assert filtered(programs, script).stdout == script


def test_the_users_own_python_is_not_the_filters(programs: Path) -> None:
    (programs / "evil").mkdir()
    for name in ("sitecustomize.py", "lrms_vm.py"):
        (programs / "evil" / name).write_text("raise SystemExit(9)\n")
    assert filtered(programs, b"x\n", PYTHONPATH=str(programs / "evil")).stdout == b"x\n"


def test_the_node_check_says_why(programs: Path) -> None:
    """pbs_mom takes the node down for a line that begins with ERROR, with the line as its note, and brings it back."""
    done = subprocess.run([programs / "torque.node_check"], capture_output=True, timeout=60, text=True)
    assert done.stdout.startswith("ERROR lrms_vm: ")
    assert done.stdout.count("\n") == 1
    assert "lrms_vm.toml" in done.stdout
