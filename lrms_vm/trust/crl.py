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
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from lrms_vm.trust import der

_BEGIN, _END = b"-----BEGIN X509 CRL-----", b"-----END X509 CRL-----"
_V2 = 1
_PLAIN_EXTENSIONS = ("2.5.29.20", "2.5.29.35")  # cRLNumber, authorityKeyIdentifier
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
        """False only where it certainly does not."""
        number = certificate.serial_number
        if number < 0:
            return True
        content = number.to_bytes(number.bit_length() // 8 + 1, "big")
        return bytes([der.INTEGER, len(content)]) + content in self.entries

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
        if extensions is None or not _are_plain(der.read(extensions.content)):
            return None
    except (der.DerError, ValueError, OverflowError):  # binascii.Error is a ValueError
        return None
    listed = entries.content if entries is not None else b""
    if _CRITICAL in listed:
        return None
    return PlainCrl(issuer, this_update, next_update, listed, head.raw, algorithm.raw, signature.content[1:])


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
    ends = []
    for index, certificate in enumerate(chain):
        ca = chain[min(index + 1, len(chain) - 1)]
        name = ca.subject.public_bytes()
        mine = [crl for crl in crls if crl is not None and crl.issuer == name]
        if not mine and not must_be_there:
            continue
        if len(mine) != 1 or certificate.issuer.public_bytes() != name:
            return None
        (crl,) = mine
        if not crl.counts(at, grace) or crl.may_list(certificate) or not crl.is_by(ca):
            return None
        ends.append(crl.next_update + grace)
    return ends


def _are_plain(extensions: der.Element) -> bool:
    """Only those that change nothing about which certificates the CRL is for, and none of them critical."""
    for one in extensions.children(der.SEQUENCE, "extensions"):
        fields = one.children(der.SEQUENCE, "extension")
        if der.oid(fields.take_any("extension"), "extension") not in _PLAIN_EXTENSIONS:
            return False
        if fields.take_if(der.OCTET_STRING) is None or len(fields):
            return False
    return True


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
