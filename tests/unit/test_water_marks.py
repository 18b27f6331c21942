from __future__ import annotations

import pytest

from lrms_vm.water_marks import GIB, Disk, Limits, Stored, default_reserve_bytes, plan

DISK = Disk(total_bytes=1000 * GIB, free_bytes=500 * GIB)


def one(name: str, gib: int, used: int, *, stays: bool = False, vo: str = "") -> Stored:
    return Stored(name, gib * GIB, used, stays, vo)


def limits(**more: object) -> Limits:
    return Limits(**{"quota_bytes": 100 * GIB, "reserve_bytes": 0, **more})  # type: ignore[arg-type]


def test_nothing_goes_below_the_high_mark() -> None:
    stored = [one("a", 60, 1), one("b", 20, 2)]
    assert plan(stored, limits(), DISK, wanted_bytes=10 * GIB).remove == ()


def test_above_the_high_mark_the_least_recently_used_go_until_the_low_mark() -> None:
    stored = [one("new", 30, 9), one("old", 30, 1), one("older", 10, 0), one("newer", 15, 10)]
    made = plan(stored, limits(), DISK, wanted_bytes=10 * GIB)
    assert made.remove == ("older", "old")
    assert (made.taken_bytes, made.short_bytes) == (45 * GIB, 0)


def test_what_stays_never_goes_and_is_counted() -> None:
    stored = [one("held", 80, 1, stays=True), one("idle", 15, 2)]
    made = plan(stored, limits(), DISK, wanted_bytes=30 * GIB)
    assert (made.remove, made.short_bytes) == (("idle",), 10 * GIB)


def test_an_image_may_fill_the_cache_to_its_limit() -> None:
    assert plan([one("a", 50, 1)], limits(), DISK, wanted_bytes=100 * GIB).short_bytes == 0
    assert plan([one("a", 50, 1)], limits(), DISK, wanted_bytes=100 * GIB + 1).short_bytes == 1


@pytest.mark.parametrize("quota", [0, GIB])
def test_a_quota_that_the_image_does_not_fit_is_short(quota: int) -> None:
    assert plan([], limits(quota_bytes=quota), DISK, wanted_bytes=2 * GIB).short_bytes == 2 * GIB - quota


def test_the_reserve_of_the_disk_is_a_limit_too() -> None:
    disk = Disk(1000 * GIB, 20 * GIB)
    stored = [one("a", 30, 1), one("b", 30, 2)]
    made = plan(stored, limits(quota_bytes=None, reserve_bytes=30 * GIB), disk, wanted_bytes=0)
    assert made.limit_bytes == 50 * GIB
    assert made.remove == ("a",)


def test_partials_and_quarantine_are_counted() -> None:
    assert plan([], limits(), DISK, other_bytes=95 * GIB, wanted_bytes=10 * GIB).short_bytes == 5 * GIB


def test_a_vo_makes_room_among_its_own_images() -> None:
    stored = [one("c", 20, 1, vo="cms"), one("a", 20, 2, vo="atlas"), one("b", 5, 3, vo="atlas")]
    made = plan(stored, limits(vo_quota_bytes={"atlas": 30 * GIB}), DISK, wanted_bytes=10 * GIB, vo="atlas")
    assert (made.remove, made.short_vo) == (("a",), None)
    assert plan(stored, limits(), DISK, wanted_bytes=10 * GIB, vo="atlas").remove == ()


def test_a_vo_whose_quota_is_held_is_short_however_much_room_there_is() -> None:
    stored = [one("a", 25, 2, vo="atlas", stays=True), one("c", 20, 1, vo="cms")]
    made = plan(stored, limits(vo_quota_bytes={"atlas": 30 * GIB}), DISK, wanted_bytes=10 * GIB, vo="atlas")
    assert (made.remove, made.short_vo, made.short_bytes) == ((), "atlas", 5 * GIB)


@pytest.mark.parametrize(
    ("total", "reserve"), [(1 << 26, (1 << 26) // 5), (20 * GIB, GIB), (100 * GIB, 2 * GIB), (10000 * GIB, 4 * GIB)]
)
def test_the_default_reserve_fits_the_disk(total: int, reserve: int) -> None:
    assert default_reserve_bytes(total) == reserve
