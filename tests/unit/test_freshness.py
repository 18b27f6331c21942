"""Never back: the ratchet per list and key, the clock's high-water mark, and what they are kept in."""

from __future__ import annotations

from datetime import timedelta
from functools import reduce

import pytest

from lrms_vm.errors import RequestError, SiteError, UsageError
from lrms_vm.trust.freshness import (
    CLOCK_TOLERANCE,
    LEAP,
    MAX_LISTS,
    ClockMark,
    Ratchet,
    Seen,
    advance,
    check_clock,
    forget,
    read_clock,
    read_ratchet,
    write_clock,
    write_ratchet,
)
from lrms_vm.trust.verify_list import SignedList, open_list
from tests.certs.make_certs import Identity, ec_key, person
from tests.lists import ALICE, ANCHORS, CA, LIST, NOW, payload, policy, sign

SECOND = timedelta(seconds=1)
SUCCESSOR = CA.issue(person("Alice Example"), key=ec_key(7))


def signed(version: str = "7", who: Identity = ALICE, **changes: str) -> SignedList:
    data = sign(payload(**{"hv:version": version, **changes}), who)
    return open_list(data, anchors=ANCHORS, policy=policy(), at=NOW)


def refusal(ratchet: Ratchet, one: SignedList) -> str:
    with pytest.raises(RequestError) as caught:
        advance(ratchet, one)
    return caught.value.code


def test_only_newer_versions_pass_and_the_same_again() -> None:
    start = advance(Ratchet(), signed("1.9"))
    assert advance(start, signed("1.9")) is start
    newer = advance(start, signed("1.10"))
    assert refusal(newer, signed("1.9")) == "list-older"
    assert refusal(newer, signed("1")) == "list-older"
    assert [seen.version for seen in newer.lists.values()] == ["1.10"]


def test_the_same_version_with_other_content_is_refused() -> None:
    start = advance(Ratchet(), signed("7"))
    assert refusal(start, signed("7", **{"dc:title": "another"})) == "list-differs"
    assert refusal(start, signed("07")) == "list-differs"


def test_a_list_signed_again_with_the_same_content_is_the_same() -> None:
    renewed = CA.issue(person("Alice Example"))
    assert renewed.certificate != ALICE.certificate
    start = advance(Ratchet(), signed("7"))
    assert advance(start, signed("7", renewed)) is start


def test_a_stolen_keys_last_version_does_not_bar_its_successor() -> None:
    after = reduce(advance, [signed("7"), signed("99999"), signed("8", SUCCESSOR)], Ratchet())
    assert len(after.lists) == 2
    assert refusal(after, signed("8")) == "list-older"
    assert advance(after, signed("9", SUCCESSOR))


def test_other_lists_have_ratchets_of_their_own() -> None:
    start = advance(Ratchet(), signed("7"))
    assert len(advance(start, signed("1", **{"dc:identifier": "another"})).lists) == 2


def test_a_refused_list_moves_nothing() -> None:
    start = advance(Ratchet(), signed("7"))
    before = write_ratchet(start)
    refusal(start, signed("6"))
    assert write_ratchet(start) == before


def test_an_administrator_can_forget_a_list_or_one_key_of_it() -> None:
    both = reduce(advance, [signed("99"), signed("8", SUCCESSOR)], Ratchet())
    one = forget(both, LIST, signed("99").spki_sha256)
    assert [seen.version for seen in one.lists.values()] == ["8"]
    assert advance(one, signed("7"))
    assert forget(both, LIST).lists == {}
    for identifier, spki in (("another", None), (LIST, "0" * 64)):
        with pytest.raises(UsageError) as caught:
            forget(both, identifier, spki)
        assert caught.value.code == "list-unknown"


def test_what_is_kept_is_bounded_and_can_be_read_back() -> None:
    seen = Seen("1" * 64, b"\xff" * 32, NOW)
    full = Ratchet({(f"{number:0128}", "f" * 64): seen for number in range(MAX_LISTS)})
    assert read_ratchet(write_ratchet(full), source="ratchet") == full
    with pytest.raises(SiteError) as caught:
        advance(full, signed())
    assert caught.value.code == "ratchet-full"


def test_a_damaged_ratchet_is_the_sites_matter() -> None:
    data = write_ratchet(advance(Ratchet(), signed("7")))
    assert read_ratchet(data, source="ratchet").lists
    damaged = [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(len(data))]
    for one in (*damaged, b"", b"{}", b"[]", b"null", b'{"state": 1}', data[:-1], data + data, b"\xff", b"[" * 9999):
        with pytest.raises(SiteError) as caught:
            read_ratchet(one, source="ratchet")
        assert caught.value.code == "ratchet-damaged"


def test_the_clock_goes_on() -> None:
    assert check_clock(None, NOW) == ClockMark(NOW)
    assert check_clock(ClockMark(NOW), NOW + SECOND) == ClockMark(NOW + SECOND)
    assert check_clock(ClockMark(NOW), NOW + LEAP) == ClockMark(NOW + LEAP)


def test_a_clock_that_is_set_a_little_back_does_not_take_the_mark_with_it() -> None:
    assert check_clock(ClockMark(NOW), NOW - CLOCK_TOLERANCE) == ClockMark(NOW)


def test_a_clock_that_is_back_is_the_sites_matter() -> None:
    for back in (CLOCK_TOLERANCE + SECOND, timedelta(days=365)):
        with pytest.raises(SiteError) as caught:
            check_clock(ClockMark(NOW), NOW - back)
        assert caught.value.code == "clock-behind"


def test_a_clock_that_leapt_ahead_for_a_moment_bars_nothing() -> None:
    ten_years = NOW + timedelta(days=3650)
    leapt = check_clock(ClockMark(NOW), ten_years)
    leapt = check_clock(leapt, ten_years + timedelta(minutes=59))
    assert leapt == ClockMark(NOW, ten_years)
    assert check_clock(leapt, NOW + SECOND) == ClockMark(NOW + SECOND)


def test_a_leap_that_lasts_is_believed_and_can_be_undone() -> None:
    ten_years = NOW + timedelta(days=3650)
    lasted = check_clock(check_clock(ClockMark(NOW), ten_years), ten_years + timedelta(hours=1))
    assert lasted == ClockMark(ten_years + timedelta(hours=1))
    with pytest.raises(SiteError):
        check_clock(lasted, NOW)
    assert check_clock(ClockMark(NOW), NOW + SECOND)


def test_a_leap_begins_anew_where_the_clock_came_half_of_the_way_back() -> None:
    far, near = NOW + timedelta(days=3650), NOW + timedelta(days=365)
    assert check_clock(check_clock(ClockMark(NOW), far), near) == ClockMark(NOW, near)


def test_a_clock_mark_can_be_read_back_and_a_damaged_one_is_told() -> None:
    for mark in (ClockMark(NOW), ClockMark(NOW, NOW + LEAP)):
        data = write_clock(mark)
        assert read_clock(data, source="clock") == mark
        for at in range(len(data)):
            with pytest.raises(SiteError) as caught:
                read_clock(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], source="clock")
            assert caught.value.code == "clock-damaged"
