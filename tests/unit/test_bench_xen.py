"""bench's row for Xen: what it says of the pairs it measured."""

from __future__ import annotations

from bench import xen


def test_the_row_is_the_ratio_of_medians() -> None:
    found = xen.result([(30.0, 30.0), (33.0, 28.0), (90.0, 31.0)])
    assert (found.value, found.goal, found.held) == (33.0 / 30.0, 1.15, True)
    assert "33.00 s" in found.what and "30.00 s" in found.what


def test_too_slow_is_a_missed_goal() -> None:
    assert not xen.result([(36.0, 30.0)]).held
