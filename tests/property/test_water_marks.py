"""Whatever is stored and whatever the limits: what has to stay stays, and what goes was worth it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lrms_vm.water_marks import Disk, Limits, Stored, plan

VOS = st.sampled_from(["", "atlas", "cms"])
SIZES = st.integers(0, 1000)


@st.composite
def stored(draw: st.DrawFn) -> list[Stored]:
    rows = draw(st.lists(st.tuples(SIZES, st.integers(0, 9), st.booleans(), VOS), max_size=12))
    return [Stored(f"{number:064x}", *row) for number, row in enumerate(rows)]


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    high = draw(st.integers(0, 100))
    quotas = draw(st.dictionaries(VOS, SIZES))
    return Limits(draw(st.none() | st.integers(0, 5000)), high, draw(st.integers(0, high)), draw(SIZES), quotas)


@given(stored(), limits(), SIZES, SIZES, SIZES, VOS)
def test_a_plan_is_sound(stored: list[Stored], limits: Limits, free: int, other: int, wanted: int, vo: str) -> None:
    made = plan(stored, limits, Disk(5000, free), other_bytes=other, wanted_bytes=wanted, vo=vo)
    by_name = {one.sha256: one for one in stored}
    gone = [by_name[name] for name in made.remove]
    assert len(set(made.remove)) == len(made.remove)
    assert not any(one.stays for one in gone)
    left = [one for one in stored if one not in gone]
    if made.short_vo is None:
        assert made.taken_bytes == other + sum(one.disk_bytes for one in left)
        limit = other + sum(one.disk_bytes for one in stored) + free - (limits.reserve_bytes or 0)
        assert made.limit_bytes <= max(0, limit)
        assert limits.quota_bytes is None or made.limit_bytes <= limits.quota_bytes
    assert made.short_bytes == max(0, made.taken_bytes + wanted - made.limit_bytes)
    if made.short_bytes and made.short_vo is None:
        assert all(one.stays for one in left), "short although something could have gone"
    if vo not in limits.vo_quota_bytes and gone:  # in the order of last use, without a gap
        oldest_left = min(((one.last_used_at, one.sha256) for one in left if not one.stays), default=None)
        assert oldest_left is None or max((one.last_used_at, one.sha256) for one in gone) < oldest_left
