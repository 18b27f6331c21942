"""The demo's certificate authority on a bad day: a builder revoked, a revocation list too old."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from demo.layout import Layout


@contextmanager
def crl(layout: Layout, *, revoke_builder: bool = False, expired: bool = False) -> Iterator[None]:
    """Put another revocation list in place; afterwards the old one."""
    [certificate] = (layout.ca / "certificates").glob("*.0")
    path = certificate.with_suffix(".r0")
    before = path.read_bytes()
    authority = x509.load_pem_x509_certificate(certificate.read_bytes())
    key = serialization.load_pem_private_key((layout.ca / "ca.key").read_bytes(), password=None)
    assert isinstance(key, rsa.RSAPrivateKey)
    now = datetime.now(UTC)
    begin = now - timedelta(days=3)
    made = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.subject)
        .last_update(begin)
        .next_update(now + timedelta(days=-1 if expired else 3))
        .add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    if revoke_builder:
        builder = x509.load_pem_x509_certificate((layout.ca / "builder.crt").read_bytes())
        entry = x509.RevokedCertificateBuilder().serial_number(builder.serial_number).revocation_date(begin).build()
        made = made.add_revoked_certificate(entry)
    fresh = path.with_suffix(".new")
    try:
        fresh.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        fresh.replace(path)
        yield
    finally:
        fresh.write_bytes(before)
        fresh.replace(path)
