"""`policy check`'s eye: a policy that can be read, and does not do what it seems to."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from lrms_vm.trust import voms
from lrms_vm.trust.ca_lint import lint_anchors
from lrms_vm.trust.policy import parse_policy, problems_of
from lrms_vm.trust.policy_lint import Finding, lint
from lrms_vm.trust.x509 import TrustAnchors
from tests.certs.make_certs import DAY, HOUR, Authority, ec_key, name
from tests.unit.test_trust_verify import CA, CA_DN, NOW

ROOT = Path(__file__).resolve().parents[2]
TODAY = date(2026, 11, 22)
ALICE = f'[[builder]]\nname = "alice"\nissuer = "{CA_DN}"\nsubject = "CN=Alice"\nimages = ["atlas/*"]\n'
AGAIN = ALICE.replace('"alice"', '"again"')
RUNNER = '[[runner]]\nname = "production"\nusers = ["u"]\nimages = ["atlas/*"]\n'
AFTER = RUNNER.replace('"production"', '"after"')


def found(text: str, *, mapping: str = "", strangers: tuple[str, ...] = ()) -> list[Finding]:
    policy = parse_policy(f"version = 1\n{text}".encode(), source="trust.toml")
    policy = replace(policy, voms=voms.parse_mapfile(mapping.encode(), groups=True))
    return lint(policy, today=TODAY, strangers=strangers)


def test_a_plain_policy_has_nothing_to_say() -> None:
    assert found(ALICE + RUNNER) == []


@pytest.mark.parametrize(
    ("text", "level", "code", "line"),
    [
        ("", "warning", "refuses-all", None),
        (ALICE, "warning", "refuses-all", None),
        ("[defaults]\ncrl = 'if-present'\n" + ALICE + RUNNER, "warning", "crl-if-present", 2),
        ("[defaults]\ncrl_grace = '3d'\n" + ALICE + RUNNER, "warning", "crl-grace", 2),
        ("[defaults]\ncrl_grace = '6h'\n" + ALICE + RUNNER, "note", "crl-grace", 2),
        ("[defaults]\nnamespaces = 'ignore'\n" + ALICE + RUNNER, "warning", "namespaces-not-required", 2),
        (ALICE + RUNNER + "[tiers.x]\n", "note", "tier-unused", 11),
        (ALICE + "audit = true\n" + ALICE.replace('"alice"', '"live"') + RUNNER, "note", "audit", 2),
        (ALICE + "audit = true\n" + RUNNER, "error", "matches-nobody", 8),
        (ALICE.replace("atlas/*", "*") + AGAIN + RUNNER, "error", "unreachable", 7),
        (ALICE + AGAIN.replace("atlas/*", "atlas/sim") + RUNNER, "error", "unreachable", 7),
        (ALICE.replace("atlas/*", "atlas/s*") + AGAIN.replace("atlas/*", "*/sim") + RUNNER, "note", "overlap", 7),
        (ALICE.replace("atlas/*", "*") + RUNNER, "warning", "builds-all", 2),
        (
            ALICE + "signatures = ['dgst']\nallow_sha1_until = 2026-11-21\n" + RUNNER,
            "warning",
            "expired",
            2,
        ),
        (ALICE + "signatures = ['dgst']\nallow_sha1_until = 2026-11-22\n" + RUNNER, "warning", "sha1", 2),
        (ALICE + "formats = ['qcow2']\n" + RUNNER, "error", "format-refused", 2),
        (ALICE + "formats = ['raw', 'qcow2']\n" + RUNNER, "warning", "format-refused", 2),
        (ALICE + RUNNER + "[[block]]\ndn = 'CN=Alice'\n", "warning", "blocked", 2),
        (ALICE + RUNNER + "[[block]]\ndn = 'CN=X'\nuntil = 2026-11-21\n", "note", "block-expired", 11),
        (ALICE + RUNNER.replace("atlas/*", "cms/*"), "warning", "runs-nowhere", 2),
        (ALICE + RUNNER.replace("atlas/*", "cms/*"), "error", "matches-nobody", 7),
        (ALICE + RUNNER + AFTER, "error", "unreachable", 11),
        (ALICE + RUNNER.replace('"u"', '"*"') + AFTER, "error", "unreachable", 11),
        (ALICE + RUNNER + "accounts = ['x']\n", "note", "account-claimed", 7),
        (ALICE + RUNNER + "fqan = ['/atlas']\n", "error", "fqan-without-mapfile", 7),
        ("[defaults]\nvoms_mapfile = '/m'\n" + ALICE + RUNNER + "fqan = ['/cms']\n", "error", "matches-nobody", 9),
        ("[defaults]\nvoms_mapfile = '/m'\n" + ALICE + RUNNER + "fqan = ['/atlas*']\n", "warning", "fqan-wide", 9),
        (ALICE + RUNNER.replace('"u"', '"stranger"'), "warning", "unknown-here", 7),
        (ALICE + RUNNER.replace('"u"', '"u", "stranger"'), "note", "unknown-here", 7),
        (ALICE + RUNNER.replace('"u"', '"*"').replace("atlas/*", "*"), "note", "everybody-everything", 7),
    ],
)
def test_what_it_finds(text: str, level: str, code: str, line: int | None) -> None:
    findings = found(text, mapping='"/atlas" atlas', strangers=("user:stranger",))
    where = f"trust.toml:{line}" if line else "trust.toml"
    assert (level, code, where) in [(one.level, one.code, one.where) for one in findings]
    assert all(one.message for one in findings)


@pytest.mark.parametrize(
    "second",
    [
        AGAIN + "signatures = ['dgst']\n",
        AGAIN + "formats = ['raw', 'qcow2']\n",
        AGAIN.replace("CN=Alice", "CN=Bob"),
        AGAIN.replace("atlas/*", "*"),
        AFTER.replace('"u"', '"u", "v"'),
        AFTER.replace("atlas/*", "*"),
    ],
)
def test_a_rule_that_adds_something_is_reachable(second: str) -> None:
    assert "unreachable" not in {one.code for one in found(ALICE + RUNNER + second)}


def test_a_narrower_rule_first_shadows_nothing() -> None:
    for key in ("groups = ['g']\n", "partitions = ['p']\n", "builders = ['alice']\n"):
        assert "unreachable" not in {one.code for one in found(ALICE + RUNNER + key + AFTER)}
        assert "unreachable" in {one.code for one in found(ALICE + RUNNER + AFTER + key)}


class TestAnchors:
    POLICY = parse_policy(f"version = 1\n{ALICE}{RUNNER}".encode(), source="trust.toml")
    STEM = CA.subject_hash

    def codes(self, anchors: TrustAnchors, **policy: object) -> list[tuple[str, str]]:
        changed = replace(self.POLICY, **policy)  # type: ignore[arg-type]
        return [(one.level, one.code) for one in lint_anchors(changed, anchors, at=NOW)]

    def test_all_is_there(self) -> None:
        assert self.codes(TrustAnchors((CA.pem,), (CA.crl(),), namespaces=((self.STEM, b"x"),))) == []

    def test_what_is_missing_is_an_error_where_it_is_required(self) -> None:
        assert self.codes(TrustAnchors()) == [("error", "ca-missing")]
        bare = TrustAnchors((CA.pem,))
        assert self.codes(bare) == [("error", "namespaces-missing"), ("error", "crl-missing")]
        assert self.codes(bare, namespaces="ignore", crl="if-present") == [("warning", "crl-missing")]

    def test_what_has_expired(self) -> None:
        late = TrustAnchors((CA.pem,), (CA.crl(since=-2 * DAY, until=-HOUR),), namespaces=((self.STEM, b"x"),))
        assert self.codes(late) == [("error", "crl-expired")]
        assert self.codes(late, crl_grace_s=7200) == [("warning", "crl-expired")]
        old = Authority.root(name("Test CA"), at=NOW, until=-HOUR)
        gone = TrustAnchors((old.pem,), (old.crl(),), namespaces=((self.STEM, b"x"),))
        assert self.codes(gone) == [("error", "ca-expired")]
        other = Authority.root(name("Other CA"), at=NOW, key=ec_key(9))
        crls = (CA.crl(), other.crl(since=-2 * DAY, until=-HOUR))
        assert self.codes(TrustAnchors((CA.pem,), crls, namespaces=((self.STEM, b"x"),))) == [("note", "crl-expired")]

    def test_cas_above_each_other_end_the_search(self) -> None:
        one = Authority.root(name("Test CA"), at=NOW)
        cross = replace(one, certificate=Authority.root(name("B CA"), at=NOW).sub(name("Test CA")).certificate)
        back = one.sub(name("B CA"))
        assert ("error", "crl-missing") in self.codes(TrustAnchors((cross.pem, back.pem)))


def test_the_example_and_the_page_are_policies() -> None:
    page = (ROOT / "docs" / "trust.md").read_text().partition("## The policy\n\n")[2].partition("\n\nThe first")[0]
    page = page.replace('spki_sha256 = ["..."]', f'spki_sha256 = ["{"ab" * 32}"]')
    page = page.replace('spki_sha256 = "..."', f'spki_sha256 = "{"ab" * 32}"')
    for text in (page, (ROOT / "examples" / "trust.toml").read_text()):
        assert problems_of(text.encode(), source="trust.toml") == ()
