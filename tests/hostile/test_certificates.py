"""Certificates, CRLs and names with one defect each: cases C21n to C49 of tests/hostile/README.md.

Everything else about them is right: the CA signed them, its CRL is current, a rule names the holder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lrms_vm.errors import SiteError
from lrms_vm.signing import detached_cms
from lrms_vm.trust import dn
from lrms_vm.trust.verify import SignatureFiles, TrustAnchors
from tests.certs.edit_certs import EXTENSIONS, SERIAL, SPKI, SUBJECT, both_forms, edited, edited_crl, pem
from tests.certs.make_certs import DAY, Authority, Identity, ec_key, name, person, rsa_key
from tests.hostile.mutants import Node, copied, shortest, taken_apart
from tests.unit.test_trust_verify import (
    ALICE,
    ALICE_DN,
    ANCHORS,
    CA,
    IMAGE,
    NOW,
    cms_by,
    endorse,
    policy,
    refusal,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # the library warns of such serial numbers and names

Edit = Callable[[list[Node]], object]


def tlv(tag: int, content: bytes) -> bytes:
    return bytes([tag]) + shortest(len(content)) + content


def integer(value: int) -> bytes:
    return tlv(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def rsa_spki(modulus: int, exponent: int) -> Edit:
    def edit(fields: list[Node]) -> None:
        fields[SPKI] = taken_apart(
            tlv(
                0x30,
                bytes.fromhex("300d06092a864886f70d0101010500")
                + tlv(3, b"\0" + tlv(0x30, integer(modulus) + integer(exponent))),
            )
        )

    return edit


def extensions(fields: list[Node]) -> list[Node]:
    found: list[Node] = fields[EXTENSIONS][1][0][1]
    return found


def extension(oid: str, value: bytes, *, critical: bool = False) -> Node:
    flag = [[0x01, b"\xff"]] if critical else []
    return [0x30, [[0x06, bytes.fromhex(oid)], *flag, [0x04, value]]]


def serial(content: bytes) -> Edit:
    return lambda fields: fields[SERIAL].__setitem__(1, content)


def common_name(tag: int, content: bytes) -> Edit:
    """Alice's CN in another string type."""

    def edit(fields: list[Node]) -> None:
        fields[SUBJECT][1][-1][1][0][1][1] = [tag, content]

    return edit


MODULUS = rsa_key().public_key().public_numbers().n
DEFECTS: dict[str, tuple[Edit, str]] = {
    "C21p RSA of 1024 bits": (rsa_spki(MODULUS >> 1024 | 1, 65537), "weak-key"),
    "C21p RSA of 16384 bits": (rsa_spki((1 << 16383) | 1, 65537), "weak-key"),
    "C21p exponent 1": (rsa_spki(MODULUS, 1), "certificate-malformed"),
    "C21p exponent even": (rsa_spki(MODULUS, 65536), "certificate-malformed"),
    "C21p exponent as long as the modulus": (rsa_spki(MODULUS, MODULUS - 2), "weak-key"),
    "C21p modulus 0": (rsa_spki(0, 3), "certificate-malformed"),
    "C45 an extension twice": (
        lambda fields: extensions(fields).append(copied(extensions(fields)[0])),
        "certificate-malformed",
    ),
    "C46 serial number 0": (serial(b"\0"), "certificate-malformed"),
    "C46 serial number negative": (serial(b"\xff\x01"), "certificate-malformed"),
    "C46 serial number of 21 bytes": (serial(b"\1" * 21), "certificate-malformed"),
    "C36a a NUL in the name": (common_name(0x0C, b"Alice Example\0.evil"), "signer-name-unsafe"),
    "C36a direction marks in the name": (common_name(0x0C, "\u202eAlice Example".encode()), "signer-name-unsafe"),
    "C36a no name at all": (lambda fields: fields[SUBJECT].__setitem__(1, []), "signer-name-unsafe"),
    "C36b T61 twin": (common_name(0x14, b"Alice Example"), "not-a-builder"),
    "C36b BMP twin": (common_name(0x1E, "Alice Example".encode("utf-16-be")), "not-a-builder"),
    "C36b universal twin": (common_name(0x1C, "Alice Example".encode("utf-32-be")), "not-a-builder"),
    "C36b visible twin": (common_name(0x1A, b"Alice Example"), "certificate-malformed"),
    "C36b not text": (common_name(0x0C, b"\xff\xfe"), "certificate-malformed"),
    "C36d space after": (common_name(0x0C, b"Alice Example "), "not-a-builder"),
    "C36d two spaces": (common_name(0x0C, b"Alice  Example"), "not-a-builder"),
    "C36d other case": (common_name(0x0C, b"alice example"), "not-a-builder"),
    "C31 RFC 3820 proxy": (
        lambda fields: extensions(fields).append(
            extension("2b0601050507010e", bytes.fromhex("300c300a06082b06010505071501"), critical=True)
        ),
        "signer-is-proxy",
    ),
    "C32 limited proxy": (
        lambda fields: extensions(fields).append(
            extension("2b0601050507010e", bytes.fromhex("300f300d060b2b060104019b5001010109"), critical=True)
        ),
        "signer-is-proxy",
    ),
    "C44 unknown critical extension": (
        lambda fields: extensions(fields).append(extension("2a0304", b"\5\0", critical=True)),
        "signer-path-invalid",
    ),
    "an extension that is not DER": (
        lambda fields: extensions(fields).append(extension("551d20", b"\x30\x80\0\0")),
        "certificate-malformed",
    ),
    "a policy twice": (
        lambda fields: extensions(fields).append(extension("551d20", bytes.fromhex("300a30030601003003060100"))),
        "signer-path-invalid",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_certificate_with_one_defect_makes_nobody_a_builder(defect: str) -> None:
    edit, code = DEFECTS[defect]
    certificate = edited(ALICE, CA, edit)
    for files in both_forms(certificate, ALICE, IMAGE, NOW):
        assert refusal(files) == code, files.kind


def test_without_a_defect_the_edited_certificate_is_accepted() -> None:
    for files in both_forms(edited(ALICE, CA, lambda fields: None), ALICE, IMAGE, NOW):
        assert endorse(files).signer == ALICE_DN
    for files in both_forms(edited(ALICE, CA, common_name(0x13, b"Alice Example")), ALICE, IMAGE, NOW):
        assert endorse(files).signer == ALICE_DN  # PrintableString and UTF8String are the same text beyond doubt


def anchored(ca: bytes, *crls: bytes) -> TrustAnchors:
    return TrustAnchors((pem("CERTIFICATE", ca),), crls)


class TestTheCa:
    """The same for the certificates above the signer's."""

    def test_c30b_a_ca_that_may_not_sign_crls_has_none(self) -> None:
        def edit(fields: list[Node]) -> None:
            usage = next(one for one in extensions(fields) if one[1][0][1] == bytes.fromhex("551d0f"))
            usage[1][-1][1] = bytes.fromhex("03020204")  # keyCertSign alone

        asked = {"anchors": anchored(edited(CA, CA, edit), CA.crl())}
        assert refusal(cms_by(ALICE), kind=SiteError, **asked) == "crl-invalid"

    @pytest.mark.parametrize("bits", [1024, 1536])
    @pytest.mark.parametrize("where", ["anchor", "between"])
    def test_c21p_a_weak_key_above_is_a_weak_key(self, bits: int, where: str) -> None:
        weak = rsa_key(bits, number=50)
        ca = Authority.root(name("Test CA"), at=NOW, key=weak) if where == "anchor" else CA.sub(name("Weak"), key=weak)
        alice = ca.issue(person("Alice Example"))
        anchors = TrustAnchors((CA.pem, ca.pem) if where == "between" else (ca.pem,), (CA.crl(), ca.crl()))
        assert refusal(cms_by(alice), anchors=anchors) == "weak-key"

    def test_c49_a_name_outside_what_its_ca_is_constrained_to(self) -> None:
        def constrained(subtree: x509.Name) -> TrustAnchors:
            limits = x509.NameConstraints([x509.DirectoryName(subtree)], None)
            ca = Authority.root(name("Test CA"), at=NOW, extra=[(limits, True)])
            return TrustAnchors((ca.pem,), (ca.crl(),))

        below = x509.Name(list(person("x"))[:3])  # DC=org, DC=TestGrid, O=People
        elsewhere = x509.Name([x509.NameAttribute(NameOID.COUNTRY_NAME, "XX")])
        assert endorse(cms_by(ALICE), anchors=constrained(below)).rule == "alice"
        assert refusal(cms_by(ALICE), anchors=constrained(elsewhere)) == "signer-path-invalid"

    @pytest.mark.parametrize(
        ("purposes", "accepted"),
        [
            ([ExtendedKeyUsageOID.SERVER_AUTH], False),
            ([ExtendedKeyUsageOID.TIME_STAMPING, ExtendedKeyUsageOID.OCSP_SIGNING], False),
            ([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.EMAIL_PROTECTION], True),
            ([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE], True),
        ],
    )
    def test_a_ca_for_servers_certifies_no_builders(
        self, purposes: list[x509.ObjectIdentifier], accepted: bool
    ) -> None:
        sub = CA.sub(name("Sub CA"), extra=[(x509.ExtendedKeyUsage(purposes), False)])
        alice = sub.issue(person("Alice Example"))
        anchors = TrustAnchors((CA.pem, sub.pem), (CA.crl(), sub.crl()))
        code = refusal(cms_by(alice), anchors=anchors)  # no rule names this CA: what counts is what is said first
        assert code == ("not-a-builder" if accepted else "signer-path-invalid")

    def test_c21g_cas_that_issued_each_other_lead_nowhere(self) -> None:
        one = Authority.root(name("One"), at=NOW, key=ec_key(71))
        two = Authority.root(name("Two"), at=NOW, key=ec_key(72))
        one_by_two, two_by_one = (
            by.sub(name(of), key=who.key) for by, of, who in ((two, "One", one), (one, "Two", two))
        )
        alice = one_by_two.issue(person("Alice Example"))
        chain = (one_by_two.certificate, two_by_one.certificate)
        signed = detached_cms(alice.signer(*chain), hashlib.sha256(IMAGE).digest(), "sha256", NOW)
        assert refusal(SignatureFiles("cms", signed)) == "signer-untrusted"

    def test_a_ca_may_change_its_key_by_a_certificate_for_itself(self) -> None:
        """Self-issued, as in PKITS 4.5: the old key vouches for the new one under the same name."""
        new = CA.sub(name("Test CA"), key=ec_key(73))
        alice = new.issue(person("Alice Example"))
        signed = detached_cms(alice.signer(new.certificate), hashlib.sha256(IMAGE).digest(), "sha256", NOW)
        anchors = replace(ANCHORS, crls=(*ANCHORS.crls, new.crl()))
        assert endorse(SignatureFiles("cms", signed), anchors=anchors).rule == "alice"

    def test_a_path_that_is_too_long_is_refused(self) -> None:
        cas = [CA]
        for number in range(12):
            cas.append(cas[-1].sub(name(f"Sub {number}"), key=ec_key(100 + number)))
        alice = cas[-1].issue(person("Alice Example"))
        chain = [one.certificate for one in cas[1:]]
        signed = detached_cms(alice.signer(*chain), hashlib.sha256(IMAGE).digest(), "sha256", NOW)
        assert refusal(SignatureFiles("cms", signed)) == "signature-malformed"


class TestCrls:
    REVOKED = CA.crl([ALICE.certificate])

    def test_c30c_a_delta_alone_says_nothing(self) -> None:
        delta = CA.crl(extra=[(x509.DeltaCRLIndicator(1), True)])
        asked = {"anchors": TrustAnchors((CA.pem,), (delta,))}
        assert refusal(cms_by(ALICE), kind=SiteError, **asked) in ("crl-missing", "crl-invalid")

    def test_what_a_delta_revokes_is_revoked(self) -> None:
        point = x509.DistributionPoint([x509.UniformResourceIdentifier("http://example.org/delta")], None, None, None)
        base = CA.crl(extra=[(x509.FreshestCRL([point]), False)])
        delta = CA.crl([ALICE.certificate], extra=[(x509.DeltaCRLIndicator(1), True)], number=2)
        assert endorse(cms_by(ALICE), anchors=TrustAnchors((CA.pem,), (base,))).rule == "alice"
        asked = {"anchors": TrustAnchors((CA.pem,), (base, delta))}
        assert refusal(cms_by(ALICE), **asked) == "signer-revoked"

    def test_of_two_crls_the_newer_counts_wherever_it_stands(self) -> None:
        older = CA.crl(since=-2 * DAY, until=DAY)
        for crls in ((older, self.REVOKED), (self.REVOKED, older)):
            assert refusal(cms_by(ALICE), anchors=TrustAnchors((CA.pem,), crls)) == "signer-revoked"

    def test_a_crl_without_an_end_is_no_current_one(self) -> None:
        """nextUpdate may be left out in X.509, and must not be in RFC 5280 section 5.1.2.5."""

        def edit(fields: list[Node]) -> None:
            times = [place for place, one in enumerate(fields) if one[0] in (0x17, 0x18)]
            del fields[times[1]]

        asked = {"anchors": TrustAnchors((CA.pem,), (edited_crl(CA.crl(), CA, edit),))}
        assert refusal(cms_by(ALICE), kind=SiteError, **asked) == "crl-missing"

    def test_c30_a_crl_with_our_cas_name_by_another_key_is_not_ours(self) -> None:
        twin = Authority.root(name("Test CA"), at=NOW, key=ec_key(66))
        asked = {"anchors": TrustAnchors((CA.pem,), (twin.crl(),))}
        assert refusal(cms_by(ALICE), kind=SiteError, **asked) in ("crl-missing", "crl-invalid")

    @pytest.mark.parametrize("reason", [x509.ReasonFlags.superseded, x509.ReasonFlags.certificate_hold])
    def test_revoked_is_revoked_whatever_the_reason(self, reason: x509.ReasonFlags) -> None:
        crl = CA.crl([ALICE.certificate], reason=reason)
        assert refusal(cms_by(ALICE), anchors=TrustAnchors((CA.pem,), (crl,))) == "signer-revoked"


class TestProxies:
    def test_c33_c34_a_proxy_of_a_proxy_is_a_proxy(self) -> None:
        first = proxy_of(ALICE, "proxy", key=ec_key(9))
        second = proxy_of(first, "proxy", key=ec_key(10))
        for signer in (first, second):
            assert refusal(cms_by(signer)) == "signer-is-proxy"

    def test_a_proxy_does_not_become_a_builder_by_any_other_last_name(self) -> None:
        """An RFC 3820 proxy without the extension that makes it one is a certificate by somebody who is no CA."""
        proxy = proxy_of(ALICE, "1234567", key=ec_key(9))
        signed = detached_cms(proxy.signer(ALICE.certificate), hashlib.sha256(IMAGE).digest(), "sha256", NOW)
        assert refusal(SignatureFiles("cms", signed)) in ("signer-path-invalid", "signer-untrusted")


def proxy_of(who: Identity, last: str, *, key: ec.EllipticCurvePrivateKey) -> Identity:
    subject = x509.Name([*who.certificate.subject, x509.NameAttribute(NameOID.COMMON_NAME, last)])
    return Authority(who.certificate, who.key, at=NOW).issue(subject, key=key)


class TestNames:
    def test_c36c_spellings_of_one_type_are_one_type(self) -> None:
        mail = x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@example.org", x509.name._ASN1Type.IA5String)
        alice = CA.issue(x509.Name([*person("Alice Example"), mail]))
        for spelling in ("emailAddress", "E", "1.2.840.113549.1.9.1"):
            rule = replace(policy().builders[0], subject=dn.parse(f"{spelling}=a@example.org,{ALICE_DN}"))
            assert endorse(cms_by(alice), policy=replace(policy(), builders=(rule,))).rule == "alice"
        assert dn.parse("UID=x") == dn.parse("0.9.2342.19200300.100.1.1=x") != dn.parse("CN=x")
        assert refusal(cms_by(alice)) == "not-a-builder"  # the name without the address is another

    @pytest.mark.parametrize("text", ["/DC=org/CN=Alice", "CN=Alice,", "CN", "", "CN=a\\", "XX=a"])
    def test_a_name_that_is_none_is_an_error(self, text: str) -> None:
        with pytest.raises(ValueError):
            dn.parse(text)

    def test_c48_names_by_the_old_hash_are_not_found(self) -> None:
        """openssl before 1.0 named the files by another hash: what a CA may give is then not known."""
        permit = b'TO Issuer SELF PERMIT Subject ".*"\n'
        asked = {"policy": replace(policy(), namespaces="require")}
        right, old = (replace(ANCHORS, namespaces=((stem, permit),)) for stem in (CA.subject_hash, "0123abcd"))
        assert endorse(cms_by(ALICE), anchors=right, **asked).rule == "alice"
        assert refusal(cms_by(ALICE), kind=SiteError, anchors=old, **asked) == "namespaces-missing"
