"""The program is replaced while a job's guest is up: the payload ends as it would have, and the new program clears up."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.slurm.conftest import Desk

# Of the new version; whoever was started from the old one and loads one of these now would end by it.
NOT_FOR_THE_OLD = ("payload", "attach", "starter", "launch_service", "launchers", "srun_options")


@pytest.fixture
def replaced(desk: Desk) -> Iterator[Path]:
    """The cluster's own program, put back afterwards."""
    (home,) = (desk.layout.opt / "venv/lib").glob("python3.*/site-packages/lrms_vm")
    kept = home.with_name("lrms_vm.kept")
    shutil.copytree(home, kept, symlinks=True)
    yield home
    shutil.rmtree(home)
    kept.rename(home)


def replace(home: Path) -> None:
    """As dpkg does: new files under the old names, the old ones gone."""
    fresh = home.with_name("lrms_vm.new")
    shutil.copytree(home, fresh, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in NOT_FOR_THE_OLD:
        (fresh / f"{name}.py").write_text("raise RuntimeError('of another version')\n")
    (fresh / "__init__.py").write_text('__version__ = "9.9.9"\n')
    old = home.with_name("lrms_vm.old")
    home.rename(old)
    fresh.rename(home)
    shutil.rmtree(old)


@pytest.mark.guest
def test_a_payload_outlives_its_program_and_the_next_one_tears_its_guest_down(desk: Desk, replaced: Path) -> None:
    waiting = "echo before; echo up >up; while test ! -e on; do sleep 0.2; done; echo after; echo late >&2; exit 3\n"
    job_id = desk.sbatch("--mem=700", "--time=10", "--vm-image=minimal", script=waiting)
    desk.started(job_id)
    desk.written("up")
    replace(replaced)
    (desk.directory / "on").touch()
    job = desk.end(job_id)
    assert (job.state, job.exit_code) == ("FAILED", "3:0"), job.output()
    assert desk.output(job).split() == ["before", "after", "late"]
    desk.nothing_left(job_id)
    assert len(desk.history(job_id)) == 1
