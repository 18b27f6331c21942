"""The names of a CA's files are those that OpenSSL would look for."""

from __future__ import annotations

from datetime import UTC, datetime

from cryptography import x509
from cryptography.x509.name import _ASN1Type as Encoding
from cryptography.x509.oid import NameOID
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from OpenSSL import crypto

from lrms_vm.trust.name_hash import name_hash
from tests.certs.make_certs import Authority

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
PRINTABLE, ANY = "ABCxyz  019'+", "ABCxyz  \t\n\x0b019'+\u00e9\u00df\u0416\u4e2d"
ENCODINGS = {
    Encoding.UTF8String: ANY,
    Encoding.BMPString: ANY,
    Encoding.PrintableString: PRINTABLE,
    Encoding.IA5String: PRINTABLE,
}
TYPES = (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.DOMAIN_COMPONENT, NameOID.EMAIL_ADDRESS)


@st.composite
def attributes(draw: st.DrawFn, kind: x509.ObjectIdentifier) -> x509.NameAttribute[str]:
    encoding = draw(st.sampled_from(list(ENCODINGS)))
    value = draw(st.text(ENCODINGS[encoding], min_size=1, max_size=150))
    return x509.NameAttribute(kind, value, encoding, _validate=False)


@st.composite
def names(draw: st.DrawFn) -> x509.Name:
    kinds = draw(
        st.lists(st.lists(st.sampled_from(TYPES), min_size=1, max_size=2, unique=True), min_size=1, max_size=4)
    )
    return x509.Name([x509.RelativeDistinguishedName([draw(attributes(kind)) for kind in rdn]) for rdn in kinds])


@settings(max_examples=150, deadline=None)
@given(names())
def test_the_hash_is_openssls(subject: x509.Name) -> None:
    try:
        certificate = Authority.root(subject, at=NOW).certificate
        theirs = crypto.X509.from_cryptography(certificate).subject_name_hash()
    except (ValueError, crypto.Error):
        assume(False)
    assert name_hash(certificate.subject) == f"{theirs:08x}"
