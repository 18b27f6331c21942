"""Certificates with one defect each, made at test time: nothing checked in, nothing that expires.

ca = Authority.root(name("Test CA"), at=NOW)
alice = ca.issue(person("Alice Example"))
anchors = TrustAnchors((ca.pem,), (ca.crl(),))
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import crypto

from lrms_vm.signing import Signer

_PEM = serialization.Encoding.PEM
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.EMAIL_PROTECTION)


@cache
def rsa_key(bits: int = 2048, number: int = 0, exponent: int = 65537) -> rsa.RSAPrivateKey:
    """The same key for the same arguments: making them is most of the time of these tests."""
    return rsa.generate_private_key(public_exponent=exponent, key_size=bits)


@cache
def ec_key(number: int = 0, curve: ec.EllipticCurve = ec.SECP256R1()) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve)


@cache
def ed25519_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def name(common_name: str, *, organisation: str | None = None) -> x509.Name:
    attributes = [
        x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "org"),
        x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "TestGrid"),
    ]
    if organisation is not None:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation))
    return x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def person(common_name: str) -> x509.Name:
    return name(common_name, organisation="People")


@dataclass(frozen=True)
class Identity:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: Any

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(_PEM)

    @property
    def key_pem(self) -> bytes:
        plain = serialization.NoEncryption()
        return self.key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, plain)  # type: ignore[no-any-return]

    def signer(self, *chain: x509.Certificate) -> Signer:
        return Signer(self.key, self.certificate, chain)


@dataclass(frozen=True)
class Authority(Identity):
    """A CA."""

    at: datetime = field(kw_only=True)

    @classmethod
    def root(cls, subject: x509.Name, *, at: datetime, key: Any = None, **options: Any) -> Authority:
        key = key or ec_key(1000)
        certificate = _build(subject, key, subject, key, at, ca=True, **options)
        return cls(certificate, key, at=at)

    def sub(self, subject: x509.Name, *, key: Any = None, **options: Any) -> Authority:
        key = key or ec_key(1001)
        certificate = _build(subject, key, self.certificate.subject, self.key, self.at, ca=True, **options)
        return Authority(certificate, key, at=self.at)

    def issue(self, subject: x509.Name, *, key: Any = None, **options: Any) -> Identity:
        key = key or ec_key(1)
        return Identity(_build(subject, key, self.certificate.subject, self.key, self.at, **options), key)

    def crl(
        self,
        revoked: Iterable[x509.Certificate] = (),
        *,
        since: timedelta = -HOUR,
        until: timedelta = 30 * DAY,
        signed_by: Identity | None = None,
        extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
        number: int = 1,
        reason: x509.ReasonFlags | None = None,
    ) -> bytes:
        by = signed_by or self
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(self.at + since)
            .next_update(self.at + until)
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.key.public_key()), critical=False)
        )
        for extension, critical in extra:
            builder = builder.add_extension(extension, critical)
        for one in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(one.serial_number)
            if reason is not None:
                entry = entry.add_extension(x509.CRLReason(reason), critical=False)
            builder = builder.add_revoked_certificate(entry.revocation_date(self.at - HOUR).build())
        return builder.sign(by.key, hashes.SHA256()).public_bytes(_PEM)

    @property
    def subject_hash(self) -> str:
        """What its files are called in an IGTF directory."""
        return f"{crypto.X509.from_cryptography(self.certificate).subject_name_hash():08x}"


def _build(
    subject: x509.Name,
    key: Any,
    issuer: x509.Name,
    issuer_key: Any,
    at: datetime,
    *,
    ca: bool = False,
    since: timedelta = -30 * DAY,
    until: timedelta = 365 * DAY,
    serial: int | None = None,
    digital_signature: bool | None = None,
    purposes: Sequence[x509.ObjectIdentifier] | None = CLIENT,
    constraints: x509.BasicConstraints | None = None,
    extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
    key_usage: bool = True,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(at + since)
        .not_valid_after(at + until)
        .add_extension(constraints or x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if key_usage:
        signs = not ca if digital_signature is None else digital_signature
        builder = builder.add_extension(
            x509.KeyUsage(
                digital_signature=signs,
                content_commitment=False,
                key_encipherment=not ca,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=ca,
                crl_sign=ca,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    if not ca and purposes is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(list(purposes)), critical=False)
    for extension, critical in extra:
        builder = builder.add_extension(extension, critical)
    if isinstance(issuer_key, ed25519.Ed25519PrivateKey):
        return builder.sign(issuer_key, None)
    return builder.sign(issuer_key, hashes.SHA256())
