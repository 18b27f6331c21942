"""`lrms-vm install` for Torque, OpenPBS and Grid Engine on real files: said, done, done once, undone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.test_install import tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="install is root's")
SYSTEMS = {
    "torque": ("$job_starter ", "trqauthd", "set server managers += root@NODE"),
    "openpbs": ("create resource vm_image type=string,flag=m", "event+=execjob_launch", "import hook lrms_vm"),
    "gridengine": ("qconf -mattr queue prolog 'root@", "vm_capable vmc BOOL", "INHERIT_ENV=false"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A node of a site whose Torque has a prologue of its own."""
    (tmp_path / "torque/mom_priv/jobs").mkdir(parents=True)
    own = tmp_path / "torque/mom_priv/prologue"
    own.write_text("#!/bin/sh\necho the site's\n")
    own.chmod(0o500)
    os.utime(own, (1, 1))
    return tmp_path


def run(root: Path, lrms: str, *words: str) -> str:
    argv = [
        *(sys.executable, "-m", "lrms_vm", "--config", str(root / "lrms_vm.toml"), "install", f"--lrms={lrms}"),
        *("--prefix", str(root / "opt"), "--systemd=no", "--guest", "/bin/true", "--sge-root", str(root / "sge")),
        *("--pbs-home", str(root / "torque"), "--pbs-bin", str(root / "bin")),
    ]
    done = subprocess.run([*argv, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("lrms", SYSTEMS)
def test_it_is_said_done_done_once_and_undone(root: Path, lrms: str) -> None:
    before = tree(root)
    said = run(root, lrms, "--dry-run")
    assert tree(root) == before, "a dry run"
    for words in SYSTEMS[lrms]:
        assert words in said
    assert run(root, lrms).splitlines()[-3:] == said.splitlines()[-3:]
    announced = {line.split()[1] for line in said.splitlines() if line.startswith(("new ", "change "))}
    assert announced and all(Path(path).is_file() for path in announced)
    after = tree(root)
    again = run(root, lrms)
    assert tree(root) == after, "a second time"
    assert not [line for line in again.splitlines() if line.startswith(("new ", "change "))]
    run(root, lrms, "--undo")
    assert tree(root) == before, "undone"


def test_torques_hooks_are_four_and_precancel_is_none_of_them(root: Path) -> None:
    run(root, "torque")
    names = {path.name for path in (root / "torque/mom_priv").iterdir() if path.is_file()}
    assert names == {"prologue", "prologue.parallel", "epilogue", "epilogue.parallel"}
    assert "the site's" in (root / "opt/site/prologue").read_text()
