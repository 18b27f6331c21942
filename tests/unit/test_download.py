"""Mirrors that lie, stall, stop, or say no: which is asked, what is kept, what a failure is called."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrms_vm import download
from lrms_vm.download import Order
from lrms_vm.errors import LrmsVmError, RequestError, SiteError
from lrms_vm.fetch import Fetch, Part
from lrms_vm.hashing import Leaves
from lrms_vm.ingest import Received
from lrms_vm.trust import tree
from lrms_vm.trust.tree import Tree

CHUNK = 1 << 16
DATA = os.urandom(4 * CHUNK)
IMAGE = DATA[: 2 * CHUNK] + bytes(2 * CHUNK) + DATA[2 * CHUNK :] + b"end"
LEAVES = [tree.leaf(IMAGE[at : at + CHUNK]) for at in range(0, len(IMAGE), CHUNK)]
LEAVES_URL = "http://lists/a.leaves"
TREE = Tree(CHUNK, tree.root_of(LEAVES), LEAVES_URL, 32 * len(LEAVES), hashlib.sha256(b"".join(LEAVES)).digest())
DOWN = SiteError("down", code="image-server-down")
GONE = RequestError("404", code="image-missing")
Spoil = Callable[[bytes, int], Iterator[bytes]]


@dataclass
class Mirrors:
    """Each URL is bytes, an error, or bytes with the error that comes after so many of them (the asked-for ones)."""

    served: dict[str, Any]
    can_ranges: bool = True
    log: list[tuple[str, Part | None]] = field(default_factory=list)

    def fetch(self, url: str, *, max_bytes: int, deadline: float, part: Part | None = None) -> Iterator[bytes]:
        self.log.append((url, part))
        found, error, after = self.served.get(url, GONE), None, 1 << 60
        if isinstance(found, tuple):
            found, after, error = found
        if isinstance(found, LrmsVmError):
            raise found
        if part is not None and len(found) != part.size_bytes:
            raise RequestError("size", code="bytes-differ")
        if part is not None and not self.can_ranges and part.ranges != ((0, part.size_bytes),):
            raise SiteError("200", code="image-no-ranges")
        body = found if part is None else b"".join(found[a:b] for a, b in part.ranges)
        if len(body) > max_bytes:
            raise RequestError("large", code="image-too-large")
        for at in range(0, min(len(body), after), 10_007):
            yield body[at : min(at + 10_007, after)]
        if error is not None:
            raise error

    @property
    def asked(self) -> list[str]:
        return [url.removeprefix("http://") for url, _ in self.log if not url.endswith(".leaves")]

    @property
    def asked_bytes(self) -> int:
        return sum(part.wanted_bytes for _, part in self.log if part is not None)


def flipped(image: bytes = IMAGE, at: int = 0) -> bytes:
    return image[:at] + bytes([image[at] ^ 1]) + image[at + 1 :]


def order(mirrors: Mirrors, **changes: Any) -> Order:
    values: dict[str, Any] = {
        "urls": ("http://a", "http://b", "http://c"),
        "fetch": mirrors,
        "algorithms": frozenset({"sha256", "sha512"}),
        "max_bytes": 1 << 30,
        "deadline": time.monotonic() + 30,
        "size_bytes": len(IMAGE),
        "tree": TREE,
    }
    return Order(**{**values, **changes})


def accept(received: Received) -> None:
    if received.digests["sha256"] != hashlib.sha256(IMAGE).digest():
        raise RequestError("other bytes", code="bytes-differ")


def got(wanted: Order, part: Path) -> bytes:
    received = download.get(wanted, part, accept=accept)
    image = (part / "image").read_bytes()
    assert received.digests == {name: hashlib.new(name, image).digest() for name in ("sha256", "sha512")}
    assert received.size_bytes == len(image) and (part / "image").stat().st_mode & 0o777 == 0o444
    assert received.leaves == (None if wanted.tree is None else Leaves(CHUNK, tuple(LEAVES)))
    return image


def code_of(wanted: Order, part: Path) -> tuple[str, type[LrmsVmError]]:
    with pytest.raises((RequestError, SiteError)) as caught:
        download.get(wanted, part, accept=accept)
    return caught.value.code, type(caught.value)


def leaves() -> dict[str, Any]:
    return {LEAVES_URL: b"".join(LEAVES)}


# Three ways of knowing what is wanted: nothing but a digest; the size too; a tree whose leaves can be had.
KNOWN = {
    "digest": {"size_bytes": None, "tree": None},
    "size": {"tree": None},
    "root": {"tree": replace(TREE, leaves_url=None)},
    "leaves": {},
}


@pytest.fixture(params=KNOWN)
def known(request: pytest.FixtureRequest) -> dict[str, Any]:
    return KNOWN[request.param]


def test_the_first_mirror_is_the_only_one_asked(tmp_path: Path, known: dict[str, Any]) -> None:
    mirrors = Mirrors({**leaves(), "http://a": IMAGE})
    assert got(order(mirrors, **known), tmp_path) == IMAGE
    assert mirrors.asked == ["a"]


BROKEN = {
    "down": DOWN,
    "gone": GONE,
    "lies": flipped(at=CHUNK),
    "lies at the end": flipped(at=len(IMAGE) - 1),
    "lies in zeros": flipped(at=3 * CHUNK),
    "swaps chunks": IMAGE[CHUNK : 2 * CHUNK] + IMAGE[:CHUNK] + IMAGE[2 * CHUNK :],
    "short": IMAGE[:-1],
    "long": IMAGE + b"x",
    "truncates": (IMAGE, 3 * CHUNK, None),
    "stalls": (IMAGE, 2 * CHUNK + 5, SiteError("slow", code="image-server-slow")),
    "breaks": (IMAGE, 1, SiteError("short", code="image-short")),
    "empty": b"",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_mirror_that_fails_is_left_for_the_next(tmp_path: Path, known: dict[str, Any], broken: str) -> None:
    mirrors = Mirrors({**leaves(), "http://a": BROKEN[broken], "http://b": GONE, "http://c": IMAGE})
    assert got(order(mirrors, **known), tmp_path) == IMAGE
    expected = [["a", "b", "c"]]
    if broken == "lies in zeros":
        expected.append(["a"])  # chunks of zeros are known by their leaves, and not asked for
    assert mirrors.asked in expected


def test_what_one_mirror_sent_before_it_failed_is_not_asked_of_the_next(tmp_path: Path) -> None:
    stalls = SiteError("slow", code="image-server-slow")
    mirrors = Mirrors({**leaves(), "http://a": (IMAGE, 1 * CHUNK + 5, stalls), "http://b": flipped(at=5 * CHUNK)})
    mirrors.served["http://c"] = IMAGE
    told: list[int] = []
    assert got(order(mirrors, progress=told.append), tmp_path) == IMAGE
    parts = [part.ranges for url, part in mirrors.log if part is not None]
    assert [ranges[0][0] for ranges in parts] == [0, CHUNK, 5 * CHUNK]
    assert told == sorted(told) and told[-1] == len(IMAGE)


def test_long_runs_of_zeros_are_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MIN_GAP_BYTES", 2 * CHUNK)
    mirrors = Mirrors({**leaves(), "http://a": IMAGE})
    assert got(order(mirrors), tmp_path) == IMAGE
    part = mirrors.log[-1][1]
    assert part is not None and part.ranges == ((0, 2 * CHUNK), (4 * CHUNK, len(IMAGE)))
    assert mirrors.asked_bytes == len(IMAGE) - 2 * CHUNK


def test_a_server_without_ranges_is_asked_for_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MIN_GAP_BYTES", CHUNK)
    mirrors = Mirrors({**leaves(), "http://a": IMAGE}, can_ranges=False)
    assert got(order(mirrors), tmp_path) == IMAGE
    assert mirrors.asked == ["a", "a"]


@pytest.mark.parametrize("known_here", [True, False], ids=["leaves still there", "leaves gone"])
def test_another_process_goes_on_where_one_ended(tmp_path: Path, known_here: bool) -> None:
    breaks = (IMAGE, CHUNK + 17, SiteError("short", code="image-short"))
    mirrors = Mirrors({**leaves(), "http://a": breaks})
    assert code_of(order(mirrors, urls=("http://a",)), tmp_path) == ("image-short", SiteError)
    if not known_here:
        (tmp_path / download.SIGNED_LEAVES).unlink()
    mirrors = Mirrors({**leaves(), "http://a": IMAGE})
    assert got(order(mirrors), tmp_path) == IMAGE
    assert mirrors.asked_bytes == len(IMAGE) - CHUNK  # no gap is worth a range of its own in so small an image
    assert (LEAVES_URL in [url for url, _ in mirrors.log]) != known_here


@settings(max_examples=60, deadline=None)
@given(
    left=st.binary(max_size=2000) | st.builds(lambda at, to: flipped(at=at)[:to], *[st.integers(0, len(IMAGE) - 1)] * 2)
)
def test_whatever_a_partial_holds_is_proved_or_fetched(tmp_path_factory: pytest.TempPathFactory, left: bytes) -> None:
    part = tmp_path_factory.mktemp("part")
    (part / "image").write_bytes(left)
    (part / "image").chmod(0o444)
    (part / download.SIGNED_LEAVES).write_bytes(left)
    assert got(order(Mirrors({**leaves(), "http://a": IMAGE})), part) == IMAGE


def test_a_partial_that_is_whole_needs_no_mirror(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(IMAGE)
    mirrors = Mirrors({**leaves(), "http://a": DOWN})
    assert got(order(mirrors), tmp_path) == IMAGE
    assert mirrors.asked == []


LEAF_FILES = {
    "tampered": b"".join([LEAVES[0], *LEAVES[2:], LEAVES[1]]),
    "cut": b"".join(LEAVES[:-1]),
    "long": b"".join([*LEAVES, LEAVES[0]]),
    "empty": b"",
    "down": DOWN,
    "gone": GONE,
}


@pytest.mark.parametrize("served", LEAF_FILES)
@pytest.mark.parametrize("beside", [True, False])
def test_leaves_that_are_not_the_signed_ones_are_not_used(tmp_path: Path, served: str, beside: bool) -> None:
    """Those beside the image do as well, since they prove themselves; else the bytes count as a whole."""
    mirrors = Mirrors({LEAVES_URL: LEAF_FILES[served], "http://a": flipped(), "http://b": IMAGE})
    if beside:
        mirrors.served["http://b.leaves"] = b"".join(LEAVES)
    assert got(order(mirrors), tmp_path) == IMAGE
    assert mirrors.asked == ["a", "b"]
    assert (tmp_path / download.SIGNED_LEAVES).exists() == beside


def test_a_list_that_contradicts_itself_is_refused(tmp_path: Path, known: dict[str, Any]) -> None:
    """Its tree is of these bytes, its sha256 is of others, or the other way round."""
    other = flipped()
    mirrors = Mirrors({**leaves(), "http://a": other, "http://b": other, "http://c": other})
    assert code_of(order(mirrors, **known), tmp_path) == ("bytes-differ", RequestError)
    wrong = replace(TREE, root=tree.leaf(b""), leaves_url=None)
    mirrors = Mirrors({"http://a": IMAGE})
    assert code_of(order(mirrors, urls=("http://a",), tree=wrong), tmp_path) == ("bytes-differ", RequestError)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (GONE, GONE, ("image-missing", RequestError)),
        (flipped(), flipped(), ("bytes-differ", RequestError)),
        (flipped(), DOWN, ("image-server-down", SiteError)),
        (DOWN, flipped(), ("image-server-down", SiteError)),
        (GONE, IMAGE + b"x", ("image-missing", RequestError)),
    ],
)
def test_all_mirrors_failing_is_the_requests_fault_only_when_none_might_have_it(
    tmp_path: Path, known: dict[str, Any], a: Any, b: Any, expected: tuple[str, type]
) -> None:
    mirrors = Mirrors({**leaves(), "http://a": a, "http://b": b})
    assert code_of(order(mirrors, urls=("http://a", "http://b"), **known), tmp_path) == expected


def test_more_bytes_than_were_signed_are_other_bytes_and_not_too_large_for_the_site(tmp_path: Path) -> None:
    mirrors = Mirrors({"http://a": IMAGE + b"x"})
    one = order(mirrors, urls=("http://a",), tree=None)
    assert code_of(one, tmp_path) == ("bytes-differ", RequestError)
    assert code_of(replace(one, size_bytes=None, max_bytes=len(IMAGE)), tmp_path) == ("image-too-large", RequestError)


def test_an_image_that_was_signed_too_large_for_the_site_is_not_asked_for(
    tmp_path: Path, known: dict[str, Any]
) -> None:
    mirrors = Mirrors({**leaves(), "http://a": IMAGE, "http://b": IMAGE})
    assert code_of(order(mirrors, max_bytes=len(IMAGE) - 1, **known), tmp_path)[0] == "image-too-large"
    assert not (tmp_path / "image").exists() or (tmp_path / "image").stat().st_size < len(IMAGE)
    assert mirrors.log == [] or known == KNOWN["digest"]


def test_no_further_mirror_is_asked_after_the_deadline(tmp_path: Path, known: dict[str, Any]) -> None:
    mirrors = Mirrors({**leaves(), "http://a": DOWN, "http://b": IMAGE})
    (tmp_path / download.SIGNED_LEAVES).write_bytes(b"".join(LEAVES))
    late = order(mirrors, deadline=time.monotonic() - 1, **known)
    assert code_of(late, tmp_path) == ("image-server-down", SiteError)
    assert mirrors.asked == ["a"]


def test_a_mirror_too_slow_for_the_deadline_is_left_only_for_another(tmp_path: Path) -> None:
    mirrors = Mirrors({**leaves(), "http://a": DOWN, "http://b": DOWN})
    code_of(order(mirrors, urls=("http://a", "http://b"), deadline=time.monotonic() + 10), tmp_path)
    rates = [part.min_bytes_per_s for _, part in mirrors.log if part is not None]
    assert rates == [pytest.approx((len(IMAGE)) / 10, rel=0.2), 0]


def test_a_part_of_a_file_on_this_node(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(IMAGE)

    def read(part: Part) -> bytes:
        return b"".join(Fetch().fetch(str(path), max_bytes=1 << 30, deadline=time.monotonic() + 5, part=part))

    assert read(Part(((0, 5), (CHUNK, CHUNK + 7)), len(IMAGE))) == IMAGE[:5] + IMAGE[CHUNK : CHUNK + 7]
    with pytest.raises(RequestError) as caught:
        read(Part(((0, 5),), len(IMAGE) + 1))
    assert caught.value.code == "bytes-differ"
    mirrors = order(Mirrors({}), urls=(str(path),), fetch=Fetch(), tree=None)
    (tmp_path / "part").mkdir()
    assert got(mirrors, tmp_path / "part") == IMAGE
