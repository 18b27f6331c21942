"""A strict reader of DER (X.690 section 10): what it accepts has exactly one encoding, and is bounded.

Indefinite and non-minimal lengths, high tag numbers, nesting beyond need and trailing bytes are refused, so that
two readers can never see two different things in one signature.
"""

from __future__ import annotations

from collections.abc import Iterator

from lrms_vm.values import dataclass

INTEGER, BIT_STRING, OCTET_STRING, NULL, OID = 0x02, 0x03, 0x04, 0x05, 0x06
UTC_TIME, GENERALIZED_TIME, SEQUENCE, SET = 0x17, 0x18, 0x30, 0x31
MAX_CHILDREN = 256


class DerError(ValueError):
    """Not DER, or not the structure that was expected. Translated by the callers; leaves this package never."""


@dataclass(frozen=True)
class Element:
    """One TLV: `raw` is the whole of it, `content` what is inside."""

    tag: int
    content: bytes
    raw: bytes

    def expect(self, tag: int, what: str) -> Element:
        if self.tag != tag:
            raise DerError(f"{what}: tag {self.tag:#04x}, expected {tag:#04x}")
        return self

    def children(self, tag: int, what: str) -> Fields:
        """The elements inside, to be taken one after the other."""
        self.expect(tag, what)
        return Fields(tuple(_elements(self.content)), what)


class Fields:
    """The fields of a SEQUENCE or SET in order; whoever reads them says when there must be no more."""

    def __init__(self, elements: tuple[Element, ...], what: str) -> None:
        self._rest = list(elements)
        self._what = what

    def take(self, tag: int, what: str) -> Element:
        if not self._rest:
            raise DerError(f"{self._what}: {what} is missing")
        return self._rest.pop(0).expect(tag, what)

    def take_any(self, what: str) -> Element:
        if not self._rest:
            raise DerError(f"{self._what}: {what} is missing")
        return self._rest.pop(0)

    def take_if(self, tag: int) -> Element | None:
        return self._rest.pop(0) if self._rest and self._rest[0].tag == tag else None

    def end(self) -> None:
        if self._rest:
            raise DerError(f"{self._what}: {len(self._rest)} more fields than expected")

    def __iter__(self) -> Iterator[Element]:
        return iter(self._rest)

    def __len__(self) -> int:
        return len(self._rest)


def read(data: bytes) -> Element:
    """Exactly one element, and nothing after it. Raises `DerError`."""
    element, end = _element(data, 0)
    if end != len(data):
        raise DerError(f"{len(data) - end} bytes after the end")
    return element


def integer(element: Element, what: str) -> int:
    """A minimal two's complement INTEGER."""
    content = element.expect(INTEGER, what).content
    if not content or (len(content) > 1 and content[0] in (0, 0xFF) and (content[0] ^ content[1]) & 0x80 == 0):
        raise DerError(f"{what}: not a minimal INTEGER")
    return int.from_bytes(content, "big", signed=True)


def oid(element: Element, what: str) -> str:
    """An OBJECT IDENTIFIER as dotted numbers."""
    content = element.expect(OID, what).content
    if not content or len(content) > 64 or content[-1] & 0x80:
        raise DerError(f"{what}: not an OBJECT IDENTIFIER")
    arcs: list[int] = []
    value, start = 0, True
    for byte in content:
        if start and byte == 0x80:
            raise DerError(f"{what}: not a minimal OBJECT IDENTIFIER")
        value, start = value << 7 | byte & 0x7F, not byte & 0x80
        if start:
            arcs.append(value)
            value = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))


def require_sorted(elements: Fields, what: str) -> None:
    """The order DER demands of a SET OF (X.690 section 11.6). Raises `DerError`."""
    encodings = [element.raw for element in elements]
    longest = max(map(len, encodings), default=0)
    padded = [encoding.ljust(longest, b"\0") for encoding in encodings]
    if padded != sorted(padded):
        raise DerError(f"{what}: not in DER order")


def _elements(content: bytes) -> Iterator[Element]:
    at = count = 0
    while at < len(content):
        if (count := count + 1) > MAX_CHILDREN:
            raise DerError(f"more than {MAX_CHILDREN} fields")
        element, at = _element(content, at)
        yield element


def _element(data: bytes, at: int) -> tuple[Element, int]:
    start = at
    if len(data) - at < 2:
        raise DerError("cut short")
    tag, length = data[at], data[at + 1]
    at += 2
    if tag & 0x1F == 0x1F:
        raise DerError("a high tag number")
    if length & 0x80:
        octets = length & 0x7F
        if octets == 0:
            raise DerError("an indefinite length: BER, not DER")
        if octets > 4 or len(data) - at < octets:
            raise DerError("a length that is cut short or too long")
        length = int.from_bytes(data[at : at + octets], "big")
        if length < 0x80 or length >> 8 * (octets - 1) == 0:
            raise DerError("a length that is not minimal")
        at += octets
    if len(data) - at < length:
        raise DerError("cut short")
    end = at + length
    return Element(tag, data[at:end], data[start:end]), end
