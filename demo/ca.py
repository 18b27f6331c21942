"""A throw-away certificate authority for the demo: an IGTF-like directory, a builder and somebody who may not build.

Real sites have none of this: their CA directory comes from the IGTF and their builders bring grid certificates.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import crypto

BUILDER = "Demo Image Builder"
STRANGER = "Demo Stranger"
# As the trust policy writes names: RFC 4514, most specific first.
CA_DN = "CN=lrms_vm demo CA,DC=lrms-vm-demo,DC=example"
BUILDER_DN = f"CN={BUILDER},O=People,DC=lrms-vm-demo,DC=example"
STRANGER_DN = f"CN={STRANGER},O=People,DC=lrms-vm-demo,DC=example"

_LIFE = timedelta(days=365)
_CRL_LIFE = timedelta(days=30)
_RENEW_BEFORE = timedelta(days=7)
_RSA_BITS = 2048


def make_demo_ca(directory: Path) -> None:
    """Make, or keep where still good, everything below `directory`.

    certificates/<hash>.0, .r0, .namespaces   what a trust policy's ca_dir names; the CRL is good for 30 days
    builder.crt builder.key                   may build, once the policy says so
    stranger.crt stranger.key                 as valid, but in no policy
    ca.key                                    0600
    """
    directory.mkdir(parents=True, exist_ok=True)
    certificates = directory / "certificates"
    certificates.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    if not _still_good(directory, now):
        _make_all(directory, certificates, now)
    crl_path = next(certificates.glob("*.0")).with_suffix(".r0")
    if not crl_path.exists() or _next_update(crl_path) - now < _RENEW_BEFORE:
        _write_crl(directory, crl_path, now)


def _still_good(directory: Path, now: datetime) -> bool:
    names = [*directory.glob("certificates/*.0"), directory / "builder.crt", directory / "stranger.crt"]
    keys = [directory / name for name in ("ca.key", "builder.key", "stranger.key")]
    if len(names) != 3 or not all(path.is_file() for path in [*names, *keys]):
        return False
    ends = [x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc for path in names]
    return min(ends) - now > _CRL_LIFE


def _make_all(directory: Path, certificates: Path, now: datetime) -> None:
    for old in certificates.iterdir():
        old.unlink()
    ca_key = rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS)
    ca_name = _name("lrms_vm demo CA", person=False)
    ca = (
        _certificate(ca_name, ca_key.public_key(), ca_name, ca_key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    hashed = f"{crypto.X509.from_cryptography(ca).subject_name_hash():08x}"
    for stem, common_name in (("builder", BUILDER), ("stranger", STRANGER)):
        key = rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS)
        person = (
            _certificate(_name(common_name, person=True), key.public_key(), ca_name, ca_key.public_key(), now)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.EMAIL_PROTECTION]),
                critical=False,
            )
            .sign(ca_key, hashes.SHA256())
        )
        _write_key(directory / f"{stem}.key", key)
        _write(directory / f"{stem}.crt", person.public_bytes(serialization.Encoding.PEM), 0o644)
    _write_key(directory / "ca.key", ca_key)
    # EUGridPMA's namespaces format: which names this CA may give.
    namespaces = 'TO Issuer "/DC=example/DC=lrms-vm-demo/CN=lrms_vm demo CA" \\\n' + (
        '  PERMIT Subject "/DC=example/DC=lrms-vm-demo/.*"\n'
    )
    _write(certificates / f"{hashed}.namespaces", namespaces.encode(), 0o644)
    _write(certificates / f"{hashed}.0", ca.public_bytes(serialization.Encoding.PEM), 0o644)


def _write_crl(directory: Path, path: Path, now: datetime) -> None:
    ca = x509.load_pem_x509_certificate(path.with_suffix(".0").read_bytes())
    key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), password=None)
    assert isinstance(key, rsa.RSAPrivateKey)
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.subject)
        .last_update(now - timedelta(hours=1))
        .next_update(now + _CRL_LIFE)
        .add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(path, crl.public_bytes(serialization.Encoding.PEM), 0o644)


def _next_update(path: Path) -> datetime:
    return x509.load_pem_x509_crl(path.read_bytes()).next_update_utc or datetime.min.replace(tzinfo=UTC)


def _certificate(
    subject: x509.Name, key: rsa.RSAPublicKey, issuer: x509.Name, issuer_key: rsa.RSAPublicKey, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + _LIFE)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _name(common_name: str, *, person: bool) -> x509.Name:
    organisation = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "People")] if person else []
    return x509.Name(
        [
            x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "example"),
            x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "lrms-vm-demo"),
            *organisation,
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=not ca,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _write_key(path: Path, key: rsa.RSAPrivateKey) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write(path, pem, 0o600)


def _write(path: Path, content: bytes, mode: int) -> None:
    fresh = path.with_name(path.name + ".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with open(fd, "wb") as file:
        os.fchmod(fd, mode)
        file.write(content)
    fresh.replace(path)
