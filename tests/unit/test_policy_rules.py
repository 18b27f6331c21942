"""What the policy's newer words do to a decision: tiers, audit, CRLs that may be late or absent, FQANs."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from lrms_vm.errors import ConfigError, RequestError, SiteError
from lrms_vm.site_policy import read_policy
from lrms_vm.trust import dn, voms
from lrms_vm.trust.policy import parse_policy
from lrms_vm.trust.verify import TrustAnchors, check_bytes
from tests.certs.make_certs import DAY, HOUR, Authority, ec_key, name, person
from tests.unit.test_trust_verify import ALICE, ALICE_DN, ANCHORS, CA, IMAGE, NOW, claim, cms_by, policy, refusal

TIERS = """
[tiers.sealed]
shares = "none"
[tiers.open]
network = "any"
shares = "all"
max_mem = "2G"
"""
LATE = TrustAnchors((CA.pem,), (CA.crl(since=-2 * DAY, until=-HOUR),))
ABSENT = TrustAnchors((CA.pem,), ())


class TestTiers:
    def test_a_claim_says_what_the_tier_gives_and_by_which_line(self) -> None:
        found = claim(cms_by(ALICE), policy=policy(runner='tier = "sealed"', more=TIERS))
        assert (found.tier, found.network, found.max_memory_mib, found.shares, found.root) == (
            "sealed",
            "none",
            None,
            "none",
            False,
        )
        assert (found.runner, found.runner_where) == ("production", "trust.toml:11")
        found = claim(cms_by(ALICE), policy=policy(runner='tier = "open"', more=TIERS))
        assert (found.network, found.max_memory_mib, found.shares) == (None, 2048, "all")

    def test_a_rule_without_one_gives_what_it_says(self) -> None:
        found = claim(cms_by(ALICE), policy=policy(runner='network = "nat"\nmax_mem = "1G"'))
        assert (found.tier, found.network, found.max_memory_mib, found.shares) == (None, "nat", 1024, "all")


class TestAudit:
    AUDIT = 'signatures = ["cms"]\naudit = true'

    def test_it_accepts_nobody_and_says_that_it_would(self) -> None:
        with pytest.raises(RequestError, match=r"'alice' \(trust.toml:5\) for .* would accept it") as caught:
            claim(cms_by(ALICE), policy=policy(self.AUDIT))
        assert caught.value.code == "builder-in-audit"

    def test_it_leaves_the_decision_to_others_and_tells_the_log(self) -> None:
        other = f"""
        [[builder]]
        name = "new"
        issuer = "CN=Test CA,DC=TestGrid,DC=org"
        subject = "{ALICE_DN}"
        images = ["IMAGES"]
        audit = true
        """
        found = claim(cms_by(ALICE), policy=policy(more=other.replace("IMAGES", "atlas/*")))
        assert (found.rule, len(found.audit)) == ("alice", 1)
        assert "'new' (trust.toml:17) has audit = true and would accept 'atlas/sim'" in found.audit[0]
        found = claim(cms_by(ALICE), policy=policy(more=other.replace("IMAGES", "cms/*")))
        assert "would refuse 'atlas/sim' (builder-not-for-image)" in found.audit[0]
        assert claim(cms_by(ALICE)).audit == ()


class TestLateAndAbsentCrls:
    def test_without_grace_a_late_crl_is_none(self) -> None:
        assert refusal(cms_by(ALICE), kind=SiteError, anchors=LATE) == "crl-expired"

    def test_grace_lets_a_late_crl_count_so_long_and_no_longer(self) -> None:
        grace = policy(defaults='crl_grace = "2h"')
        assert claim(cms_by(ALICE), policy=grace, anchors=LATE).valid_until == NOW + HOUR
        later = NOW + HOUR
        assert refusal(cms_by(ALICE), kind=SiteError, policy=grace, anchors=LATE, at=later) == "crl-expired"

    def test_grace_saves_nobody_who_was_revoked(self) -> None:
        late = TrustAnchors((CA.pem,), (CA.crl([ALICE.certificate], since=-2 * DAY, until=-HOUR),))
        asked = {"policy": policy(defaults='crl_grace = "2h"'), "anchors": late}
        assert refusal(cms_by(ALICE), kind=SiteError, **asked) == "crl-expired"

    def test_a_crl_of_before_it_was_made_does_not_count_by_grace(self) -> None:
        early = TrustAnchors((CA.pem,), (CA.crl(since=HOUR),))
        asked = {"policy": policy(defaults='crl_grace = "2h"'), "anchors": early}
        assert refusal(cms_by(ALICE), kind=SiteError, **asked) == "crl-not-yet-valid"

    def test_if_present_accepts_where_there_is_none(self) -> None:
        assert refusal(cms_by(ALICE), kind=SiteError, anchors=ABSENT) == "crl-missing"
        found = claim(cms_by(ALICE), policy=policy(defaults='crl = "if-present"'), anchors=ABSENT)
        assert found.valid_until == ALICE.certificate.not_valid_after_utc

    @pytest.mark.parametrize(
        ("crl", "code"),
        [
            (CA.crl([ALICE.certificate]), "signer-revoked"),
            (CA.crl(since=-2 * DAY, until=-HOUR), "crl-expired"),
            (CA.crl(since=HOUR), "crl-not-yet-valid"),
            (CA.crl(signed_by=ALICE), "crl-"),
            (b"", "crl-missing"),
            (b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", "crl-missing"),
        ],
    )
    def test_if_present_believes_what_is_there(self, crl: bytes, code: str) -> None:
        """A CRL that cannot be read is there, though nobody knows what it says."""
        asked = {"policy": policy(defaults='crl = "if-present"'), "anchors": TrustAnchors((CA.pem,), (crl,))}
        kind = RequestError if code.startswith("signer") else SiteError
        assert refusal(cms_by(ALICE), kind=kind, **asked).startswith(code)

    def test_if_present_is_asked_ca_by_ca(self) -> None:
        """The sub CA has none; its own certificate is revoked all the same."""
        sub = CA.sub(name("Sub CA"))
        alice = sub.issue(person("Alice Example"), key=ec_key(5))
        lenient = replace(
            policy(defaults='crl = "if-present"').builders[0], issuer=dn.parse("CN=Sub CA,DC=TestGrid,DC=org")
        )
        asked = {"policy": replace(policy(defaults='crl = "if-present"'), builders=(lenient,))}
        fine = TrustAnchors((CA.pem, sub.pem), (CA.crl(),))
        assert claim(cms_by(alice), anchors=fine, **asked).rule == "alice"
        revoked = TrustAnchors((CA.pem, sub.pem), (CA.crl([sub.certificate]),))
        with pytest.raises((RequestError, SiteError)):
            claim(cms_by(alice), anchors=revoked, **asked)


class TestFqans:
    MAPFILE = b"""# as LCMAPS reads it
"/atlas/Role=production*"\tatlasprd
/atlas/Role=NULL/Capability=NULL atlas   # everybody of the VO
"/atlas/Role=pilot" shared
"/cms*" shared
"/DC=org/CN=Alice" byname
"""
    MAPPING = voms.parse_mapfile(MAPFILE, groups=True)

    @pytest.mark.parametrize(
        ("wanted", "group", "holds"),
        [
            ("/atlas/Role=production", "atlasprd", False),  # he may have another that begins so
            ("/atlas/Role=production*", "atlasprd", True),
            ("/atlas/*", "atlasprd", True),
            ("/atlas*", "atlasprd", True),
            ("/cms*", "atlasprd", False),
            ("/atlas", "atlas", True),
            ("/atlas/Role=NULL", "atlas", True),
            ("/atlas/*", "atlas", False),
            ("/atlas/Role=pilot", "shared", False),  # or he is of CMS: nobody knows
            ("/cms*", "shared", False),
            ("/atlas*", "nobody", False),
            ("/DC*", "byname", True),
        ],
    )
    def test_a_group_proves_what_all_of_its_lines_are_for(self, wanted: str, group: str, holds: bool) -> None:
        assert voms.has_any([wanted], self.MAPPING, user="u", groups=["users", group]) is holds
        assert not voms.has_any([wanted], self.MAPPING, user=group, groups=["users"])

    def test_several_may_cover_a_groups_lines_together(self) -> None:
        assert voms.has_any(["/atlas/Role=pilot", "/cms*"], self.MAPPING, user="u", groups=["shared"])

    def test_accounts_and_pools_of_a_grid_mapfile(self) -> None:
        mapping = voms.parse_mapfile(
            b'"/atlas/Role=production" .atlasprd\n"/atlas" alice\n"/DC=org/CN=Bob" bob\n"/cms" bob\n', groups=False
        )
        for user, holds in (("atlasprd001", True), ("alice", True), ("atlasprd", False), ("atlasprdx1", False)):
            assert voms.has_any(["/atlas", "/atlas/*"], mapping, user=user, groups=[]) is holds
        assert not voms.has_any(["/cms"], mapping, user="bob", groups=[])  # he has this account by his name
        assert not voms.has_any(["/atlas"], mapping, user="u", groups=["alice"])

    @pytest.mark.parametrize(
        "text", [b"one two three", b'"/atlas" ', b'"/atlas atlas', b"\xff", b"/atlas \x1b[1m", b"a b\n" * 10_001]
    )
    def test_what_is_no_mapfile_is_told_with_its_line(self, text: bytes) -> None:
        with pytest.raises(voms.MapfileError):
            voms.parse_mapfile(text, groups=True)

    def test_a_rule_with_fqan_goes_by_the_mapping(self) -> None:
        rules = policy(runner='fqan = ["/atlas/Role=production*"]')
        rules = replace(rules, runners=(replace(rules.runners[0], users=()),), voms=self.MAPPING)
        assert claim(cms_by(ALICE), policy=rules, groups=["atlasprd"]).runner == "production"
        for groups in (["atlas"], []):
            assert refusal(cms_by(ALICE), policy=rules, groups=groups) == "runner-not-allowed"
        assert refusal(cms_by(ALICE), policy=replace(rules, voms=()), groups=["atlasprd"]) == "runner-not-allowed"

    def test_the_mapfiles_are_read_where_a_rule_asks(self, tmp_path: Path) -> None:
        path, mapfile = tmp_path / "trust.toml", tmp_path / "groupmapfile"
        mapfile.write_bytes(self.MAPFILE)
        rule = '[[runner]]\nname = "x"\nimages = ["*"]\nfqan = ["/atlas"]\n'
        path.write_text(f'version = 1\n[defaults]\nvoms_mapfile = "{mapfile}"\n{rule}')
        assert read_policy(path, must_be_root_owned=False).voms == self.MAPPING
        path.write_text(f'version = 1\n[defaults]\nvoms_mapfile = "{tmp_path}/absent"\n')
        assert read_policy(path, must_be_root_owned=False).voms == ()
        path.write_text(f'version = 1\n[defaults]\nvoms_gridmapfile = "{tmp_path}/absent"\n{rule}')
        with pytest.raises(ConfigError) as caught:
            read_policy(path, must_be_root_owned=False)
        assert caught.value.code == "config-missing"


class TestRefusals:
    def test_the_sites_own_lack_names_signer_and_remedy_too(self) -> None:
        strict = parse_policy(b'version = 1\n[defaults]\ncontact = "grid@example.org"\n', source="trust.toml")
        with pytest.raises(SiteError) as caught:
            claim(cms_by(ALICE), policy=strict)
        assert caught.value.code == "namespaces-missing"
        assert ALICE_DN in caught.value.message and caught.value.hint

    def test_a_certificates_fault_names_the_signer_and_whom_to_ask(self) -> None:
        stranger = Authority.root(name("Stranger CA"), at=NOW, key=ec_key(77)).issue(person("Alice Example"))
        with pytest.raises(RequestError) as caught:
            claim(cms_by(stranger), policy=replace(policy(), contact="grid@example.org"))
        assert (ALICE_DN in caught.value.message, caught.value.hint) == (True, "ask grid@example.org")


class TestBytes:
    def test_every_digest_and_the_size_that_are_signed_must_agree(self) -> None:
        good = claim(cms_by(ALICE))
        found = {one: hashlib.new(one, IMAGE).digest() for one in ("sha256", "sha512")}
        listed = replace(good, signed_digests=found, size_bytes=len(IMAGE))
        assert check_bytes(listed, digests=found, size_bytes=len(IMAGE)).rule == "alice"
        wrong = [
            (replace(listed, size_bytes=len(IMAGE) + 1), found),
            (replace(listed, signed_digests={**found, "sha512": bytes(64)}), found),
            (replace(listed, signed_digests={**found, "sha256": bytes(32)}), found),
            (listed, {"sha256": found["sha256"]}),  # nobody hashed the other
        ]
        for one, digests in wrong:
            with pytest.raises(RequestError) as caught:
                check_bytes(one, digests=digests, size_bytes=len(IMAGE))
            assert caught.value.code == "bytes-differ"


def test_anchors_that_were_read_give_all_they_have() -> None:
    assert ANCHORS.above([ALICE.certificate]) is ANCHORS is ANCHORS.everything()
