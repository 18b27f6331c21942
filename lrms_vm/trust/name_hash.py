"""How the files of a CA are called in a hash directory: X509_NAME_hash(3), from OpenSSL 1.0 on. Pure.

The first four bytes of the SHA-1 of the name in OpenSSL's own canonical form (x509_name_canon in x_name.c): texts as
UTF8String, ASCII letters small, blanks stripped and runs of them made one; the SETs without the SEQUENCE around them.
A name for a file, and proof of nothing.
"""

from __future__ import annotations

import hashlib

from cryptography.x509 import Name
from cryptography.x509.name import _ASN1Type as Encoding
from cryptography.x509.oid import ObjectIdentifier

_BLANKS = " \t\n\v\f\r"
# ASN1_MASK_CANON in the same place
_AS_TEXT = {
    Encoding.UTF8String,
    Encoding.BMPString,
    Encoding.UniversalString,
    Encoding.PrintableString,
    Encoding.T61String,
    Encoding.IA5String,
    Encoding.VisibleString,
}
_ASCII_LETTERS = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def name_hash(name: Name) -> str:
    """Eight hexadecimal digits: "4705880b"."""
    sets = []
    for rdn in name.rdns:
        attributes = sorted(_tlv(0x30, _oid(one.oid) + _value(one.value, one._type)) for one in rdn)
        sets.append(_tlv(0x31, b"".join(attributes)))
    digest = hashlib.sha1(b"".join(sets), usedforsecurity=False).digest()
    return f"{int.from_bytes(digest[:4], 'little'):08x}"


def _value(value: str | bytes, encoding: Encoding) -> bytes:
    if isinstance(value, bytes):
        return _tlv(encoding.value, value)
    if encoding not in _AS_TEXT:
        return _tlv(encoding.value, value.encode())
    for blank in _BLANKS[1:]:
        value = value.replace(blank, " ")
    words = " ".join(word for word in value.split(" ") if word)
    return _tlv(Encoding.UTF8String.value, words.translate(_ASCII_LETTERS).encode(errors="surrogatepass"))


def _oid(oid: ObjectIdentifier) -> bytes:
    first, second, *rest = map(int, oid.dotted_string.split("."))
    content = b""
    for arc in (first * 40 + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(arc & 0x7F | 0x80)
        content += bytes(reversed(groups))
    return _tlv(0x06, content)


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content
