from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lrms_vm import store, trust_state
from lrms_vm.errors import LrmsVmError, NodeError, RequestError, SiteError, UsageError
from lrms_vm.paths import Places
from lrms_vm.trust.freshness import ClockMark, Ratchet, Seen
from lrms_vm.trust.verify import Claim
from lrms_vm.trust_state import ClockChecked
from tests.cache_fakes import IMAGE, FakeDecide, FakeEndorsement, acquire, leftovers, places_at, served
from tests.lists import ALICE, BOB, NOW

DIGEST = bytes(range(20))
FIRST, TWIN = "a" * 64, "b" * 64
DAY_S = 86400
RATCHET = Ratchet({("list-1", "c" * 64): Seen("7", bytes(32), NOW)})


@pytest.fixture
def places(tmp_path: Path) -> Places:
    made = places_at(tmp_path)
    trust_state.prepare(made)
    return made


def claim(who: Any = ALICE) -> Claim:
    return Claim(
        kind="dgst", digest_algorithm="sha1", signed_digest=DIGEST, signer="CN=Alice", issuer="CN=CA", rule="alice",
        rule_where="test:1", runner=None, max_memory_mib=None, network=None, valid_until=NOW + timedelta(days=90),
        signature=b"s", certificate=who.certificate, max_image_bytes=1 << 30, blocked={}, contact="test",
    )  # fmt: skip


def check(places: Places, sha256: str = FIRST, *, days: float = 0, who: Any = ALICE, max_age_days: int = 30) -> None:
    trust_state.check_bare(
        places, claim(who), sha256, DIGEST, at=NOW + timedelta(days=days), max_age_s=max_age_days * DAY_S
    )


def code_of(action: Any) -> str:
    with pytest.raises(LrmsVmError) as caught:
        action()
    return caught.value.code


def test_what_is_missing_is_fresh(tmp_path: Path) -> None:
    places = places_at(tmp_path)
    assert trust_state.read_ratchet(places) == Ratchet()
    assert trust_state.read_clock(places) is None
    assert trust_state.check_clock(places, NOW).mark == ClockMark(NOW)
    assert trust_state.history(places) == [] and trust_state.bare_signatures(places) == []


def test_the_twin_of_a_sha1_image_is_refused_and_the_first_stays(places: Places) -> None:
    check(places)
    with pytest.raises(RequestError, match=f"same sha1:{DIGEST.hex()} as sha256:{FIRST}") as caught:
        check(places, TWIN)
    assert caught.value.code == "twin-refused"
    with pytest.raises(RequestError):
        check(places, TWIN, who=BOB)
    check(places)


def test_a_bare_signature_counts_for_so_long_from_when_it_was_first_seen(places: Places) -> None:
    check(places)
    check(places, days=29.9)
    with pytest.raises(RequestError, match="first seen on this node at 2026-11-22 12:00Z") as caught:
        check(places, days=30)
    assert caught.value.code == "signature-aged"
    check(places, days=30, max_age_days=60)
    check(places, days=30, who=BOB)
    with pytest.raises(RequestError):
        check(places, days=31)


def test_an_administrator_lets_go_of_a_pin_with_a_reason(places: Places) -> None:
    check(places)
    trust_state.reset_pin(places, f"sha1:{DIGEST.hex()}", reason="signed again", at=NOW)
    check(places, TWIN, days=40)
    assert trust_state.bare_signatures(places) == [(f"sha1:{DIGEST.hex()}", TWIN, "2027-01-01T12:00:00Z")]
    assert [entry["what"] for entry in trust_state.history(places)] == [f"pin sha1:{DIGEST.hex()}"]


@pytest.mark.parametrize("digest", ["sha1:xyz", "../../x", "sha1:" + "0" * 39, "md5:" + "0" * 40, ""])
def test_a_pin_is_named_by_a_digest(places: Places, digest: str) -> None:
    with pytest.raises(UsageError):
        trust_state.reset_pin(places, digest, reason="r", at=NOW)


def test_the_clocks_mark_is_kept_now_and_then(places: Places) -> None:
    def passes(minutes: float) -> None:
        trust_state.keep_clock(places, trust_state.check_clock(places, NOW + timedelta(minutes=minutes)))

    passes(0)
    before = (places.trust / "clock.json").stat().st_ino
    passes(59)
    assert (places.trust / "clock.json").stat().st_ino == before, "a flush an hour, not one a job"
    passes(61)
    assert trust_state.read_clock(places) == ClockMark(NOW + timedelta(minutes=61))


def test_of_many_that_checked_the_clock_at_once_one_keeps_it(places: Places) -> None:
    herd = [trust_state.check_clock(places, NOW + timedelta(seconds=number)) for number in range(3)]
    for checked in herd:
        trust_state.keep_clock(places, checked)
    assert trust_state.read_clock(places) == herd[0].mark


def test_a_clock_that_an_administrator_set_back_meanwhile_stays_back(places: Places) -> None:
    trust_state.keep_clock(places, ClockChecked(None, ClockMark(NOW + timedelta(days=365))))
    late = trust_state.check_clock(places, NOW + timedelta(days=365, hours=2))
    trust_state.reset_clock(places, reason="it was a year ahead", at=NOW)
    trust_state.keep_clock(places, late)
    assert trust_state.read_clock(places) == ClockMark(NOW)


def test_a_clock_that_is_back_is_refused_until_an_administrator_says_so(places: Places) -> None:
    trust_state.keep_clock(places, ClockChecked(None, ClockMark(NOW)))
    back = NOW - timedelta(days=365)
    with pytest.raises(SiteError, match="lrms-vm trust reset clock --reason") as caught:
        trust_state.check_clock(places, back)
    assert caught.value.code == "clock-behind"
    trust_state.reset_clock(places, reason="it was a year ahead", at=back)
    assert trust_state.check_clock(places, back).mark == ClockMark(back)


def test_a_ratchet_can_be_forgotten_list_by_list(places: Places) -> None:
    other = ("list-2", "d" * 64)
    trust_state.keep_ratchet(places, replace(RATCHET, lists={**RATCHET.lists, other: Seen("1", bytes(32), NOW)}))
    trust_state.reset_ratchet(places, "list-1", reason="r", at=NOW)
    assert list(trust_state.read_ratchet(places).lists) == [other]
    with pytest.raises(UsageError):
        trust_state.reset_ratchet(places, "list-1", reason="r", at=NOW)


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", b"[" * 5000, b'{"format": 1, "sha256": "x", "state": "{}"}'])
def test_damage_stops_what_relies_on_it_names_its_remedy_and_is_recovered(places: Places, damage: bytes) -> None:
    trust_state.keep_ratchet(places, RATCHET)
    trust_state.keep_clock(places, ClockChecked(None, ClockMark(NOW)))
    check(places)
    for path in (places.trust / "ratchet.json", places.trust / "clock.json", *(places.trust / "bare").iterdir()):
        path.write_bytes(damage)
    for action, code, verb in (
        (lambda: trust_state.read_ratchet(places), "ratchet-damaged", "lrms-vm trust reset ratchet LIST --reason"),
        (lambda: trust_state.check_clock(places, NOW), "clock-damaged", "lrms-vm trust reset clock --reason"),
        (lambda: check(places), "bare-damaged", f"lrms-vm trust reset pin sha1:{DIGEST.hex()} --reason"),
    ):
        with pytest.raises(SiteError, match=verb) as caught:
            action()
        assert (caught.value.code, caught.value.exit_code) == (code, 75)
    trust_state.reset_ratchet(places, "list-1", reason="disk", at=NOW)
    trust_state.reset_clock(places, reason="disk", at=NOW)
    trust_state.reset_pin(places, f"sha1:{DIGEST.hex()}", reason="disk", at=NOW)
    assert trust_state.read_ratchet(places) == Ratchet()
    check(places)
    assert len(trust_state.history(places)) == 3


@pytest.mark.parametrize("reason", ["", "  ", "two\nlines", "x" * 501])
def test_a_recovery_without_a_reason_changes_nothing(places: Places, reason: str) -> None:
    trust_state.keep_ratchet(places, RATCHET)
    with pytest.raises(UsageError):
        trust_state.reset_ratchet(places, "list-1", reason=reason, at=NOW)
    with pytest.raises(UsageError):
        trust_state.reset_clock(places, reason=reason, at=NOW)
    assert trust_state.read_ratchet(places) == RATCHET and trust_state.read_clock(places) is None
    assert trust_state.history(places) == []


def test_files_that_others_can_write_are_not_believed(places: Places) -> None:
    trust_state.keep_ratchet(places, RATCHET)
    path = places.trust / "ratchet.json"
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o622)
    assert code_of(lambda: trust_state.read_ratchet(places)) == "state-unsafe"
    path.unlink()
    path.symlink_to("/etc/hostname")
    assert code_of(lambda: trust_state.read_ratchet(places)) == "state-unsafe"


@pytest.mark.parametrize("name", ["lists", "trust"])
def test_a_link_in_place_of_our_directory_is_refused(places: Places, name: str) -> None:
    (places.state_dir / name).rename(places.state_dir / "moved")
    (places.state_dir / name).symlink_to("moved")
    with pytest.raises(NodeError):
        trust_state.prepare(places)


# --- through the cache -----------------------------------------------------------------------------------------------


@dataclass
class BareDecide(FakeDecide):
    """Every image has a bare signature by Alice."""

    def claim(self, files: Any, name: str) -> Any:
        found = super().claim(files, name)
        return replace(claim(), digest_algorithm=found.digest_algorithm, signed_digest=found.signed_digest)

    def bytes(self, claim: Any, digests: Any, size_bytes: int) -> Any:
        assert digests[claim.digest_algorithm] == claim.signed_digest
        return FakeEndorsement(digests["sha256"].hex())


def test_the_cache_holds_bare_signatures_to_their_bytes_and_their_age_warm_and_cold(places: Places) -> None:
    image = acquire(places, served(algorithm="sha1"), decide=BareDecide())
    ((digest, pinned, _),) = trust_state.bare_signatures(places)
    assert pinned == image.sha256 and digest.startswith("sha1:")
    acquire(places, served(algorithm="sha1"), decide=BareDecide())
    aged = BareDecide(at=NOW + timedelta(days=31))
    assert code_of(lambda: acquire(places, served(algorithm="sha1"), decide=aged)) == "signature-aged"


def test_a_twin_never_gets_into_the_cache(places: Places) -> None:
    sha1 = hashlib.sha1(IMAGE, usedforsecurity=False).digest()
    first = replace(claim(), signed_digest=sha1)
    trust_state.check_bare(places, first, FIRST, sha1, at=NOW, max_age_s=DAY_S)
    assert code_of(lambda: acquire(places, served(algorithm="sha1"), decide=BareDecide())) == "twin-refused"
    assert list(store.stored(places)) == [] and leftovers(places) == []


def test_signatures_that_bind_more_are_not_remembered(places: Places) -> None:
    acquire(places, served())
    assert trust_state.bare_signatures(places) == []
