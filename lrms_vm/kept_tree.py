"""The chunk tree that lies beside a stored image: store/sha256/ab/<hex>/tree.

    lrms_vm-tree 1 <sha256 of the image> <its bytes> <bytes of a chunk> <root, hex>
    leaves, 32 bytes each

Written when the bytes came in, from the same pass that gave them their name, so that they can be read again on all
cores, and a bad chunk be named. The sha256 is what an image is believed by: a tree that does not fit its root, the
size or the name counts for nothing, and then all of the image is hashed.
"""

from __future__ import annotations

import os
from pathlib import Path

from lrms_vm.hashing import Leaves, bad_chunks
from lrms_vm.store import write_durably
from lrms_vm.trust import tree
from lrms_vm.trust.tree import Tree

NAME = "tree"
MAGIC = b"lrms_vm-tree 1"
MAX_BYTES = 64 << 20  # of 4 TiB, in chunks of 2 MiB
_MAX_HEAD_BYTES = 256


def keep(directory: Path, sha256: str, size_bytes: int, leaves: Leaves) -> None:
    """Atomically and durably, 0644. Raises `OSError`."""
    head = f"{sha256} {size_bytes} {leaves.chunk_bytes} {leaves.root.hex()}\n"
    write_durably(directory / NAME, MAGIC + b" " + head.encode() + b"".join(leaves.leaves), 0o644)


def kept(directory: Path, sha256: str, size_bytes: int) -> Leaves | None:
    """None when there is none, or none of exactly this image."""
    try:
        fd = os.open(directory / NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            head, found, text = file.read(MAX_BYTES).partition(b"\n")
    except OSError:
        return None
    if not found or len(head) > _MAX_HEAD_BYTES or not head.startswith(MAGIC + b" "):
        return None
    words = head.removeprefix(MAGIC).decode("ascii", "replace").split()
    try:
        name, size, chunk_bytes, root = words[0], int(words[1]), int(words[2]), bytes.fromhex(words[3])
    except (ValueError, IndexError):
        return None
    if (name, size) != (sha256, size_bytes) or chunk_bytes < 1 or size_bytes < 1:
        return None
    leaves = tree.split_leaves(text, Tree(chunk_bytes, root, None, None, None), size_bytes)
    return Leaves(chunk_bytes, leaves) if leaves is not None else None


def check(fd: int, directory: Path, sha256: str, size_bytes: int) -> list[str] | None:
    """Read an open stored image on all cores; say which of its bytes are not what came in: [] when all are.

    None where there is no tree to go by: hash all of it then. Raises `OSError`.
    """
    leaves = kept(directory, sha256, size_bytes)
    if leaves is None:
        return None
    chunk = leaves.chunk_bytes
    return [
        f"bytes {number * chunk} to {min((number + 1) * chunk, size_bytes) - 1}"
        for number in bad_chunks(fd, size_bytes, leaves)
    ]
