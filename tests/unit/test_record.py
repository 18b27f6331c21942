from __future__ import annotations

from pathlib import Path

import pytest

from lrms_vm.errors import NodeError
from lrms_vm.record import STEPS, Record, read


def test_what_is_noted_is_read_back_in_order(tmp_path: Path) -> None:
    record = Record(tmp_path / "r")
    record.begin(uid=7)
    record.note("lease", image="a")
    with record.phase("overlay"):
        record.note("overlay")
    noted = read(tmp_path / "r")
    assert list(noted.steps) == ["begin", "lease", "overlay"]
    assert noted.steps["begin"]["uid"] == 7
    assert "overlay" in noted.phases_ms
    assert not noted.complete


def test_a_line_cut_short_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "r"
    Record(path).begin(uid=7)
    with path.open("ab") as file:
        file.write(b'{"step": "dom')
    assert list(read(path).steps) == ["begin"]


@pytest.mark.parametrize(
    "damage", [b"\x00" * 5000, b"[" * 5000, b'"begin"\n7\nnull\n', b'{"step": 7}\n{"phase": "x", "ms": "y"}\n']
)
def test_a_damaged_record_notes_nothing_and_does_not_raise(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "r").write_bytes(damage)
    assert read(tmp_path / "r").steps == {}


def test_how_long_it_lasts_goes_by_the_clock_that_a_reboot_alone_sets(tmp_path: Path) -> None:
    assert read(tmp_path / "none").lasted_s(100.0) is None
    Record(tmp_path / "r").begin(began=40.0, started_at=1e9)
    noted = read(tmp_path / "r")
    assert noted.lasted_s(100.0) == 60.0
    assert noted.lasted_s(39.0) is None


def test_an_absent_record_notes_nothing(tmp_path: Path) -> None:
    assert read(tmp_path / "none").steps == {}


def test_a_record_is_never_begun_twice(tmp_path: Path) -> None:
    Record(tmp_path / "r").begin()
    with pytest.raises(NodeError):
        Record(tmp_path / "r").begin()


def test_a_step_that_the_crash_tests_do_not_know_cannot_be_noted(tmp_path: Path) -> None:
    record = Record(tmp_path / "r")
    record.begin()
    with pytest.raises(ValueError, match="not in STEPS"):
        record.note("something new")


def test_every_step_is_announced_once_it_is_noted(tmp_path: Path) -> None:
    seen: list[str] = []
    record = Record(tmp_path / "r", on_note=lambda step: seen.append(f"{step}:{step in read(tmp_path / 'r').steps}"))
    record.begin()
    for step in STEPS[1:]:
        record.note(step)
    assert seen == [f"{step}:True" for step in STEPS]
