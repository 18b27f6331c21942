"""The C plugin: its own tests, and what of it Slurm's loader sees."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SPANK = Path(__file__).parent.parent.parent / "spank"


def make(directory: Path, target: str) -> str:
    if shutil.which("gcc") is None and "CI" not in os.environ:
        pytest.skip("no gcc here")
    done = subprocess.run(["make", "-C", directory, target], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SPANK, tmp_path / "spank", ignore=shutil.ignore_patterns("*.so", "test_lrms_vm")))


def test_the_plugins_logic_against_a_fake_slurm(sources: Path) -> None:
    assert "all good" in make(sources, "test")


def test_only_what_slurm_looks_for_is_exported(sources: Path) -> None:
    if not Path("/usr/include/slurm/spank.h").exists():
        pytest.skip("no Slurm headers here")
    make(sources, "all")
    plugin = sources / "lrms_vm.so"
    symbols = subprocess.run(["nm", "-D", "--defined-only", plugin], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1] for line in symbols.splitlines()}
    assert names == {
        "plugin_name", "plugin_type", "plugin_version", "spank_plugin_version",
        "slurm_spank_init", "slurm_spank_init_post_opt", "slurm_spank_task_init",
    }  # fmt: skip
    dynamic = subprocess.run(["readelf", "-dlW", plugin], capture_output=True, text=True, check=True).stdout
    assert "BIND_NOW" in dynamic
    assert "GNU_RELRO" in dynamic
