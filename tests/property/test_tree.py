"""The chunk tree against RFC 6962's own, recursive, definition."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrms_vm.trust import tree
from lrms_vm.trust.tree import Tree

LEAVES = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=70)


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def recursive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1: split at the largest power of two that is less than the number of leaves."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return sha256(b"\1", recursive_root(leaves[:split]), recursive_root(leaves[split:]))


@given(LEAVES)
def test_the_root_is_that_of_the_rfc(leaves: list[bytes]) -> None:
    assert tree.root_of(leaves) == recursive_root(leaves)


@given(LEAVES, st.data())
def test_any_other_leaf_is_another_root(leaves: list[bytes], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(leaves) - 1))
    other = [*leaves[:at], sha256(leaves[at]), *leaves[at + 1 :]]
    assert tree.root_of(other) != tree.root_of(leaves)
    assert tree.root_of([*leaves, leaves[-1]]) != tree.root_of(leaves), "an odd leaf is not doubled (CVE-2012-2459)"
    if len(leaves) > 1:
        assert tree.root_of(leaves[:-1]) != tree.root_of(leaves)
        if leaves[0] != leaves[1]:
            assert tree.root_of([leaves[1], leaves[0], *leaves[2:]]) != tree.root_of(leaves)


@given(st.binary(max_size=200))
def test_a_leaf_is_never_a_node(chunk: bytes) -> None:
    assert tree.leaf(chunk) == tree.leaf(memoryview(chunk)) == sha256(b"\0", chunk)
    assert tree.leaf(chunk) not in (sha256(chunk), sha256(b"\1", chunk), sha256(b"\2", chunk))


def test_a_chunk_of_zeros_is_hashed_as_what_it_is() -> None:
    assert tree.zero_leaf(4096) == tree.leaf(bytes(4096)) != tree.zero_leaf(8192)


def test_the_bound_root_is_as_it_is_written_down() -> None:
    root = sha256(b"root")
    expected = sha256(b"\2", bytes([0, 0, 0, 5, 0, 0, 0, 0]), bytes([0, 0x20, 0, 0]), root)
    assert tree.bound(5 << 32, 2 << 20, root) == expected
    assert tree.bound((5 << 32) + 1, 2 << 20, root) != expected != tree.bound(5 << 32, 1 << 20, root)


def test_a_tree_of_nothing_is_none() -> None:
    with pytest.raises(ValueError, match="no chunks"):
        tree.root_of([])


@given(LEAVES, st.integers(0, 4095))
def test_leaves_are_taken_only_as_they_were_signed(leaves: list[bytes], short_bytes: int) -> None:
    signed = Tree(4096, tree.root_of(leaves), None, None, None)
    text, size_bytes = b"".join(leaves), 4096 * len(leaves) - short_bytes
    assert tree.split_leaves(text, signed, size_bytes) == tuple(leaves)
    for wrong in (text[:-1], text[:-32], text + text[-32:], text[1:] + text[:1], b""):
        assert tree.split_leaves(wrong, signed, size_bytes) is None or wrong == text
    assert tree.split_leaves(text, signed, size_bytes + 4096) is None
