"""Distinguished names, compared as RDN sequences and never as text.

As text, an O of "People/CN=Alice" reads like Alice's own name in the `/O=../CN=..` form that grid software has
used since Globus. As a sequence of sets of (type, value) it cannot (RFC 5280 section 7.1, RFC 4514).
"""

from __future__ import annotations

import re

from cryptography import x509
from cryptography.x509.name import _ASN1Type as Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier

# Hashable; equal only for equal names: order of RDNs, types and every character of every value count.
Dn = tuple[frozenset[tuple[str, str]], ...]

# Encodings whose text is beyond doubt. T61 and BMP twins of a name must not equal it.
_PLAIN = (Encoding.UTF8String, Encoding.PrintableString, Encoding.IA5String)
_EMAIL: dict[ObjectIdentifier, str] = {NameOID.EMAIL_ADDRESS: "emailAddress"}
_FROM_RFC4514 = {"emailAddress": NameOID.EMAIL_ADDRESS, "E": NameOID.EMAIL_ADDRESS}
# Short names in the slash form of namespaces and signing policies;.
_SLASH = {
    NameOID.COUNTRY_NAME: "C",
    NameOID.STATE_OR_PROVINCE_NAME: "ST",
    NameOID.LOCALITY_NAME: "L",
    NameOID.ORGANIZATION_NAME: "O",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "OU",
    NameOID.COMMON_NAME: "CN",
    NameOID.DOMAIN_COMPONENT: "DC",
    NameOID.USER_ID: "UID",
    NameOID.EMAIL_ADDRESS: "emailAddress",
    NameOID.SERIAL_NUMBER: "serialNumber",
    NameOID.STREET_ADDRESS: "street",
    NameOID.TITLE: "title",
    NameOID.GIVEN_NAME: "GN",
    NameOID.SURNAME: "SN",
}
_LOOKS_LIKE_RDN = re.compile(r"/[A-Za-z0-9.]+=")


def of(name: x509.Name) -> Dn:
    """The comparable form of a certificate's name."""
    return tuple(frozenset(_pair(attribute) for attribute in rdn) for rdn in name.rdns)


def parse(text: str) -> Dn:
    """Read an RFC 4514 name ("CN=Alice,O=People,DC=example"). Raises `ValueError` with a sentence."""
    if text.startswith("/"):
        raise ValueError(f"{text!r:.80} is in the slash form, which is ambiguous; write it as CN=...,O=...,DC=...")
    try:
        name = x509.Name.from_rfc4514_string(text, attr_name_overrides=_FROM_RFC4514)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{text!r:.80} is not a name in RFC 4514 form: {error}") from error
    if not name.rdns:
        raise ValueError("an empty name names nobody")
    return of(name)


def show(name: x509.Name) -> str:
    """RFC 4514 text on one line, for people; never compared."""
    text = name.rfc4514_string(attr_name_overrides=_EMAIL)
    if text.isprintable():
        return text[:500]
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)[:500]


class Shown:
    """`show`, put off until a message is made: most checks pass."""

    def __init__(self, name: x509.Name) -> None:
        self._name = name

    def __str__(self) -> str:
        return show(self._name)


def is_safe(name: x509.Name) -> bool:
    """False for a name that could be shown as another one: empty, control characters, direction marks."""
    return bool(name.rdns) and all(
        isinstance(attribute.value, str) and attribute.value != "" and attribute.value.isprintable()
        for attribute in name
    )


def loose(name: x509.Name) -> tuple[tuple[str, str], ...]:
    """Equal for names that path validation may take as equal (RFC 5280 7.1): only to pick candidates for it."""
    return tuple(
        (attribute.oid.dotted_string, " ".join(_text(attribute).split()).casefold())
        for rdn in name.rdns
        for attribute in sorted(rdn, key=lambda one: one.oid.dotted_string)
    )


def slash(name: x509.Name) -> str | None:
    """The form namespaces and signing policies are written in; None where it could be read as another name."""
    parts = []
    for rdn in name.rdns:
        if len(list(rdn)) != 1:
            return None
        (attribute,) = rdn
        value = _text(attribute)
        short = _SLASH.get(attribute.oid)
        if short is None or _LOOKS_LIKE_RDN.search(value) or _pair(attribute)[1] != value:
            return None
        parts.append(f"/{short}={value}")
    return "".join(parts)


def _text(attribute: x509.NameAttribute[str | bytes]) -> str:
    return attribute.value if isinstance(attribute.value, str) else attribute.value.hex()


def _pair(attribute: x509.NameAttribute[str | bytes]) -> tuple[str, str]:
    value = _text(attribute)
    if attribute._type not in _PLAIN:
        value = f"\0{attribute._type.name}\0{value}"  # no policy text can say this, so it matches no rule
    return attribute.oid.dotted_string, value
