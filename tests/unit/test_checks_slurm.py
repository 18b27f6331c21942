"""What doctor makes of slurm.conf."""

from __future__ import annotations

import pytest

from lrms_vm.checks import batch_start, hook_time


@pytest.mark.parametrize(
    ("shown", "enough"),
    [("600 sec", True), ("900 sec", True), ("599 sec", False), ("10 sec", False), ("", False), ("(null)", False)],
)
def test_slurm_must_wait_for_a_script_as_long_as_a_prologue_may_take(shown: str, enough: bool) -> None:
    found = batch_start(shown, 600)
    assert found.ok is enough
    assert ("BatchStartTimeout=600" in found.remedy) is not enough


@pytest.mark.parametrize(
    ("shown", "enough"),
    [("65534", True), ("700 sec", True), ("900", True), ("699 sec", False), ("0", False), ("", True), ("(null)", True)],
)
def test_slurmd_must_let_a_hook_come_to_its_own_end(shown: str, enough: bool) -> None:
    found = hook_time(shown, 600, 60)
    assert found.ok is enough
    assert ("PrologEpilogTimeout=700" in found.remedy) is not enough
