"""Whatever the bytes and however they are cut: what comes out is what went in, and its digest is its name."""

from __future__ import annotations

import hashlib
import json
import tempfile
from itertools import pairwise
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from lrms_vm.hashing import hash_fd
from lrms_vm.ingest import receive
from lrms_vm.store import read_meta

# Images are runs of zeros and of something else, with ends near the sizes at which we cut.
RUNS = st.lists(
    st.tuples(st.sampled_from([0, 1]), st.sampled_from([1, 511, 4096, 65_535, 65_536, 65_537, 1 << 20, (1 << 20) + 1])),
    min_size=1,
    max_size=6,
)
CUTS = st.lists(st.integers(1, 3 << 20), max_size=8)


@settings(max_examples=60, deadline=None)
@given(RUNS, CUTS)
def test_bytes_survive_the_way_into_the_store(runs: list[tuple[int, int]], cuts: list[int]) -> None:
    image = b"".join(bytes([kind]) * count for kind, count in runs)
    edges = sorted({0, len(image), *(cut for cut in cuts if cut < len(image))})
    blocks = [image[a:b] for a, b in pairwise(edges)]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "image"
        received = receive(
            iter(blocks),
            path,
            algorithms={"sha256", "sha512"},
            max_bytes=len(image),
            source="test",
            progress=None,
        )
        assert path.read_bytes() == image
        assert received.digests == {name: hashlib.new(name, image).digest() for name in ("sha256", "sha512")}
        assert received.size_bytes == len(image)
        with path.open("rb") as file:
            assert hash_fd(file.fileno(), len(image), {"sha1"}) == {"sha1": hashlib.sha1(image).digest()}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.sampled_from(["version", "stamp", "digests", "stored_at", "source", "sha256"]), inner, max_size=6
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300) | JSON)
def test_any_meta_is_read_or_not_believed(words: object) -> None:
    with tempfile.TemporaryDirectory() as directory:
        text = words if isinstance(words, bytes) else json.dumps(words).encode()
        (Path(directory) / "meta.json").write_bytes(text)
        meta = read_meta(Path(directory))
        assert meta is None or "sha256" in meta.digests
