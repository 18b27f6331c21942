"""The chunk tree of an image: what a signed list says of it (`lv:tree`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tree:
    """`root` is the bare Merkle root over chunks of `chunk_bytes`; the leaves are a file of 32 bytes for each."""

    chunk_bytes: int
    root: bytes
    leaves_url: str | None
    leaves_size_bytes: int | None
    leaves_sha256: bytes | None
