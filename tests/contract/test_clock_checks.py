"""A clock that is behind what it has shown: doctor says it, health where the batch system takes the node back by itself."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lrms_vm import checks, trust_state
from lrms_vm.cli import main
from lrms_vm.config import Config
from lrms_vm.paths import Places
from lrms_vm.trust.freshness import ClockMark
from lrms_vm.trust_state import ClockChecked


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration of a node that lacks nothing else."""
    if os.geteuid() != 0:
        pytest.skip("the mark is root's")
    monkeypatch.setattr(checks, "_OF_THE_NODE", ())
    path = tmp_path / "c.toml"
    path.write_text(f'version = 1\nstate_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\n')
    return path


def has_shown(file: Path, ahead: timedelta) -> Config:
    """The node's clock was `ahead` of now when a job's image was decided about."""
    config = Config(state_dir=str(file.parent / "state"), run_dir=str(file.parent / "run"))
    places: Places = config.places
    trust_state.keep_clock(places, ClockChecked(None, ClockMark(datetime.now(UTC) + ahead)))
    return config


def health(file: Path, *words: str) -> int:
    return main(["--config", str(file), "health", *words])


def test_a_node_whose_clock_is_right_is_well(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = checks.node_findings(has_shown(file, timedelta(minutes=-30)), comes_back=True)
    assert found.ok and "not behind 20" in found.found
    assert health(file, "--lrms=gridengine", "--node=n1") == 0
    assert "n1:vm_capable:1" in capsys.readouterr().out


def test_one_that_is_behind_takes_no_vm_jobs_until_it_is_right_again(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = has_shown(file, timedelta(days=2))
    (found,) = checks.node_findings(config, comes_back=True)
    assert not found.ok and "the clock says" in found.found
    assert 'lrms-vm trust reset clock --reason "..."' in found.remedy
    assert health(file, "--lrms=gridengine", "--node=n1") == 69
    assert "n1:vm_capable:0" in capsys.readouterr().out
    assert main(["--config", str(file), "trust", "reset", "clock", "--reason", "a test"]) == 0
    assert health(file, "--lrms=gridengine", "--node=n1") == 0
    assert "n1:vm_capable:1" in capsys.readouterr().out


def test_it_is_no_reason_to_drain_a_node_that_an_administrator_must_resume(file: Path) -> None:
    """All nodes may have it at once: from one time server."""
    config = has_shown(file, timedelta(days=2))
    assert list(checks.node_findings(config, comes_back=False)) == []


def test_doctor_asks_for_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_policy", "_images", "_lists", "_sandbox", "_installed", "_slurm", "_slurm_node"):
        monkeypatch.setattr(checks, name, lambda _: iter(()))
    (found,) = checks.all_findings(has_shown(file, timedelta(days=2)))
    assert (found.check, found.ok) == ("clock", False)
