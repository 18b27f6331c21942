"""The chunk tree of an image: what a signed list says of it (`lv:tree`)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tree:
    """`root` is the bare Merkle root over chunks of `chunk_bytes`; the leaves are a file of 32 bytes for each."""

    chunk_bytes: int
    root: bytes
    leaves_url: str | None
    leaves_size_bytes: int | None
    leaves_sha256: bytes | None


def leaf(chunk: bytes) -> bytes:
    """Of one chunk; the last one may be shorter (RFC 6962 section 2.1)."""
    return hashlib.sha256(b"\0" + chunk).digest()


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Of at least one leaf; the odd one out goes up as it is."""
    level = list(leaves)
    while len(level) > 1:
        pairs = [hashlib.sha256(b"\1" + level[at] + level[at + 1]).digest() for at in range(0, len(level) - 1, 2)]
        level = pairs + level[2 * len(pairs) :]
    return level[0]
