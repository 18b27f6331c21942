"""The trust core, one broken rule at a time: everything but that is as it should be."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lrms_vm.errors import LrmsVmError, RequestError, SiteError
from lrms_vm.signing import bare_signature, detached_cms
from lrms_vm.trust.policy import Policy, parse_policy
from lrms_vm.trust.verify import (
    Claim,
    Endorsement,
    SignatureFiles,
    TrustAnchors,
    check_bytes,
    check_claim,
    named_signer,
)
from tests.certs.make_certs import DAY, HOUR, Authority, Identity, ec_key, ed25519_key, name, person, rsa_key

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
IMAGE = b"\0" * 512 + b"a disk"
CA_DN, ALICE_DN = "CN=Test CA,DC=TestGrid,DC=org", "CN=Alice Example,O=People,DC=TestGrid,DC=org"

CA = Authority.root(name("Test CA"), at=NOW)
OTHER_CA = Authority.root(name("Other CA"), at=NOW, key=ec_key(1002))
ALICE = CA.issue(person("Alice Example"))
ANCHORS = TrustAnchors((CA.pem, OTHER_CA.pem), (CA.crl(), OTHER_CA.crl()))


def policy(builder: str = "", *, runner: str = "", defaults: str = "", more: str = "") -> Policy:
    text = f"""version = 1
[defaults]
namespaces = "ignore"
{defaults}
[[builder]]
name = "alice"
issuer = "{CA_DN}"
subject = "{ALICE_DN}"
images = ["atlas/*"]
{builder or 'signatures = ["cms", "dgst"]'}
[[runner]]
name = "production"
users = ["atlas001"]
images = ["atlas/*"]
{runner}
{more}
"""
    return parse_policy(text.encode(), source="trust.toml")


def cms_by(who: Identity, image: bytes = IMAGE, *, digest: str = "sha256", at: datetime = NOW) -> SignatureFiles:
    return SignatureFiles("cms", detached_cms(who.signer(), hashlib.new(digest, image).digest(), digest, at))


def bare_by(
    who: Identity, image: bytes = IMAGE, *, digest: str = "sha256", suffix: str | None = None
) -> SignatureFiles:
    signed = bare_signature(who.signer(), hashlib.new(digest, image).digest(), digest)
    return SignatureFiles("dgst", signed, suffix or digest, who.pem)


def claim(files: SignatureFiles, **options: Any) -> Claim:
    given: dict[str, Any] = {
        "anchors": ANCHORS,
        "policy": policy(),
        "image_name": "atlas/sim",
        "user": "atlas001",
        "partition": "grid",
        "at": NOW,
    }
    return check_claim(files, **(given | options))


def endorse(files: SignatureFiles, image: bytes = IMAGE, **options: Any) -> Endorsement:
    found = claim(files, **options)
    digests = {one: hashlib.new(one, image).digest() for one in ("sha1", "sha256", "sha384", "sha512")}
    return check_bytes(found, digests=digests, size_bytes=len(image))


def refusal(files: SignatureFiles, image: bytes = IMAGE, kind: type[LrmsVmError] = RequestError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        endorse(files, image, **options)
    assert caught.value.code and caught.value.message
    return caught.value.code


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("key", [rsa_key(), ec_key(1), ec_key(2, ec.SECP384R1()), ec_key(3, ec.SECP521R1())])
def test_both_forms_are_accepted_with_every_strong_key_and_digest(key: Any, digest: str) -> None:
    alice = CA.issue(person("Alice Example"), key=key)
    for files in (cms_by(alice, digest=digest), bare_by(alice, digest=digest)):
        found = endorse(files)
        assert found == Endorsement(ALICE_DN, CA_DN, "alice", hashlib.sha256(IMAGE).hexdigest(), "accepted")


def test_ed25519_signs_cms_with_sha512_only() -> None:
    alice = CA.issue(person("Alice Example"), key=ed25519_key())
    assert endorse(cms_by(alice, digest="sha512")).rule == "alice"
    with pytest.raises(RequestError):
        cms_by(alice, digest="sha256")


def test_a_claim_says_until_when_and_over_what() -> None:
    found = claim(cms_by(ALICE))
    assert found.valid_until == NOW + 30 * DAY  # the CRL's
    assert found.signed_digest == hashlib.sha256(IMAGE).digest()
    assert (found.rule_where, found.runner) == ("trust.toml:5", "production")
    assert claim(bare_by(ALICE)).signed_digest is None  # ECDSA does not show it
    assert claim(bare_by(CA.issue(person("Alice Example"), key=rsa_key()))).signed_digest == found.signed_digest


@pytest.mark.parametrize("make", [cms_by, bare_by])
@pytest.mark.parametrize("key", [rsa_key(), ec_key(1)])
def test_one_flipped_byte_differs(make: Any, key: Any) -> None:
    image = bytearray(IMAGE)
    image[-1] ^= 1
    assert refusal(make(CA.issue(person("Alice Example"), key=key)), bytes(image)) == "bytes-differ"


def test_a_signature_of_another_image_differs() -> None:
    assert refusal(cms_by(ALICE, b"another")) == "bytes-differ"


def test_an_unsigned_image_is_not_signed() -> None:
    assert refusal(SignatureFiles("cms", b"")) == "not-signed"
    assert refusal(SignatureFiles("dgst", b"", "sha256", ALICE.pem)) == "not-signed"


@pytest.mark.parametrize("make", [cms_by, bare_by])
class TestWhoMayBuild:
    def test_a_valid_user_is_not_a_builder(self, make: Any) -> None:
        assert refusal(make(CA.issue(person("Bob Example")))) == "not-a-builder"

    def test_the_same_name_from_another_ca_is_somebody_else(self, make: Any) -> None:
        assert refusal(make(OTHER_CA.issue(person("Alice Example")))) == "not-a-builder"

    def test_a_ca_that_is_not_ours_vouches_for_nobody(self, make: Any) -> None:
        twin = Authority.root(name("Test CA"), at=NOW, key=ec_key(66))
        assert refusal(make(twin.issue(person("Alice Example")))) in ("signer-untrusted", "signer-path-invalid")
        unknown = Authority.root(name("Unknown CA"), at=NOW, key=ec_key(66))
        assert refusal(make(unknown.issue(person("Alice Example")))) == "signer-untrusted"

    def test_who_vouches_for_himself_is_untrusted(self, make: Any) -> None:
        key = ec_key(67)
        alone = Authority.root(person("Alice Example"), at=NOW, key=key).issue(person("Alice Example"), key=key)
        assert refusal(make(alone)) == "signer-untrusted"

    @pytest.mark.parametrize(
        "subject",
        [
            x509.Name(  # reads /DC=org/DC=TestGrid/O=People/CN=Alice Example in slash form
                [
                    x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "org"),
                    x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "TestGrid"),
                    x509.NameAttribute(NameOID.ORGANIZATION_NAME, "People/CN=Alice Example"),
                ]
            ),
            name("Alice Example,O=People"),
            person("Alice Example "),
            person("alice example"),
            person("Alice  Example"),
            x509.Name([*person("Alice Example"), x509.NameAttribute(NameOID.COMMON_NAME, "Bob")]),
            x509.Name(reversed(list(person("Alice Example")))),
            x509.Name(  # one RDN of two
                [
                    *(x509.RelativeDistinguishedName([one]) for one in list(person("Alice Example"))[:2]),
                    x509.RelativeDistinguishedName(list(person("Alice Example"))[2:]),
                ]
            ),
            x509.Name(
                [
                    *list(person("x"))[:-1],
                    x509.NameAttribute(NameOID.COMMON_NAME, "Alice Example", x509.name._ASN1Type.BMPString),
                ]
            ),
        ],
        ids=lambda subject: subject.rfc4514_string(),
    )
    def test_a_name_that_reads_like_a_builders_is_another(self, make: Any, subject: x509.Name) -> None:
        assert refusal(make(CA.issue(subject))) == "not-a-builder"

    @pytest.mark.parametrize("common_name", ["Alice Example\0", "Alice\nExample", "\u202eelpmaxE ecilA"])
    def test_a_name_that_hides_something_is_refused(self, make: Any, common_name: str) -> None:
        assert refusal(make(CA.issue(person(common_name)))) == "signer-name-unsafe"

    def test_a_builder_builds_only_the_images_of_his_rule(self, make: Any) -> None:
        assert refusal(make(ALICE), image_name="cms/sim") == "builder-not-for-image"

    def test_a_pinned_key_is_the_only_one(self, make: Any) -> None:
        pinned = policy(f'signatures = ["cms", "dgst"]\nspki_sha256 = ["{"0" * 64}"]')
        assert refusal(make(ALICE), policy=pinned) == "builder-key-not-pinned"

    def test_with_no_rules_nobody_builds(self, make: Any) -> None:
        empty = parse_policy(b'version = 1\n[defaults]\nnamespaces = "ignore"', source="trust.toml")
        assert refusal(make(ALICE), policy=empty) == "not-a-builder"


def test_bare_signatures_need_to_be_named() -> None:
    assert refusal(bare_by(ALICE), policy=policy("audit = false")) == "signature-form-not-allowed"
    assert endorse(cms_by(ALICE), policy=policy("audit = false")).rule == "alice"


class TestWhoMayRun:
    def test_somebody_else_may_not(self) -> None:
        assert refusal(cms_by(ALICE), user="mallory") == "runner-not-allowed"

    def test_an_administrator_asks_about_the_image_alone(self) -> None:
        assert claim(cms_by(ALICE), user=None).runner is None

    def test_everybody_must_be_said(self) -> None:
        everybody = policy(more='[[runner]]\nname = "all"\nusers = ["*"]\nimages = ["atlas/*"]')
        assert claim(cms_by(ALICE), user="mallory", policy=everybody).runner == "all"

    @pytest.mark.parametrize(
        ("rule", "asked", "allowed"),
        [
            ('partitions = ["grid"]', {}, True),
            ('partitions = ["other"]', {}, False),
            ('partitions = ["grid"]', {"partition": ""}, False),
            ('builders = ["alice"]', {}, True),
            ('groups = ["atlas"]', {}, False),
            ('groups = ["atlas"]', {"groups": ("x", "atlas")}, True),
            ('accounts = ["prod"]', {"account": "prod"}, True),
            ('accounts = ["prod"]', {"account": "other"}, False),
            ('fqan = ["/atlas/Role=production"]', {}, False),
        ],
    )
    def test_every_key_of_a_rule_must_hold(self, rule: str, asked: dict[str, Any], allowed: bool) -> None:
        if allowed:
            assert claim(cms_by(ALICE), policy=policy(runner=rule), **asked).runner == "production"
        else:
            assert refusal(cms_by(ALICE), policy=policy(runner=rule), **asked) == "runner-not-allowed"

    def test_what_a_rule_grants_goes_with_the_claim(self) -> None:
        found = claim(cms_by(ALICE), policy=policy(runner='max_mem = "16GiB"\nnetwork = "nat"'))
        assert (found.max_memory_mib, found.network) == (16384, "nat")


def forged(crl: bytes) -> bytes:
    """The same CRL with a revoked certificate's number in place of its own: no longer what the CA signed."""
    der = bytearray(x509.load_pem_x509_crl(crl).public_bytes(Encoding.DER))
    number = der.index(bytes.fromhex("0603551d14"))  # cRLNumber
    der[number + 9] ^= 1
    return x509.load_der_x509_crl(bytes(der)).public_bytes(Encoding.PEM)


class TestRevocation:
    def test_a_revoked_builder_is_refused(self) -> None:
        anchors = TrustAnchors((CA.pem,), (CA.crl([ALICE.certificate]),))
        assert refusal(cms_by(ALICE), anchors=anchors) == "signer-revoked"

    def test_a_revoked_sub_ca_is_refused(self) -> None:
        sub = CA.sub(name("Sub CA"))
        alice = sub.issue(person("Alice Example"))
        anchors = TrustAnchors((CA.pem, sub.pem), (CA.crl([sub.certificate]), sub.crl()))
        assert refusal(cms_by(alice), anchors=anchors) == "signer-revoked"

    @pytest.mark.parametrize(
        ("crls", "code"),
        [
            ((), "crl-missing"),
            ((OTHER_CA.crl(),), "crl-missing"),
            ((b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",), "crl-missing"),
            ((CA.crl(since=-2 * DAY, until=timedelta(seconds=-1)),), "crl-expired"),
            ((CA.crl(since=HOUR),), "crl-not-yet-valid"),
            ((CA.crl(signed_by=OTHER_CA),), "crl-missing"),  # it names another key
            ((forged(CA.crl()),), "crl-invalid"),
            ((CA.crl([ALICE.certificate], since=-2 * DAY, until=-HOUR),), "crl-expired"),
        ],
    )
    def test_without_a_current_crl_the_site_cannot_tell(self, crls: tuple[bytes, ...], code: str) -> None:
        found = refusal(cms_by(ALICE), kind=SiteError, anchors=TrustAnchors((CA.pem,), crls))
        assert found == code

    def test_an_unknown_critical_crl_extension_is_not_passed_over(self) -> None:
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
        anchors = TrustAnchors((CA.pem,), (CA.crl(extra=[(unknown, True)]),))
        assert refusal(cms_by(ALICE), kind=SiteError, anchors=anchors) == "crl-invalid"

    def test_the_sub_cas_crl_is_needed_too(self) -> None:
        sub = CA.sub(name("Sub CA"))
        alice = sub.issue(person("Alice Example"))
        rule = policy().builders[0]
        assert rule.issuer  # the rule names the root: what counts here is only who is asked first
        assert (
            refusal(cms_by(alice), kind=SiteError, anchors=TrustAnchors((CA.pem, sub.pem), (CA.crl(),)))
            == "crl-missing"
        )


class TestCertificates:
    @pytest.mark.parametrize(
        ("options", "code"),
        [
            ({"until": -HOUR}, "signer-expired"),
            ({"since": HOUR}, "signer-not-yet-valid"),
            ({"digital_signature": False}, "signer-key-usage"),
            ({"key_usage": False}, "signer-key-usage"),
            ({"purposes": (ExtendedKeyUsageOID.SERVER_AUTH,)}, "signer-key-usage"),
            ({"constraints": x509.BasicConstraints(ca=True, path_length=None)}, "signer-is-ca"),
            (
                {"extra": [(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\5\0"), True)]},
                "signer-path-invalid",
            ),
            (
                {"extra": [(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14"), b"\5\0"), True)]},
                "signer-is-proxy",
            ),
        ],
    )
    def test_one_defect_is_enough(self, options: dict[str, Any], code: str) -> None:
        assert refusal(cms_by(CA.issue(person("Alice Example"), **options))) == code

    @pytest.mark.parametrize(
        "key", [rsa_key(1024), rsa_key(2048, exponent=3), ec_key(5, ec.SECP256K1()), ec_key(6, ec.SECP192R1())]
    )
    def test_a_weak_key_is_refused(self, key: Any) -> None:
        if getattr(key, "key_size", 0) == 2048:  # weak for encryption, not for signing
            assert endorse(cms_by(CA.issue(person("Alice Example"), key=key))).rule == "alice"
        else:
            assert refusal(cms_by(CA.issue(person("Alice Example"), key=key))) == "weak-key"

    @pytest.mark.parametrize("algorithm", [4, 5], ids=["md5WithRSA", "sha1WithRSA"])
    def test_a_certificate_signed_with_an_old_hash_is_refused(self, algorithm: int) -> None:
        """The library makes none, so the names of the algorithm are changed in one that is made."""
        ca = Authority.root(name("Test CA"), at=NOW, key=rsa_key(number=7))
        der = ca.issue(person("Alice Example")).certificate.public_bytes(Encoding.DER)
        sha256_with_rsa = bytes.fromhex("06092a864886f70d01010b")
        assert der.count(sha256_with_rsa) == 2
        old = der.replace(sha256_with_rsa, sha256_with_rsa[:-1] + bytes([algorithm]))
        files = cms_by(Identity(x509.load_der_x509_certificate(old), ALICE.key))
        assert refusal(files, anchors=TrustAnchors((ca.pem,), (ca.crl(),))) == "weak-certificate-signature"

    def test_a_site_may_ask_for_longer_keys(self) -> None:
        alice = CA.issue(person("Alice Example"), key=rsa_key())
        assert refusal(cms_by(alice), policy=policy(defaults="min_rsa = 3072")) == "weak-key"

    @pytest.mark.parametrize("last", ["proxy", "limited proxy"])
    def test_legacy_proxies_are_refused(self, last: str) -> None:
        proxy = Authority(ALICE.certificate, ALICE.key, at=NOW).issue(
            x509.Name([*person("Alice Example"), x509.NameAttribute(NameOID.COMMON_NAME, last)]), key=ec_key(9)
        )
        assert refusal(cms_by(proxy)) == "signer-is-proxy"

    def test_a_user_is_no_ca(self) -> None:
        child = Authority(ALICE.certificate, ALICE.key, at=NOW).issue(person("Alice Example"), key=ec_key(9))
        signed = detached_cms(child.signer(ALICE.certificate), hashlib.sha256(IMAGE).digest(), "sha256", NOW)
        assert refusal(SignatureFiles("cms", signed)) in ("signer-path-invalid", "signer-untrusted")

    def test_a_sub_ca_may_come_with_the_signature(self) -> None:
        sub = CA.sub(name("Sub CA"))
        alice = sub.issue(person("Alice Example"))
        rule = policy(
            more=f'[[builder]]\nname = "sub"\nissuer = "CN=Sub CA,DC=TestGrid,DC=org"\n'
            f'subject = "{ALICE_DN}"\nimages = ["atlas/*"]'
        )
        signed = detached_cms(alice.signer(sub.certificate), hashlib.sha256(IMAGE).digest(), "sha256", NOW)
        anchors = TrustAnchors((CA.pem,), (CA.crl(), sub.crl()))
        assert endorse(SignatureFiles("cms", signed), anchors=anchors, policy=rule).rule == "sub"

    def test_a_root_that_comes_with_the_signature_is_nobodys(self) -> None:
        unknown = Authority.root(name("Unknown CA"), at=NOW, key=ec_key(66))
        alice = unknown.issue(person("Alice Example"))
        signed = detached_cms(alice.signer(unknown.certificate), hashlib.sha256(IMAGE).digest(), "sha256", NOW)
        assert refusal(SignatureFiles("cms", signed)) == "signer-untrusted"

    def test_an_expired_ca_vouches_for_nobody(self) -> None:
        ca = Authority.root(name("Test CA"), at=NOW, until=-HOUR)
        assert (
            refusal(cms_by(ca.issue(person("Alice Example"))), anchors=TrustAnchors((ca.pem,), (ca.crl(),)))
            == "signer-expired"
        )

    def test_an_anchor_that_cannot_be_read_disturbs_no_other(self) -> None:
        broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
        anchors = TrustAnchors((broken, b"", CA.pem), (broken, CA.crl()))
        assert endorse(cms_by(ALICE), anchors=anchors).rule == "alice"


class TestTime:
    def test_a_signing_time_in_the_future_is_refused(self) -> None:
        assert refusal(cms_by(ALICE, at=NOW + timedelta(minutes=6))) == "signing-time-wrong"
        assert endorse(cms_by(ALICE, at=NOW + timedelta(minutes=4))).rule == "alice"

    def test_a_signing_time_before_the_certificate_is_refused(self) -> None:
        assert refusal(cms_by(ALICE, at=NOW - 31 * DAY)) == "signing-time-wrong"

    def test_the_moment_of_the_decision_counts_and_not_the_clock(self) -> None:
        assert refusal(cms_by(ALICE), at=NOW + 400 * DAY, kind=LrmsVmError) in ("signer-expired", "crl-expired")

    def test_any_zone_will_do(self) -> None:
        expired_here = CA.crl(since=-2 * DAY, until=HOUR)
        anchors = TrustAnchors((CA.pem,), (expired_here,))
        east = timezone(timedelta(hours=9))
        assert endorse(cms_by(ALICE), anchors=anchors, at=NOW.astimezone(east)).rule == "alice"


class TestBareSignatures:
    def test_sha1_only_where_a_rule_says_so_and_until_its_day(self) -> None:
        alice = CA.issue(person("Alice Example"), key=rsa_key())
        files = bare_by(alice, digest="sha1")
        assert refusal(files) == "digest-not-allowed"
        until = 'signatures = ["dgst"]\nallow_sha1_until = "2026-11-22"'
        assert endorse(files, policy=policy(until)).rule == "alice"
        assert claim(files, policy=policy(until)).valid_until == datetime(2026, 11, 23, tzinfo=UTC)
        assert refusal(files, policy=policy(until), at=NOW + DAY) == "digest-not-allowed"

    @pytest.mark.parametrize("key", [rsa_key(), ec_key(1)])
    def test_a_suffix_that_lies_is_refused(self, key: Any) -> None:
        alice = CA.issue(person("Alice Example"), key=key)
        lying = bare_by(alice, digest="sha512", suffix="sha256")
        assert refusal(lying) in ("signature-wrong-digest", "bytes-differ")

    @pytest.mark.parametrize("suffix", ["md5", "sha224", "", None])
    def test_other_digests_are_refused(self, suffix: str | None) -> None:
        assert refusal(SignatureFiles("dgst", b"x" * 256, suffix, ALICE.pem)) == "digest-not-allowed"

    @pytest.mark.parametrize("pem", [b"", b"junk", ALICE.pem[:200], ALICE.pem * 11, b"\0" * 100_000])
    def test_a_certificate_file_that_is_none_is_refused(self, pem: bytes) -> None:
        assert refusal(SignatureFiles("dgst", b"x" * 256, "sha256", pem)) == "certificate-malformed"

    def test_without_a_certificate_nobody_signed(self) -> None:
        assert refusal(SignatureFiles("dgst", b"x", "sha256", None)) == "certificate-missing"

    @pytest.mark.parametrize("junk", [b"x", b"x" * 256, b"\0" * 256, b"x" * 70_000])
    def test_junk_is_no_signature(self, junk: bytes) -> None:
        alice = CA.issue(person("Alice Example"), key=rsa_key())
        assert refusal(SignatureFiles("dgst", junk, "sha256", alice.pem)) in (
            "signature-invalid",
            "signature-malformed",
        )
        assert refusal(SignatureFiles("dgst", junk, "sha256", ALICE.pem)) in ("bytes-differ", "signature-malformed")

    def test_a_digest_info_that_is_nearly_right_is_refused(self) -> None:
        """Bleichenbacher's forgery and its cousins: the padding is right, the DigestInfo is not the one encoding."""
        key = rsa_key()
        numbers, size = key.private_numbers(), key.key_size // 8
        digest = hashlib.sha256(IMAGE).digest()
        no_null = bytes.fromhex("302f300b0609608648016503040201") + b"\x04\x20" + digest
        good = bytes.fromhex("3031300d060960864801650304020105000420") + digest
        alice = CA.issue(person("Alice Example"), key=key)
        for info in (no_null, good + b"\0" * 16, digest):
            padded = b"\0\1" + b"\xff" * (size - 3 - len(info)) + b"\0" + info
            forged = pow(int.from_bytes(padded, "big"), numbers.d, numbers.public_numbers.n).to_bytes(size, "big")
            assert refusal(SignatureFiles("dgst", forged, "sha256", alice.pem)) == "signature-wrong-digest"


class TestBlocks:
    @pytest.mark.parametrize("what", ["spki", "cert", "dn", "ca"])
    def test_a_block_wins_over_every_rule(self, what: str) -> None:
        from lrms_vm.trust.x509 import spki_sha256

        line = {
            "spki": f'spki_sha256 = "{spki_sha256(ALICE.certificate)}"',
            "cert": f'cert_sha256 = "{ALICE.certificate.fingerprint(hashes.SHA256()).hex()}"',
            "dn": f'dn = "{ALICE_DN}"',
            "ca": f'dn = "{CA_DN}"',
        }[what]
        assert refusal(cms_by(ALICE), policy=policy(more=f"[[block]]\n{line}")) == "signer-blocked"

    def test_a_blocked_image_stays_out(self) -> None:
        digest = hashlib.sha256(IMAGE).hexdigest()
        block = f'[[block]]\ndigest = "sha256:{digest}"\nreason = "CVE-2026-1"\nuntil = "2026-11-22"'
        assert refusal(cms_by(ALICE), policy=policy(more=block)) == "image-blocked"
        assert refusal(cms_by(ALICE, digest="sha512"), policy=policy(more=block)) == "image-blocked"
        assert endorse(cms_by(ALICE), policy=policy(more=block), at=NOW + DAY).rule == "alice"


class TestNamespaces:
    PERMIT = (
        b'# ours\nTO Issuer "/DC=org/DC=TestGrid/CN=Test CA" \\\n  PERMIT Subject "/DC=org/DC=TestGrid/O=People/.*"\n'
    )

    def anchored(self, text: bytes | None = None, signing_policy: bytes | None = None) -> TrustAnchors:
        stem = CA.subject_hash
        return TrustAnchors(
            ANCHORS.certificates,
            ANCHORS.crls,
            namespaces=() if text is None else ((stem, text),),
            signing_policies=() if signing_policy is None else ((stem, signing_policy),),
        )

    def asked(self, mode: str, anchors: TrustAnchors) -> dict[str, Any]:
        return {"policy": replace(policy(), namespaces=mode), "anchors": anchors}

    def test_required_by_default(self) -> None:
        assert parse_policy(b"version = 1", source="t").namespaces == "require"

    def test_within_its_namespace_a_ca_is_believed(self) -> None:
        assert endorse(cms_by(ALICE), **self.asked("require", self.anchored(self.PERMIT))).rule == "alice"

    def test_outside_it_is_not(self) -> None:
        elsewhere = self.PERMIT.replace(b"O=People", b"O=Hosts")
        assert refusal(cms_by(ALICE), **self.asked("require", self.anchored(elsewhere))) == "outside-namespace"
        assert refusal(cms_by(ALICE), **self.asked("if-present", self.anchored(elsewhere))) == "outside-namespace"
        assert endorse(cms_by(ALICE), **self.asked("ignore", self.anchored(elsewhere))).rule == "alice"

    def test_deny_wins(self) -> None:
        both = self.PERMIT + b'TO Issuer SELF DENY Subject ".*/CN=Alice.*"\n'
        assert refusal(cms_by(ALICE), **self.asked("require", self.anchored(both))) == "outside-namespace"

    def test_another_cas_statement_does_not_count(self) -> None:
        other = self.PERMIT.replace(b"Test CA", b"Other CA")
        assert refusal(cms_by(ALICE), **self.asked("require", self.anchored(other))) == "outside-namespace"

    def test_absent_is_the_sites_fault_where_required(self) -> None:
        asked = self.asked("require", self.anchored())
        assert refusal(cms_by(ALICE), kind=SiteError, **asked) == "namespaces-missing"
        assert endorse(cms_by(ALICE), **self.asked("if-present", self.anchored())).rule == "alice"

    @pytest.mark.parametrize(
        "text", [b"", b"PERMIT everything", b'TO Issuer SELF PERMIT Subject "["', b"\xff", b"#" * 70_000]
    )
    def test_unreadable_is_the_sites_fault(self, text: bytes) -> None:
        asked = self.asked("if-present", self.anchored(text))
        assert refusal(cms_by(ALICE), kind=SiteError, **asked) == "namespaces-malformed"

    def test_a_signing_policy_will_do(self) -> None:
        text = (
            b"access_id_CA   X509    '/DC=org/DC=TestGrid/CN=Test CA'\n"
            b"pos_rights     globus  CA:sign\n"
            b'cond_subjects  globus  \'"/DC=org/DC=TestGrid/O=People/*" "/C=XX/*"\'\n'
        )
        assert endorse(cms_by(ALICE), **self.asked("require", self.anchored(None, text))).rule == "alice"
        other = text.replace(b"O=People", b"O=Hosts")
        assert refusal(cms_by(ALICE), **self.asked("require", self.anchored(None, other))) == "outside-namespace"
        broken = text.replace(b"pos_rights", b"positive_rights")
        asked = self.asked("require", self.anchored(None, broken))
        assert refusal(cms_by(ALICE), kind=SiteError, **asked) == "namespaces-malformed"


def test_an_image_beyond_the_limit_is_refused() -> None:
    assert refusal(cms_by(ALICE), policy=policy(defaults='max_image = "100B"')) == "image-too-large"


def test_an_image_of_no_bytes_is_refused() -> None:
    assert refusal(bare_by(ALICE, b""), b"") == "signed-nothing"
    assert refusal(cms_by(ALICE, b""), b"") == "signed-nothing"


def test_a_refusal_says_rule_line_signer_and_whom_to_ask() -> None:
    asked = policy(defaults='contact = "grid-admins@example.org"')
    with pytest.raises(RequestError) as caught:
        claim(cms_by(ALICE), image_name="cms/sim", policy=asked)
    for part in ("'alice'", "trust.toml:5", ALICE_DN, "cms/sim", "grid-admins@example.org"):
        assert part in str(caught.value)


def test_whom_a_signature_names_can_be_told_for_a_report() -> None:
    assert named_signer(cms_by(ALICE)) == (ALICE_DN, CA_DN)
    assert named_signer(SignatureFiles("cms", b"junk")) is None
