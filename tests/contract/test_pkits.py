"""NIST's Public Key Interoperability Test Suite: signed messages with chains and CRLs that nobody here made.

The files come with `cryptography-vectors`. The name of each says what must become of it: 114 begin with Invalid, 88
with Valid; of the other 22 the suite's document says it, for a site that asks for no certificate policy.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import cryptography_vectors
import pytest

from lrms_vm.errors import LrmsVmError
from lrms_vm.trust import cms, der, dn, x509
from lrms_vm.trust.policy import Builder, Policy
from lrms_vm.trust.verify import SignatureFiles, check_bytes, check_claim

PKITS = Path(cryptography_vectors.__file__).parent / "x509" / "PKITS_data"
AT = datetime(2026, 11, 22, tzinfo=UTC)  # the suite's certificates are valid until the end of 2030

# What we refuse of the valid ones, and why. A change here is a change of what sites may rely on.
REFUSED = {
    "ValidDSASignaturesTest4": ("weak-key", "DSA"),
    "ValidDSAParameterInheritanceTest5": ("certificate-malformed", "DSA, with parameters only in the issuer's key"),
    "ValidDNnameConstraintsTest14": ("signer-name-unsafe", "a signer without a name can be nobody's builder"),
    "ValidpathLenConstraintTest8": ("signer-is-ca", "the last certificate is a CA's: CAs sign no images"),
    "ValidpathLenConstraintTest14": ("signer-is-ca", "the last certificate is a CA's: CAs sign no images"),
    "ValidonlyContainsCACertsCRLTest13": ("signer-is-ca", "the last certificate is a CA's: CAs sign no images"),
    # pyOpenSSL looks for CRLs by the name of the certificate's own CA only. IGTF's CAs sign their CRLs themselves.
    "ValidIDPwithindirectCRLTest24": ("crl-missing", "an indirect CRL, by another CA"),
    "ValidIDPwithindirectCRLTest25": ("crl-missing", "an indirect CRL, by another CA"),
    "ValidcRLIssuerTest28": ("crl-invalid", "an indirect CRL, by another CA"),
    "ValidcRLIssuerTest29": ("crl-invalid", "an indirect CRL, by another CA"),
    "ValidcRLIssuerTest30": ("crl-missing", "an indirect CRL, by another CA"),
    "ValidcRLIssuerTest33": ("crl-missing", "an indirect CRL, by another CA"),
}
# Of the 22 whose names do not say it, these. All are to be refused (sections 4.4.1 and 4.8) but OverlappingPolicies,
# whose last certificate is a CA's; DifferentPolicies 7 and 8 have one too.
OTHERS_REFUSED = {
    "MissingCRLTest1": "crl-missing",
    "DifferentPoliciesTest4": "signer-path-invalid",
    "DifferentPoliciesTest5": "signer-path-invalid",
    "DifferentPoliciesTest9": "signer-path-invalid",
    "DifferentPoliciesTest12": "signer-path-invalid",
    "DifferentPoliciesTest7": "signer-is-ca",
    "DifferentPoliciesTest8": "signer-is-ca",
    "OverlappingPoliciesTest6": "signer-is-ca",
}

pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive")


@dataclass(frozen=True)
class Message:
    """One signed message of the suite."""

    name: str
    content: bytes
    p7s: bytes
    certificates: tuple[bytes, ...]  # DER
    crls: tuple[bytes, ...]  # DER

    @property
    def path(self) -> list[bytes]:
        """The signer's certificate first, by what the SignerInfo says of it."""
        info = list(
            _signed_data(self.p7s)[-1].children(der.SET, "infos").take(der.SEQUENCE, "info").children(0x30, "info")
        )
        named = {one.raw for one in info[1].children(der.SEQUENCE, "issuerAndSerialNumber")}
        (signer,) = [one for one in self.certificates if named <= {field.raw for field in _tbs(one)}]
        return [signer, *(one for one in self.certificates if one != signer)]

    @property
    def anchors(self) -> x509.TrustAnchors:
        root = (PKITS / "certs" / "TrustAnchorRootCertificate.crt").read_bytes()
        return x509.TrustAnchors(
            (pem("CERTIFICATE", root),), tuple(pem("X509 CRL", one) for one in self.crls), source="PKITS"
        )


def pem(label: str, raw: bytes) -> bytes:
    return f"-----BEGIN {label}-----\n{base64.encodebytes(raw).decode()}-----END {label}-----\n".encode()


@cache
def messages() -> dict[str, Message]:
    return {one.name: one for one in map(_message, sorted((PKITS / "smime").glob("*.eml")))}


def _message(path: Path) -> Message:
    text = path.read_bytes()
    boundary = b"\n--" + re.search(rb'boundary="([^"]+)"', text)[1]
    _, content, signature, _ = text.split(boundary)
    p7s = base64.b64decode(signature.partition(b"\n\n")[2])
    crlf = content.removeprefix(b"\n").replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return Message(path.stem.removeprefix("Signed"), crlf, p7s, *_embedded(p7s))


def _embedded(p7s: bytes) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """What lies in a SignedData: its certificates and its CRLs (which our own reader passes over)."""
    fields = _signed_data(p7s)
    found = {one.tag: tuple(inner.raw for inner in one.children(one.tag, "sets")) for one in fields if one.tag >= 0xA0}
    return found[0xA0], found.get(0xA1, ())


def _signed_data(p7s: bytes) -> list[der.Element]:
    explicit = list(der.read(p7s).children(der.SEQUENCE, "ContentInfo"))[1].children(0xA0, "content")
    return list(explicit.take(der.SEQUENCE, "SignedData").children(der.SEQUENCE, "SignedData"))


def _tbs(certificate: bytes) -> list[der.Element]:
    """version, serial number, algorithm, issuer"""
    tbs = der.read(certificate).children(der.SEQUENCE, "Certificate").take(der.SEQUENCE, "TBSCertificate")
    return list(tbs.children(der.SEQUENCE, "TBSCertificate"))[:4]


def path_code(message: Message) -> str:
    """The code of what path validation says."""
    try:
        signer, *others = (x509.parse_der(one, source=message.name) for one in message.path)
        x509.validate(signer, others, anchors=message.anchors, min_rsa_bits=2048, namespaces="ignore", at=AT)
    except LrmsVmError as error:
        assert error.code
        return error.code
    return "accepted"


def whole_code(message: Message) -> str:
    """The code of the whole decision, with a policy that makes this message's signer a builder."""
    try:
        signer = cms.parse(message.p7s).signer
        builder = Builder("nist", dn.of(signer.issuer), dn.of(signer.subject), ("*",))
        claim = check_claim(
            SignatureFiles("cms", message.p7s),
            anchors=message.anchors,
            policy=Policy(builders=(builder,), namespaces="ignore"),
            image_name="nist",
            user=None,
            partition="",
            at=AT,
        )
        digests = {one: hashlib.new(one, message.content).digest() for one in ("sha256", claim.digest_algorithm)}
        check_bytes(claim, digests=digests, size_bytes=len(message.content))
    except LrmsVmError as error:
        assert error.code
        return error.code
    return "accepted"


def named(word: str) -> dict[str, str]:
    """The codes of those whose names begin so; "" for those whose names say nothing."""
    return {
        name: path_code(message)
        for name, message in messages().items()
        if (re.match("Valid|Invalid", name) or [""])[0] == word
    }


def test_no_invalid_path_is_accepted() -> None:
    codes = named("Invalid")
    assert len(codes) == 114
    assert [name for name, code in codes.items() if code == "accepted"] == []


def test_valid_paths_are_accepted_but_for_those_listed() -> None:
    codes = named("Valid")
    assert len(codes) == 88
    assert {name: code for name, code in codes.items() if code != "accepted"} == {
        name: code for name, (code, _) in REFUSED.items()
    }


def test_paths_of_which_the_suite_says_it_elsewhere() -> None:
    codes = named("")
    assert len(codes) == 22
    assert {name: code for name, code in codes.items() if code != "accepted"} == OTHERS_REFUSED


def test_the_whole_decision_agrees_with_the_path() -> None:
    """Messages signed with SHA-1 (those with DSA) are refused for that already."""
    for name, message in messages().items():
        whole = whole_code(message)
        assert (whole == "accepted") == (path_code(message) == "accepted"), (name, whole)
        assert whole in (path_code(message), "digest-not-allowed"), name


def test_another_content_is_not_what_was_signed() -> None:
    for message in list(messages().values())[::20]:
        if whole_code(message) == "accepted":
            assert whole_code(replace(message, content=message.content + b"\n")) == "bytes-differ"
