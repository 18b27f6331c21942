"""Signatures with something changed: bits, lengths, whole elements; some signed again, as only their signer could."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding

from lrms_vm.trust import der

# An element as a list, to be changed in place: [tag, bytes or list of such elements].
Node = list[Any]


def taken_apart(data: bytes) -> Node:
    return _node(der.read(data))


def _node(element: der.Element) -> Node:
    if element.tag & 0x20:
        return [element.tag, [_node(one) for one in element.children(element.tag, "node")]]
    return [element.tag, element.content]


def joined(node: Node, length: Callable[[int], bytes] | None = None) -> bytes:
    """DER again; `length` writes lengths in another way."""
    tag, content = node
    inside = content if isinstance(content, bytes) else b"".join(joined(one, length) for one in content)
    return bytes([tag]) + (length or shortest)(len(inside)) + inside


def shortest(size: int) -> bytes:
    if size < 0x80:
        return bytes([size])
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(octets)]) + octets


def nodes(top: Node) -> Iterator[tuple[list[Node], int]]:
    """Every element below, as (the list it is in, its place)."""
    if isinstance(top[1], bytes):
        return
    for place, one in enumerate(top[1]):
        yield top[1], place
        yield from nodes(one)


def copied(node: Node) -> Node:
    return [node[0], node[1] if isinstance(node[1], bytes) else [copied(one) for one in node[1]]]


def signer_info(top: Node) -> Node:
    """The last element of SignedData is the set of them; there is one."""
    info: Node = top[1][1][1][0][1][-1][1][0]
    return info


def signed_again(top: Node, key: Any) -> Node:
    """With a signature that is right for what the attributes are now."""
    info = signer_info(top)
    fields = info[1]
    attributes = next(one for one in fields if one[0] == 0xA0)
    signed = b"\x31" + joined(attributes)[1:]
    digests = {0x01: hashes.SHA256(), 0x02: hashes.SHA384(), 0x03: hashes.SHA512()}
    digest = digests[fields[2][1][0][1][-1]]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        value = key.sign(signed)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        value = key.sign(signed, ec.ECDSA(digest))
    else:
        value = key.sign(signed, padding.PKCS1v15(), digest)
    next(one for one in fields if one[0] == 0x04)[1] = value
    return top


def mutants(original: bytes, chance: random.Random, key: Any) -> Iterator[tuple[str, bytes]]:
    """(how, bytes) without end, the same for the same state of `chance`."""
    ways = (_bits, _lengths, _cut, _spliced, _spliced, _changed, _resigned, _resigned)
    while True:
        way = chance.choice(ways)
        try:
            mutant = way(original, chance, key)
        except (LookupError, StopIteration, TypeError, KeyError, der.DerError):
            continue  # nothing left that could be signed
        if mutant != original:
            yield way.__name__.strip("_"), mutant


def _bits(original: bytes, chance: random.Random, key: Any) -> bytes:
    data = bytearray(original)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        bit = chance.randrange(len(data) * 8)
        data[bit // 8] ^= 1 << bit % 8
    return bytes(data)


def _cut(original: bytes, chance: random.Random, key: Any) -> bytes:
    at, size = chance.randrange(len(original)), chance.choice((1, 2, 8, 100))
    return chance.choice(
        (
            original[:at],
            original[:at] + original[at + size :],
            original[:at] + chance.randbytes(size) + original[at:],
            original[:at] + original[at : at + size] + original[at:],
            original + chance.choice((b"\0", b"\0\0", original, b"0\0", chance.randbytes(size))),
        )
    )


def _lengths(original: bytes, chance: random.Random, key: Any) -> bytes:
    """One length that is longer than it must be, wrong by a little, or indefinite."""
    top = taken_apart(original)
    target, kind = chance.randrange(1 + sum(1 for _ in nodes(top))), chance.choice(("long", "wrong", "indefinite"))
    count = 0

    def encode(node: Node) -> bytes:
        nonlocal count
        count, mine = count + 1, count == target
        tag, content = node
        inside = content if isinstance(content, bytes) else b"".join(encode(one) for one in content)
        if mine and kind == "long":
            size = len(inside).to_bytes(4, "big")
            octets = chance.choice((size, b"\0" + size, size.lstrip(b"\0") or b"\0"))
            return bytes([tag, 0x80 | len(octets)]) + octets + inside
        if mine and kind == "wrong":
            return bytes([tag]) + shortest(max(len(inside) + chance.choice((-2, -1, 1, 2, 128)), 0)) + inside
        if mine and tag & 0x20:
            return bytes([tag, 0x80]) + inside + b"\0\0"
        return bytes([tag]) + shortest(len(inside)) + inside

    return encode(top)


def _spliced(original: bytes, chance: random.Random, key: Any) -> bytes:
    return joined(_splice(taken_apart(original), chance))


def _splice(top: Node, chance: random.Random) -> Node:
    """One element gone, twice, elsewhere, or in another's place; two siblings swapped."""
    places = list(nodes(top))
    home, place = chance.choice(places)
    there, other = chance.choice(places)
    way = chance.randrange(5)
    if way == 0:
        del home[place]
    elif way == 1:
        home.insert(place, copied(home[place]))
    elif way == 2:
        home.insert(place, copied(there[other]))
    elif way == 3:
        home[place] = copied(there[other])
    else:
        second = chance.randrange(len(home))
        home[place], home[second] = home[second], home[place]
    return top


def _changed(original: bytes, chance: random.Random, key: Any) -> bytes:
    return joined(_change(taken_apart(original), chance))


def _change(top: Node, chance: random.Random) -> Node:
    """One element's tag or content."""
    home, place = chance.choice(list(nodes(top)))
    node = home[place]
    if chance.random() < 0.3:
        node[0] = chance.choice((node[0] ^ 0x20, node[0] ^ 0x80, 0x04, 0x05, 0x0C, 0x13, 0x17, 0x18, 0x30, 0x31, 0xA0))
    elif isinstance(node[1], bytes):
        data = bytearray(node[1] or b"\0")
        data[chance.randrange(len(data))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        node[1] = chance.choice((bytes(data), b"\0" + node[1], node[1] + b"\0", node[1][1:], b""))
    else:
        node[1] = chance.choice((node[1][::-1], [], [[0x30, node[1]]], node[1] * 2))
    return top


def _resigned(original: bytes, chance: random.Random, key: Any) -> bytes:
    """Something in the SignerInfo that the signer himself may have signed so."""
    top = taken_apart(original)
    attributes = next(one for one in signer_info(top)[1] if one[0] == 0xA0)
    part = chance.choice((attributes, attributes, attributes, signer_info(top)))
    for _ in range(chance.choice((1, 1, 2))):
        chance.choice((_splice, _change))(part, chance)
    if chance.random() < 0.7:
        attributes[1].sort(key=lambda one: joined(one).ljust(4096, b"\0"))
    return joined(signed_again(top, key))
