"""Plain CRLs, judged without reading their entries: a grid CA's may have tens of thousands, and every job asks.

Plain is what nearly every CA publishes: for all of its certificates and all reasons, nothing in it critical, signed
with the CA's own key (RFC 5280 section 5). Of such a one only head and tail are read, its signature is checked over all
of it, and then the one serial number is looked for. Who has been revoked has his in it, as the DER of an INTEGER; whose
is nowhere in its bytes has not been. Where those bytes are there, or a CRL is not plain, nothing is said here, and
OpenSSL is asked (x509.py).
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from lrms_vm.trust import der
from lrms_vm.values import dataclass

_BEGIN, _END = b"-----BEGIN X509 CRL-----", b"-----END X509 CRL-----"
_V2 = 1
_NUMBER, _KEY_IDENTIFIER = "2.5.29.20", "2.5.29.35"  # cRLNumber, authorityKeyIdentifier
_CRITICAL = b"\x01\x01\xff"  # BOOLEAN TRUE: in an entry, that an extension of it must be understood
# AlgorithmIdentifiers, whole: RFC 4055 section 5 (with NULL), RFC 5758 section 3.2 (without).
_RSA = {
    bytes.fromhex("300d06092a864886f70d01010b0500"): hashes.SHA256(),
    bytes.fromhex("300d06092a864886f70d01010c0500"): hashes.SHA384(),
    bytes.fromhex("300d06092a864886f70d01010d0500"): hashes.SHA512(),
}
_ECDSA = {
    bytes.fromhex("300a06082a8648ce3d040302"): hashes.SHA256(),
    bytes.fromhex("300a06082a8648ce3d040303"): hashes.SHA384(),
    bytes.fromhex("300a06082a8648ce3d040304"): hashes.SHA512(),
}


@dataclass(frozen=True)
class PlainCrl:
    """A CRL whose signature nobody has checked yet."""

    issuer: bytes  # DER of the name
    this_update: datetime
    next_update: datetime
    entries: bytes  # DER of all of them
    key_identifier: bytes | None  # of the key that signed it
    signed: bytes
    algorithm: bytes
    signature: bytes

    def is_by(self, ca: x509.Certificate) -> bool:
        """Whether this CA may sign CRLs, and signed this one."""
        if self.issuer != ca.subject.public_bytes():
            return False
        try:
            usage = ca.extensions.get_extension_for_class(x509.KeyUsage).value
        except x509.ExtensionNotFound:
            usage = None
        if usage is not None and not usage.crl_sign:
            return False
        if self.key_identifier not in (None, _key_identifier(ca)):
            return False
        key = ca.public_key()
        try:
            if isinstance(key, rsa.RSAPublicKey) and self.algorithm in _RSA:
                key.verify(self.signature, self.signed, padding.PKCS1v15(), _RSA[self.algorithm])
            elif isinstance(key, ec.EllipticCurvePublicKey) and self.algorithm in _ECDSA:
                key.verify(self.signature, self.signed, ec.ECDSA(_ECDSA[self.algorithm]))
            else:
                return False
        except InvalidSignature:
            return False
        return True

    def may_list(self, certificate: x509.Certificate) -> bool:
        """False only where it certainly does not, with the number in any encoding that OpenSSL reads (X.690 8.3)."""
        number = certificate.serial_number
        if number < 0:
            return True
        content = number.to_bytes(number.bit_length() // 8 + 1, "big")
        return bytes([len(content)]) + content in self.entries or b"\0" + content in self.entries  # or: padded

    def counts(self, at: datetime, grace: timedelta) -> bool:
        return self.this_update <= at < self.next_update + grace


def read(pem: bytes) -> PlainCrl | None:
    """None for what is not plain, or not a CRL at all."""
    begin, end = pem.find(_BEGIN), pem.find(_END)
    if not 0 <= begin < end or pem.count(b"-----BEGIN") != 1:
        return None
    try:
        whole = der.read(binascii.a2b_base64(memoryview(pem)[begin + len(_BEGIN) : end])).children(der.SEQUENCE, "CRL")
        head = whole.take(der.SEQUENCE, "signed part")
        algorithm = whole.take(der.SEQUENCE, "algorithm")
        signature = whole.take(der.BIT_STRING, "signature")
        whole.end()
        fields = head.children(der.SEQUENCE, "signed part")
        if der.integer(fields.take(der.INTEGER, "version"), "version") != _V2 or signature.content[:1] != b"\0":
            return None
        if fields.take(der.SEQUENCE, "algorithm").raw != algorithm.raw:
            return None
        issuer = fields.take(der.SEQUENCE, "issuer").raw
        this_update, next_update = (_time(fields.take_any(what)) for what in ("thisUpdate", "nextUpdate"))
        entries = fields.take_if(der.SEQUENCE)
        extensions = fields.take_if(0xA0)
        fields.end()
        known = _plain_extensions(der.read(extensions.content)) if extensions is not None else None
        if known is None:
            return None
    except (der.DerError, ValueError, OverflowError):  # binascii.Error is a ValueError
        return None
    listed = entries.content if entries is not None else b""
    if _CRITICAL in listed:
        return None
    return PlainCrl(
        issuer=issuer,
        this_update=this_update,
        next_update=next_update,
        entries=listed,
        key_identifier=known.get(_KEY_IDENTIFIER),
        signed=head.raw,
        algorithm=algorithm.raw,
        signature=signature.content[1:],
    )


def ends_of(
    chain: Sequence[x509.Certificate], pems: Sequence[bytes], *, at: datetime, grace: timedelta, must_be_there: bool
) -> list[datetime] | None:
    """Until when each CA's CRL says that nothing in the chain is revoked; None where it takes more to know that.

    The chain's first is the signer's certificate, its last the anchor. Of each CA there must be one CRL, plain, by its
    own key, current (or at most `grace` over) and without the serial number of what it issued. A CA with no CRL at all
    counts only where CRLs need not be there. `pems` are those of the chain's CAs, as far as the caller can tell.
    """
    crls = [read(pem) for pem in pems]
    if None in crls:
        return None
    names = {one.subject.public_bytes() for one in chain}
    if not must_be_there and any(crl is not None and crl.issuer not in names for crl in crls):
        return None  # perhaps one of these names, encoded in another way
    ends: list[datetime] = []
    proved: set[int] = set()  # the CRLs whose signature holds, by the CA's place in the chain: an anchor is its own
    for index, certificate in enumerate(chain):
        above = min(index + 1, len(chain) - 1)
        ca = chain[above]
        name = ca.subject.public_bytes()
        mine = [crl for crl in crls if crl is not None and crl.issuer == name]
        if not mine and not must_be_there:
            continue
        if len(mine) != 1 or certificate.issuer.public_bytes() != name:
            return None
        (crl,) = mine
        if not crl.counts(at, grace) or crl.may_list(certificate) or not (above in proved or crl.is_by(ca)):
            return None
        proved.add(above)
        ends.append(crl.next_update + grace)
    return ends


def _plain_extensions(extensions: der.Element) -> dict[str, bytes] | None:
    """By OID what is in the two that change nothing about whom the CRL is for, neither critical; None for others."""
    found: dict[str, bytes] = {}
    for one in extensions.children(der.SEQUENCE, "extensions"):
        fields = one.children(der.SEQUENCE, "extension")
        kind = der.oid(fields.take_any("extension"), "extension")
        value = fields.take_if(der.OCTET_STRING)
        if value is None or len(fields) or kind in found:
            return None
        inner = der.read(value.content)
        if kind == _NUMBER:
            if der.integer(inner, "cRLNumber") < 0:
                return None
            found[kind] = inner.content
        elif kind == _KEY_IDENTIFIER:
            identifiers = inner.children(der.SEQUENCE, "authorityKeyIdentifier")
            found[kind] = identifiers.take(0x80, "keyIdentifier").content
            identifiers.end()
        else:
            return None
    return found


def _key_identifier(ca: x509.Certificate) -> bytes | None:
    try:
        return ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return None


def _time(element: der.Element) -> datetime:
    """RFC 5280 section 5.1.2.4: in UTC, with seconds. Raises `ValueError`."""
    text = element.content.decode("ascii")
    if not text[:-1].isdecimal() or not text.endswith("Z"):
        raise ValueError("not a time")
    if element.tag == der.UTC_TIME and len(text) == 13:
        text = ("20" if text[:2] < "50" else "19") + text
    elif element.tag != der.GENERALIZED_TIME or len(text) != 15:
        raise ValueError("not a time")
    year, *rest = int(text[:4]), *(int(text[at : at + 2]) for at in range(4, 14, 2))
    month, day, hour, minute, second = rest
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
