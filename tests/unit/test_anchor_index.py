"""A CA is found among a hundred others however its name is written; and only those that may be it are read."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.x509.name import _ASN1Type as Encoding
from cryptography.x509.oid import NameOID

from lrms_vm.trust import dn
from lrms_vm.trust.anchor_index import Unread
from lrms_vm.trust.x509 import TrustAnchors, validate
from tests.certs.make_certs import Authority, ec_key, name, person

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
OTHERS = tuple(Authority.root(name(f"Authority {n}"), at=NOW).pem for n in range(20))


def named(text: str, kind: Encoding = Encoding.UTF8String) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text, _type=kind)])


@pytest.mark.parametrize(
    "subject",
    [
        named("Test CA"),
        named("Test CA", Encoding.PrintableString),
        named("Test CA", Encoding.BMPString),
        named("TEST  ca "),
        named("Tést ÇA"),
        named("Test CA", Encoding.T61String),
        name("Test CA"),
    ],
    ids=range(7),
)
def test_a_ca_is_found_however_its_name_is_written(subject: x509.Name) -> None:
    ca = Authority.root(subject, at=NOW, key=ec_key(5))
    anchors = TrustAnchors((*OTHERS, ca.pem), (ca.crl(),))
    alice = ca.issue(person("Alice Example")).certificate
    path = validate(alice, (), anchors=anchors, min_rsa_bits=2048, namespaces="ignore", at=NOW)
    assert path.chain == (alice, ca.certificate)


def test_only_what_may_be_meant_is_read_and_once() -> None:
    ca = Authority.root(name("Test CA"), at=NOW, key=ec_key(5))
    unread = Unread((*OTHERS, ca.pem))
    wanted = dn.loose(ca.certificate.subject)
    assert unread.naming(wanted) == [ca.pem]
    assert unread.naming(wanted) == list(OTHERS)
    assert unread.naming(wanted) == []


def test_files_of_several_certificates_or_none_are_not_passed_over() -> None:
    ca = Authority.root(name("Test CA"), at=NOW, key=ec_key(5))
    several, none = b"text\n" + OTHERS[0] + ca.pem, b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"
    found = Unread((OTHERS[1], several, none, b"")).naming(dn.loose(ca.certificate.subject))
    assert set(found) >= {several, b""}
    assert OTHERS[1] not in found
