"""The chunk tree of an image: SHA-256 over chunks of one size, so that all cores hash and each chunk proves itself.

Leaves and nodes as in RFC 6962 section 2.1: SHA-256(0x00 || chunk) and SHA-256(0x01 || left || right), an odd node
goes up as it is. No leaf can be taken for a node. The root alone does not say how many bytes there are: it counts only
together with the size that was signed beside it, which fixes its shape; `bound` is the two of them in one digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

from lrms_vm.values import dataclass

CHUNK_BYTES = 2 << 20  # where nobody says otherwise: a proxy that keeps 4 MB objects keeps these
LEAF_BYTES = 32


@dataclass(frozen=True)
class Tree:
    """`root` is the bare Merkle root over chunks of `chunk_bytes`; the leaves are a file of 32 bytes for each."""

    chunk_bytes: int
    root: bytes
    leaves_url: str | None
    leaves_size_bytes: int | None
    leaves_sha256: bytes | None


def leaf(chunk: bytes | memoryview) -> bytes:
    """Of one chunk; the last one may be shorter."""
    digest = hashlib.sha256(b"\0")
    digest.update(chunk)
    return digest.digest()


@lru_cache(maxsize=8)
def zero_leaf(chunk_bytes: int) -> bytes:
    """Of a whole chunk of zeros: most of a sparse disk, and hashed once."""
    return leaf(bytes(chunk_bytes))


def chunk_count(size_bytes: int, chunk_bytes: int) -> int:
    return -(-size_bytes // chunk_bytes)


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Of at least one leaf.

    >>> root_of([b"only"])
    b'only'
    """
    level = list(leaves)
    if not level:
        raise ValueError("a tree of no chunks")
    while len(level) > 1:
        pairs = [hashlib.sha256(b"\1" + level[at] + level[at + 1]).digest() for at in range(0, len(level) - 1, 2)]
        level = pairs + level[2 * len(pairs) :]
    return level[0]


def bound(size_bytes: int, chunk_bytes: int, root: bytes) -> bytes:
    """SHA-256(0x02 || size, 8 octets || chunk size, 4 octets || root), big-endian: names the bytes as a digest does."""
    return hashlib.sha256(b"\2" + size_bytes.to_bytes(8, "big") + chunk_bytes.to_bytes(4, "big") + root).digest()


def split_leaves(text: bytes, tree: Tree, size_bytes: int) -> tuple[bytes, ...] | None:
    """The leaves in a file of them; None unless they are as many as `size_bytes` needs, and those of `tree`."""
    if len(text) != LEAF_BYTES * chunk_count(size_bytes, tree.chunk_bytes) or not text:
        return None
    leaves = tuple(text[at : at + LEAF_BYTES] for at in range(0, len(text), LEAF_BYTES))
    return leaves if root_of(leaves) == tree.root else None
