"""Whatever the layout of a file: its tree is that of its bytes, read by however many threads, holes or not."""

from __future__ import annotations

import hashlib
import os
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrms_vm import hashing
from lrms_vm.fetch import ZERO_BLOCK
from lrms_vm.hashing import Digests, Leaves, bad_chunks, blocks_of, hash_fd, tree_of_fd
from lrms_vm.trust import tree

CHUNK = 64 << 10
# Runs of data, of zeros that are written, and of holes, with ends near the sizes at which we cut.
RUNS = st.lists(
    st.tuples(
        st.sampled_from(["data", "zeros", "hole"]),
        st.sampled_from([1, 4095, 4096, CHUNK - 1, CHUNK, CHUNK + 1, 4 * CHUNK, hashing.BUFFER_BYTES + 1]),
    ),
    min_size=1,
    max_size=6,
)


def written(path: Path, runs: list[tuple[str, int]]) -> bytes:
    with path.open("wb") as file:
        for kind, count in runs:
            if kind == "hole":
                file.seek(count, os.SEEK_CUR)
            else:
                file.write(os.urandom(count) if kind == "data" else bytes(count))
        file.truncate()
    return path.read_bytes()


def naive(image: bytes, chunk_bytes: int) -> tuple[bytes, ...]:
    starts = range(0, len(image), chunk_bytes)
    return tuple(hashlib.sha256(b"\0" + image[at : at + chunk_bytes]).digest() for at in starts)


@settings(max_examples=60, deadline=None)
@given(RUNS, st.sampled_from([CHUNK, 4 * CHUNK]), st.integers(1, 5), st.booleans())
def test_the_tree_of_a_file_is_that_of_its_bytes(
    runs: list[tuple[str, int]], chunk_bytes: int, threads: int, told: bool
) -> None:
    seen: list[int] = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "image"
        image = written(path, runs)
        with path.open("rb") as file:
            found = tree_of_fd(
                file.fileno(), len(image), chunk_bytes, threads=threads, progress=seen.append if told else None
            )
            assert found == Leaves(chunk_bytes, naive(image, chunk_bytes))
            assert found.root == tree.root_of(found.leaves)
            assert b"".join(blocks_of(file.fileno(), len(image))) == image
            assert b"".join(blocks_of(file.fileno(), len(image), start=len(image) // 2)) == image[len(image) // 2 :]
            assert bad_chunks(file.fileno(), len(image), found) == []
    assert seen == sorted(seen) and (not told or seen[-1] == len(image))


@settings(max_examples=60, deadline=None)
@given(RUNS, st.lists(st.integers(1, 1 << 20), max_size=8))
def test_the_tree_of_a_stream_is_that_of_its_bytes(runs: list[tuple[str, int]], cuts: list[int]) -> None:
    image = b"".join(os.urandom(count) if kind == "data" else bytes(count) for kind, count in runs)
    edges = sorted({0, len(image), *(cut for cut in cuts if cut < len(image))})
    with Digests({"sha256"}, chunk_bytes=CHUNK) as digests:
        for a, b in pairwise(edges):
            digests.update(image[a:b])
        assert digests.result() == {"sha256": hashlib.sha256(image).digest()}
        assert digests.leaves() == Leaves(CHUNK, naive(image, CHUNK))


@pytest.mark.parametrize("head", [b"", b"boot", bytes(CHUNK), bytes(CHUNK - 1) + b"x"])
@pytest.mark.parametrize("tail", [b"", b"end"])
def test_holes_of_a_stream_are_hashed_as_zeros(head: bytes, tail: bytes) -> None:
    with Digests((), chunk_bytes=CHUNK) as digests:
        for block in (head, ZERO_BLOCK, ZERO_BLOCK, tail):
            digests.update(block)
        assert digests.leaves() == Leaves(CHUNK, naive(head + 2 * ZERO_BLOCK + tail, CHUNK))


def test_a_stream_of_nothing_has_no_tree() -> None:
    with Digests((), chunk_bytes=CHUNK) as digests:
        assert digests.leaves() is None


def test_bad_chunks_are_named(tmp_path: Path) -> None:
    path = tmp_path / "image"
    image = written(path, [("data", 3 * CHUNK), ("hole", 3 * CHUNK), ("data", 5)])
    leaves = Leaves(CHUNK, naive(image, CHUNK))
    with path.open("r+b") as file:
        for at in (CHUNK, 4 * CHUNK + 17, len(image) - 1):
            byte = image[at] ^ 1
            os.pwrite(file.fileno(), bytes([byte]), at)
        assert bad_chunks(file.fileno(), len(image), leaves) == [1, 4, 6]
        with pytest.raises(ValueError, match="7 leaves"):
            bad_chunks(file.fileno(), len(image) + CHUNK, leaves)


def test_a_file_that_was_cut_short_has_another_tree(tmp_path: Path) -> None:
    path = tmp_path / "image"
    image = written(path, [("data", 2 * CHUNK)])
    with path.open("r+b") as file:
        before = tree_of_fd(file.fileno(), len(image), CHUNK)
        os.truncate(path, CHUNK + 5)
        assert bad_chunks(file.fileno(), len(image), before) == [1]
        assert hash_fd(file.fileno(), len(image), {"sha256"})["sha256"] != hashlib.sha256(image).digest()


def test_holes_are_read_where_another_machine_may_fill_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    image = written(path, [("hole", 4 * CHUNK), ("data", 1)])
    with path.open("rb") as file:
        assert hashing.holes_are_zeros(file.fileno())
        assert hashing._data_chunks(file.fileno(), len(image), CHUNK) == [4]
        monkeypatch.setattr(hashing, "HOLES_ARE_ZEROS", frozenset({"nfs4"}))  # the disk of this test is none of them
        assert not hashing.holes_are_zeros(file.fileno())
        assert hashing._data_chunks(file.fileno(), len(image), CHUNK) == [0, 1, 2, 3, 4]
        assert tree_of_fd(file.fileno(), len(image), CHUNK).leaves == naive(image, CHUNK)
        assert all(block is not ZERO_BLOCK for block in blocks_of(file.fileno(), len(image)))


def test_a_file_system_that_is_not_known_tells_nothing_of_holes() -> None:
    with open("/proc/self/status", "rb") as file:
        assert not hashing.holes_are_zeros(file.fileno())
    assert not hashing.holes_are_zeros(1 << 20)
