"""What `install --lrms=gridengine` puts in place and prints; undone, nothing of it stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lrms_vm import install, install_gridengine
from lrms_vm.errors import UsageError
from lrms_vm.install_gridengine import Cell, GridEngineTargets

CELL = Cell("/var/lib/gridengine", "default")


def planned(prefix: Path, *, cell: Cell = CELL) -> tuple[install.Planned, ...]:
    return install_gridengine.plan(
        GridEngineTargets(prefix), python="/opt/venv/bin/python", config=Path("/etc/lrms_vm/lrms_vm.toml"),
        run_dir=Path("/run/lrms_vm"), cell=cell, guest=b"\x7fELF",
    )  # fmt: skip


def test_the_files_hold_no_placeholder_and_name_this_installation(tmp_path: Path) -> None:
    files = {file.path.name: file.content for file in planned(tmp_path)}
    assert all(
        f"@{name}@".encode() not in text for text in files.values() for name in ("PYTHON", "CONFIG", "RUN_DIR", "EXEC")
    )
    assert all(b"@SGE_" not in text for text in files.values())
    for name in ("gridengine.prolog", "gridengine.epilog"):
        assert files[name].startswith(b"#!/bin/sh -p\n")
        assert b"/usr/bin/env -i SGE_ROOT=/var/lib/gridengine SGE_CELL=default SGE_QMASTER_PORT='' " in files[name]
        assert b" /opt/venv/bin/python -I -m lrms_vm " in files[name]
    assert f"exec {tmp_path}/libexec/lrms-vm-exec exec".encode() in files["gridengine.starter"]


def test_an_installation_is_applied_once_and_undone(tmp_path: Path) -> None:
    targets = GridEngineTargets(tmp_path / "opt")
    files = planned(targets.prefix)
    assert {file.path for file in files} == set(targets.all)
    assert {verb for verb, _ in install.changes(files)} == {"new"}
    install.apply(files)
    assert {verb for verb, _ in install.changes(files)} == {"same"}
    assert all(os.access(path, os.X_OK) for path in targets.all)
    assert set(install.undo(targets)) == set(targets.all)
    assert not targets.prefix.exists()


@pytest.mark.parametrize("root", ["/var/lib/grid engine", "relative", "/x'; id"])
def test_a_path_that_a_shell_would_cut_is_refused(tmp_path: Path, root: str) -> None:
    with pytest.raises(UsageError):
        planned(tmp_path, cell=Cell(root))


def test_the_settings_are_printed_for_the_administrator(tmp_path: Path) -> None:
    text = "\n".join(install_gridengine.instructions(GridEngineTargets(tmp_path)))
    for word in ("prolog 'root@", "epilog 'root@", "starter_method", "terminate_method", "vm_capable", "load_sensor"):
        assert word in text
    assert "$job_owner" not in text  # a job can forge it: docs/gridengine.md
