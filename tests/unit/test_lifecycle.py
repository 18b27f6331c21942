from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from lrms_vm.config import Config
from lrms_vm.errors import RequestError
from lrms_vm.lifecycle import NOT_SHARED, shares_of, within
from lrms_vm.request import Request, parse_request


def request(**options: str) -> Request:
    return parse_request({"vm-image": "a", **{f"vm-{word}": text for word, text in options.items()}}, source="test")


def rule(**limits: object) -> Any:
    values: dict[str, object] = {
        "max_memory_mib": None,
        "network": None,
        "runner": "r",
        "runner_where": "trust.toml:9",
        "tier": None,
        "shares": "all",
        "contact": "grid@example.org",
        "valid_until": datetime.now(UTC),
    }
    return SimpleNamespace(**(values | limits))


def test_a_rule_that_says_nothing_changes_nothing() -> None:
    assert within(rule(), request(memory="2G", network="nat"), network="none") == request(memory="2G", network="nat")


def test_a_rules_memory_bounds_the_guest_whether_or_not_the_job_asked() -> None:
    assert within(rule(max_memory_mib=512), request(), network="none").memory_mib == 512
    assert within(rule(max_memory_mib=512), request(memory="2G"), network="none").memory_mib == 512
    assert within(rule(max_memory_mib=512), request(memory="256M"), network="none").memory_mib == 256


def test_a_rules_network_is_the_most_a_job_gets_and_not_what_it_gets_unasked() -> None:
    assert within(rule(network="nat"), request(), network="none").network is None
    assert within(rule(network="nat"), request(), network="nat").network is None
    assert within(rule(network="none"), request(), network="nat").network == "none"
    assert within(rule(network="nat"), request(network="none"), network="nat").network == "none"
    with pytest.raises(RequestError, match=r"rule 'r' .trust.toml:9. gives this image 'nat'"):
        within(rule(network="nat"), request(network="bridge:br0"), network="none")


@pytest.mark.parametrize(
    "directory", [*sorted(NOT_SHARED), "/tmp/", "/proc/1", "/run/lrms_vm/jobs", "relative", "/a\nb"]
)
def test_a_working_directory_that_would_hide_the_guests_own_system_is_not_shared(directory: str) -> None:
    assert shares_of(directory, request(), Config()) == ()


def test_the_working_directory_and_allowed_shares_are_shared_once() -> None:
    config = Config(share_roots=("/data",))
    assert shares_of("/data/a", request(share="/data/a,/data/b"), config) == ("/data/a", "/data/b")


@pytest.mark.parametrize("share", ["/etc", "/database", "/dat"])
def test_a_share_outside_the_sites_roots_is_refused_and_says_whom_to_ask(share: str) -> None:
    with pytest.raises(RequestError, match="share roots") as caught:
        shares_of("/home/u", request(share=share), Config(share_roots=("/data",)))
    assert caught.value.code == "share-not-allowed"
    assert "administrators" in caught.value.hint


def test_a_tier_gives_the_working_directory_or_nothing_of_the_host() -> None:
    config = Config(share_roots=("/data",))
    sealed, modest = rule(tier="sealed", shares="none"), rule(tier="modest", shares="work_dir")
    assert shares_of("/data/a", request(), config, sealed) == ()
    assert shares_of("/data/a", request(), config, modest) == ("/data/a",)
    assert shares_of("/data/a", request(share="/data/b"), config, rule()) == ("/data/a", "/data/b")
    for tier in (sealed, modest):
        with pytest.raises(RequestError, match=r"of rule 'r' .trust.toml:9. gives this image") as caught:
            shares_of("/data/a", request(share="/data/b"), config, tier)
        assert (caught.value.code, "grid@example.org" in caught.value.hint) == ("share-not-allowed", True)


def test_a_tiers_network_is_named_with_its_rule() -> None:
    with pytest.raises(RequestError, match="tier 'sealed' of rule 'r'"):
        within(rule(tier="sealed", network="none"), request(network="nat"), network="none")
