"""Subscribed image lists on a node: what a job may name, and what happens when lists change, lie or are away."""

from __future__ import annotations

import hashlib
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lrms_vm import cache, list_copy, list_refresh, store, trust_state
from lrms_vm.config import Config, Subscription
from lrms_vm.decision import Decision, JobDecision
from lrms_vm.errors import ConfigError, LrmsVmError, SiteError
from lrms_vm.image import ImageEntry, parse_reference
from lrms_vm.list_refresh import Refresher, forget, path_of
from lrms_vm.lists import Lists, outline
from lrms_vm.paths import Places
from lrms_vm.resolve import resolve
from lrms_vm.trust.policy import Policy
from tests.cache_fakes import FakeFetch, places_at
from tests.certs.make_certs import ec_key, person
from tests.lists import ALICE, ANCHORS, BOB, CA, IMAGE, LIST, NOW, image, payload, policy, sign

URL = "https://images.example.org/atlas.image_list"
IMAGE_URL = "https://images.example.org/a.img"
SHA256 = hashlib.sha256(IMAGE).hexdigest()
DOWN = SiteError("no route", code="image-server-down")
BOBS = """[[builder]]
name = "bob"
issuer = "CN=Test CA,DC=TestGrid,DC=org"
subject = "CN=Bob Example,O=People,DC=TestGrid,DC=org"
images = ["{}"]
"""


class Site:
    """A node that subscribes to a list or two; every job is a new `Lists`."""

    def __init__(self, root: Path) -> None:
        self.places: Places = places_at(root)
        self.subscriptions = {"atlas": Subscription("atlas", URL)}
        self.server = FakeFetch({IMAGE_URL: IMAGE})
        self.policy: Policy = policy()
        self.at = NOW

    def serve(self, *images: dict[str, Any], url: str = URL, who: Any = ALICE, **changes: str) -> None:
        self.server.served[url] = sign(payload(list(images) or None, **changes), who)

    def decide(self) -> JobDecision:
        return JobDecision(Decision(self.policy, ANCHORS), "atlas001", (), "", self.at)

    def refresher(self, decide: JobDecision | None = None, **more: Any) -> Refresher:
        deadline = time.monotonic() + 20
        return Refresher(self.subscriptions, self.places, decide or self.decide(), self.server, deadline, **more)

    def find(self, text: str) -> ImageEntry | None:
        time.sleep(0.01)  # a file's time goes in steps: what was answered before this job is older than it
        return Lists(self.refresher()).find(parse_reference(text, source="test"))

    def code(self, text: str) -> str:
        with pytest.raises(LrmsVmError) as caught:
            self.find(text)
        self.error = caught.value
        return caught.value.code

    def acquire(self, text: str, lease: str = "local-1.n") -> Any:
        decide = self.decide()
        entry = Lists(self.refresher(decide)).find(parse_reference(text, source="test"))
        assert entry is not None
        return cache.acquire(
            entry, places=self.places, lease=lease, decide=decide, fetch=self.server,
            max_image_bytes=1 << 20, deadline=time.monotonic() + 20,
        )  # fmt: skip

    def age(self, name: str = "atlas") -> None:
        os.utime(path_of(self.places, name), (1, 1))
        self.age_downs()

    def age_downs(self) -> None:
        for path in self.places.cache_locks.glob("list-*.down"):
            os.utime(path, (1, 1))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.serve()
    return made


# --- what a job may name ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["atlas/sim", "atlas/sim@1.2.3", f"sha256:{SHA256}"])
def test_an_image_of_a_list_is_found_by_name_version_and_digest(site: Site, text: str) -> None:
    entry = site.find(text)
    assert entry is not None and entry.listed is not None
    assert (entry.name, entry.version, entry.url, entry.listed.subscription) == (
        "atlas/sim", "1.2.3", IMAGE_URL, "atlas",
    )  # fmt: skip


def test_it_boots_from_the_cache_and_its_list_is_asked_once(site: Site) -> None:
    first = site.acquire("atlas/sim")
    assert Path(first.path).read_bytes() == IMAGE
    assert (first.signer, first.rule) == ("CN=Alice Example,O=People,DC=TestGrid,DC=org", "alice")
    assert site.acquire("atlas/sim", "local-2.n") == first
    assert sorted(site.server.log) == [IMAGE_URL, URL]


def test_bytes_that_the_list_does_not_give_are_refused(site: Site) -> None:
    site.server.served[IMAGE_URL] = IMAGE[:-1] + b"X"
    with pytest.raises(LrmsVmError) as caught:
        site.acquire("atlas/sim")
    assert caught.value.code == "bytes-differ"
    assert list(store.stored(site.places)) == []


def test_both_digests_of_a_list_are_compared(site: Site) -> None:
    site.serve(image(**{"sl:checksum:sha512": "0" * 128}))
    with pytest.raises(LrmsVmError) as caught:
        site.acquire("atlas/sim")
    assert caught.value.code == "bytes-differ"


def test_without_a_version_the_highest_is_meant(site: Site) -> None:
    site.serve(*(image(**{"hv:version": version}) for version in ("1.9", "1.10", "1.2")))
    assert [getattr(site.find(text), "version", "") for text in ("atlas/sim", "atlas/sim@1.9")] == ["1.10", "1.9"]


def test_names_are_exact(site: Site) -> None:
    assert [site.find(text) for text in ("atlas/si", "atlas/sim2", "tlas/sim", "sim", "atlas")] == [None] * 5


def test_the_sites_own_entry_wins_and_another_version_is_the_lists(site: Site) -> None:
    own = ImageEntry("atlas/sim", "/srv/own.raw", version="9")
    config = Config(images={"atlas/sim": own})
    assert resolve(parse_reference("atlas/sim", source="t"), config, site_find(site)) is own
    found = resolve(parse_reference("atlas/sim@1.2.3", source="t"), config, site_find(site))
    assert found.listed is not None


def site_find(site: Site) -> Any:
    return Lists(site.refresher()).find


def test_an_image_of_the_sites_own_is_found_by_its_digest_too() -> None:
    config = Config(images={"a": ImageEntry("a", "/a"), "b": ImageEntry("b", "/b")})
    reference = parse_reference(f"sha256:{SHA256}", source="t")
    assert resolve(reference, config, sha256_of=lambda one: SHA256 if one.name == "b" else None).name == "b"
    with pytest.raises(LrmsVmError) as caught:
        resolve(reference, config, sha256_of=lambda _: None)
    assert caught.value.code == "image-unknown"


@pytest.mark.parametrize(
    ("text", "code"), [("nobody/knows", "image-unknown"), ("atlas/sim@5", "image-version-unknown")]
)
def test_what_no_list_ever_had_is_unknown(site: Site, text: str, code: str) -> None:
    with pytest.raises(LrmsVmError) as caught:
        resolve(parse_reference(text, source="t"), Config(), site_find(site))
    assert (caught.value.code, caught.value.exit_code) == (code, 77)


def test_a_name_in_two_lists_is_the_one_whose_builder_may_use_it(site: Site) -> None:
    other = "https://bob.example.org/list"
    site.subscriptions = {"bob": Subscription("bob", other), **site.subscriptions}
    site.serve(image(content=b"x" * 600), url=other, who=BOB, **{"dc:identifier": "bobs"})
    site.policy = policy(more=BOBS.format("bob/*"))
    entry = site.find("atlas/sim")
    assert entry is not None and entry.listed is not None and entry.listed.subscription == "atlas"
    site.policy = policy(more=BOBS.format("*"))
    with pytest.raises(ConfigError, match="lists bob and atlas") as caught:
        site.find("atlas/sim")
    assert caught.value.code == "image-ambiguous"
    assert site.find(f"sha256:{SHA256}") is not None


def test_the_same_image_in_two_lists_is_not_ambiguous(site: Site) -> None:
    site.subscriptions["again"] = Subscription("again", "https://mirror.example.org/list")
    site.serve(url="https://mirror.example.org/list")
    assert site.find("atlas/sim") is not None


# --- withdrawn and superseded ----------------------------------------------------------------------------------------


def test_a_withdrawn_image_stops_booting_from_a_warm_cache(site: Site) -> None:
    site.acquire("atlas/sim")
    site.serve(image("atlas/other"), **{"hv:version": "8", "dc:date:created": "2026-11-22T11:30:00Z"})
    site.age()
    for text in ("atlas/sim", "atlas/sim@1.2.3", f"sha256:{SHA256}"):
        if text.startswith("sha256"):
            site.serve(image("atlas/other", b"y" * 600), **{"hv:version": "9"})
            site.age()
        assert site.code(text) == "image-withdrawn"
        assert "Alice" in str(site.error) and "withdrawn in version" in str(site.error)


def test_a_superseded_version_stops_booting_and_says_by_what(site: Site) -> None:
    site.acquire("atlas/sim@1.2.3")
    site.serve(image(content=b"n" * 600, **{"hv:version": "1.3"}), **{"hv:version": "8"})
    site.age()
    assert site.code("atlas/sim@1.2.3") == "image-superseded"
    assert "superseded by 1.3 in version 8 of the list atlas (2026-11-22T11:00:00Z)" in str(site.error)
    assert site.code(f"sha256:{SHA256}") == "image-superseded"


def test_what_is_gone_is_remembered_over_many_versions_and_forgotten_when_it_comes_back(site: Site) -> None:
    site.find("atlas/sim")
    for version in range(8, 12):
        site.serve(image("atlas/other"), **{"hv:version": str(version)})
        site.age()
        assert site.find("atlas/other") is not None
    assert site.code("atlas/sim") == "image-withdrawn"
    assert "in version 8 of" in str(site.error)
    site.serve(**{"hv:version": "12"})
    assert site.find("atlas/sim") is not None


def test_an_empty_list_withdraws_everything(site: Site) -> None:
    site.find("atlas/sim")
    site.server.served[URL] = sign(payload([], **{"hv:version": "8"}))
    site.age()
    assert site.code("atlas/sim") == "image-withdrawn"


# --- when the server is asked ----------------------------------------------------------------------------------------


def test_a_no_is_asked_of_the_server_before_it_counts(site: Site) -> None:
    site.find("atlas/sim")
    site.serve(image(), image("atlas/new"), **{"hv:version": "8"})
    assert site.find("atlas/new") is not None


def test_a_refusal_by_policy_is_asked_again_too(site: Site) -> None:
    site.find("atlas/sim")
    site.policy = policy("vo = ['atlas']")
    assert site.code("atlas/sim") == "builder-not-for-vo"
    site.serve(image(**{"lv:vo": "atlas"}), **{"hv:version": "8"})
    assert site.find("atlas/sim") is not None


def test_a_copy_works_with_the_server_down_and_later_jobs_do_not_wait_for_it(site: Site) -> None:
    site.find("atlas/sim")
    site.server.served[URL] = DOWN
    site.age()
    asked = len(site.server.log)
    assert site.find("atlas/sim") is not None and site.find("atlas/sim") is not None
    assert len(site.server.log) == asked + 1


def test_a_copy_works_until_it_expires_and_then_nobody_can_tell(site: Site) -> None:
    site.find("atlas/sim")
    site.server.served[URL] = DOWN
    site.policy = policy(defaults='max_list_age = "1h"')
    assert site.code("atlas/sim") == "list-expired"
    assert site.error.exit_code == 75 and "no route" in str(site.error)


def test_with_the_server_down_nothing_is_refused_for_good(site: Site) -> None:
    site.find("atlas/sim")
    site.server.served[URL] = DOWN
    for text in ("atlas/new", "atlas/sim@9", f"sha256:{'0' * 64}"):
        assert (site.code(text), site.error.exit_code) == ("image-server-down", 75)
    site.policy = policy("vo = ['atlas']")
    assert (site.code("atlas/sim"), site.error.exit_code) == ("image-server-down", 75)


def test_a_list_that_was_never_had_and_is_not_there_is_the_sites_fault(site: Site) -> None:
    site.server.served.pop(URL)
    assert (site.code("atlas/sim"), site.error.exit_code) == ("list-missing", 75)
    site.server.served[URL] = DOWN
    site.age_downs()
    assert site.code("atlas/sim") == "image-server-down"


def test_a_list_that_is_down_does_not_stop_the_others_images(site: Site) -> None:
    site.subscriptions = {"dead": Subscription("dead", "https://dead.example.org/list"), **site.subscriptions}
    assert site.find("atlas/sim") is not None
    assert (site.code("atlas/none"), site.error.exit_code) == ("list-missing", 75)


def test_a_server_that_just_failed_is_left_alone_for_a_moment(site: Site) -> None:
    site.server.served[URL] = DOWN
    site.code("atlas/sim")
    asked = len(site.server.log)
    assert site.code("atlas/sim") == "image-server-down"
    assert len(site.server.log) == asked


def test_a_list_too_large_is_refused(site: Site) -> None:
    site.server.served[URL] = b" " * (3 << 20)
    assert (site.code("atlas/sim"), site.error.exit_code) == ("list-too-large", 75)


def test_a_list_from_another_place_than_before_is_not_taken_for_the_new_one(site: Site) -> None:
    site.find("atlas/sim")
    site.subscriptions["atlas"] = Subscription("atlas", "https://new.example.org/list")
    assert site.code("atlas/sim") == "list-missing"


# --- what must not be believed ---------------------------------------------------------------------------------------

BAD = {
    "list-older": {"hv:version": "6"},
    "list-differs": {"dc:title": "another"},
    "list-other": {"dc:identifier": "another", "hv:version": "9"},
    "list-expired": {"hv:version": "9", "dc:date:created": "2026-09-01T00:00:00Z"},
}


@pytest.mark.parametrize("code", BAD)
def test_a_list_that_must_not_count_changes_nothing(site: Site, code: str) -> None:
    site.find("atlas/sim")
    before = state(site)
    site.serve(image("atlas/evil"), **BAD[code])
    site.age()
    assert site.find("atlas/sim") is not None, "the copy is good still"
    assert (site.code("atlas/evil"), site.error.exit_code) == (code, 75)
    assert state(site) == before


def test_a_list_with_one_changed_byte_moves_no_ratchet(site: Site) -> None:
    site.find("atlas/sim")
    before = state(site)
    site.serve(image(), **{"hv:version": "99"})
    site.server.served[URL] = site.server.served[URL].replace(b'"99"', b'"98"')  # type: ignore[union-attr]
    site.age()
    assert site.code("atlas/none") == "list-bytes-differ"
    assert state(site) == before


def test_a_list_by_somebody_who_is_no_builder_is_refused(site: Site) -> None:
    site.serve(who=BOB)
    assert site.code("atlas/sim") == "not-a-builder"


def state(site: Site) -> dict[str, bytes]:
    files = [*site.places.lists.iterdir(), *(path for path in site.places.trust.iterdir() if path.is_file())]
    return {path.name: path.read_bytes() for path in files}


def test_after_a_change_of_keys_the_old_keys_last_list_does_not_come_back(site: Site) -> None:
    site.find("atlas/sim")
    old = site.server.served[URL]
    successor = CA.issue(person("Alice Example"), key=ec_key(7))
    site.serve(image("atlas/new"), who=successor, **{"hv:version": "3", "dc:date:created": "2026-11-22T11:30:00Z"})
    site.age()
    assert site.find("atlas/new") is not None, "a stolen key's high version does not lock out its successor"
    site.server.served[URL] = old
    site.age()
    assert site.code("atlas/sim") == "list-older"


def test_a_copy_restored_from_a_backup_is_older_than_the_ratchet(site: Site) -> None:
    site.find("atlas/sim")
    backup = path_of(site.places, "atlas").read_bytes()
    site.serve(image("atlas/other"), **{"hv:version": "8"})
    site.age()
    site.find("atlas/other")
    path_of(site.places, "atlas").write_bytes(backup)
    assert site.code("atlas/sim") == "image-withdrawn"


def test_a_first_list_can_be_pinned_by_its_identifier(site: Site) -> None:
    site.subscriptions["atlas"] = Subscription("atlas", URL, identifier="another")
    assert site.code("atlas/sim") == "list-other"
    site.subscriptions["atlas"] = Subscription("atlas", URL, identifier=LIST)
    site.age_downs()
    assert site.find("atlas/sim") is not None


@pytest.mark.parametrize("damage", [b"", b"garbage", b"lrms_vm-list 1 9 9 9\n", b"lrms_vm-list 1 -1 2 3\n{}"])
def test_a_damaged_copy_is_fetched_again(site: Site, damage: bytes) -> None:
    site.find("atlas/sim")
    path_of(site.places, "atlas").write_bytes(damage)
    assert site.find("atlas/sim") is not None
    assert site.server.log.count(URL) == 2


def test_a_damaged_extract_is_fetched_again(site: Site) -> None:
    site.find("atlas/sim")
    path = path_of(site.places, "atlas")
    path.write_bytes(path.read_bytes()[:-40] + b"x" * 40)
    assert site.find("atlas/sim") is not None
    assert site.server.log.count(URL) == 2


def test_a_clock_that_is_back_stops_lists_and_images(site: Site) -> None:
    site.acquire("atlas/sim")
    site.at = NOW - timedelta(hours=2)
    with pytest.raises(SiteError) as caught:
        site.acquire("atlas/sim", "local-2.n")
    assert caught.value.code == "clock-behind" and "lrms-vm trust reset clock" in str(caught.value)
    assert site.code("atlas/none") == "clock-behind"


# --- recovery --------------------------------------------------------------------------------------------------------


def test_an_administrator_can_go_back_to_an_older_list_with_a_reason(site: Site) -> None:
    site.find("atlas/sim")
    site.serve(image("atlas/other"))
    forget(site.subscriptions["atlas"], site.places, reason="the server was restored", at=NOW)
    assert site.find("atlas/other") is not None
    (entry,) = trust_state.history(site.places)
    assert (entry["what"], entry["reason"]) == (f"ratchet {LIST}", "the server was restored")


def test_many_images_are_found_by_one_page_each(site: Site) -> None:
    site.serve(*(image(f"atlas/i{number}") for number in range(300)))
    entry = site.find("atlas/i299")
    assert entry is not None and entry.name == "atlas/i299"
    copy = list_copy.read(path_of(site.places, "atlas"))
    assert copy is not None
    assert [row.name for row in copy.rows()] == [f"atlas/i{number}" for number in range(300)]
    assert len(copy.with_sha256(SHA256)) == 300 and copy.with_sha256("1.2.3") == []
    assert copy.gone() == []


def test_an_outline_is_what_the_copies_say(site: Site) -> None:
    reference = parse_reference("atlas/sim", source="t")
    assert outline(reference, site.subscriptions, site.places) is None
    site.find("atlas/sim")
    found = outline(reference, site.subscriptions, site.places)
    assert found is not None and found.version == "1.2.3"


def test_jobs_of_one_list_do_not_wait_for_anothers_server(site: Site) -> None:
    site.find("atlas/sim")
    site.subscriptions["dead"] = Subscription("dead", "https://dead.example.org/list")
    assert site.find("atlas/sim") is not None
    assert "https://dead.example.org/list" not in site.server.log


# --- lists that the site no longer subscribes to ----------------------------------------------------------------------


def test_the_copy_of_a_list_that_is_no_longer_subscribed_to_goes_after_a_day_with_a_word(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(list_refresh.journal, "say", lambda level, key, text: said.append(f"{key}: {text}"))
    site.find("atlas/sim")
    site.age()
    assert list_refresh.remove_unsubscribed(site.places, site.subscriptions) == []
    assert list_refresh.remove_unsubscribed(site.places, {}) == ["atlas"]
    assert not path_of(site.places, "atlas").exists()
    assert said[1:] == ["list atlas: its copy was removed: there is no [lists.atlas] any more"]
    assert list_refresh.remove_unsubscribed(site.places, {}) == []


def test_a_copy_that_was_asked_for_today_outlives_a_slip_in_the_configuration(site: Site) -> None:
    site.find("atlas/sim")
    assert list_refresh.remove_unsubscribed(site.places, {}) == []
    site.server.served.clear()
    assert site.find("atlas/sim") is not None


def test_subscribed_to_again_an_older_version_does_not_count_even_if_a_crash_came_before_the_ratchet(
    site: Site,
) -> None:
    site.find("atlas/sim")
    old = site.server.served[URL]
    ratchet = state(site)
    site.serve(image("atlas/other"), **{"hv:version": "8"})
    site.age()
    site.find("atlas/other")
    for name, data in ratchet.items():
        if not name.endswith(".list"):
            (site.places.trust / name).write_bytes(data)  # as if it had ended between the copy and the ratchet
    site.age()
    list_refresh.remove_unsubscribed(site.places, {})
    site.server.served[URL] = old
    assert site.code("atlas/sim") == "list-older"
