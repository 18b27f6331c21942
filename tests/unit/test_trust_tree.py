"""A listed image checked by its chunk tree: as strict as by digests, and never where the digests are what counts."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lrms_vm import signing
from lrms_vm.errors import RequestError, UsageError
from lrms_vm.hashing import Leaves
from lrms_vm.trust import tree, verify
from lrms_vm.trust.verify import Claim
from lrms_vm.trust.verify_list import claim_listed, open_list
from tests import lists

CHUNK = 1 << 16
IMAGE = os.urandom(3 * CHUNK) + bytes(5 * CHUNK) + b"end"


def root_of(image: bytes) -> bytes:
    return tree.root_of([tree.leaf(image[at : at + CHUNK]) for at in range(0, len(image), CHUNK)])


def claim(policy: Any = None, **changes: Any) -> Claim:
    entry = {"lv:tree": {"alg": "sha256", "chunk": CHUNK, "root": root_of(IMAGE).hex()}, **changes}
    signed = lists.sign(lists.payload([lists.image(content=IMAGE, **entry)]))
    site: dict[str, Any] = {
        "anchors": lists.ANCHORS,
        "policy": policy or lists.policy('signatures = ["list"]'),
        "at": lists.NOW,
    }
    opened = open_list(signed, **site)
    return claim_listed(opened, opened.content.images[0], user="atlas001", partition="", **site)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.img"
    path.write_bytes(IMAGE)
    return path


def code_of(path: Path, claimed: Claim) -> str:
    with pytest.raises(RequestError) as caught:
        signing.check_image(path, claimed)
    return caught.value.code


def test_the_right_bytes_are_accepted_and_named_by_the_digest_that_was_signed(path: Path) -> None:
    told: list[int] = []
    endorsement = signing.check_image(path, claim(), progress=told.append)
    assert endorsement.sha256 == hashlib.sha256(IMAGE).hexdigest()
    assert told[-1] == len(IMAGE)


def test_a_tree_needs_no_other_digest_to_be_hashed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "hash_fd", lambda *_: pytest.fail("a flat digest, one core's work"))
    signing.check_image(path, claim())


@pytest.mark.parametrize("at", [0, CHUNK, 4 * CHUNK, len(IMAGE) - 1])
def test_one_flipped_bit_is_seen_wherever_it_is(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), bytes([IMAGE[at] ^ 1]), at)
    assert code_of(path, claim()) == "bytes-differ"


@pytest.mark.parametrize(
    "other",
    [
        IMAGE[:-1],
        IMAGE + b"\0",
        IMAGE[CHUNK:] + IMAGE[:CHUNK],
        IMAGE[CHUNK : 2 * CHUNK] + IMAGE[:CHUNK] + IMAGE[2 * CHUNK :],
    ],
)
def test_other_sizes_and_swapped_chunks_are_refused(path: Path, other: bytes) -> None:
    path.write_bytes(other)
    assert code_of(path, claim()) == "bytes-differ"


def test_the_leaves_themselves_are_no_image(path: Path) -> None:
    """A second preimage: two leaves put together as one chunk. The first octet keeps leaf and node apart."""
    leaves = [tree.leaf(b"a" * CHUNK), tree.leaf(b"b" * CHUNK)]
    path.write_bytes(b"\1" + b"".join(leaves))
    assert signing.tree_of_image(path, CHUNK) == (Leaves(CHUNK, (tree.leaf(path.read_bytes()),)), 65)
    assert tree.root_of(leaves) != tree.leaf(path.read_bytes()) != tree.root_of([tree.leaf(b"".join(leaves))])


def test_a_blocked_image_is_refused_by_the_digest_that_was_signed(path: Path) -> None:
    digest = hashlib.sha256(IMAGE).hexdigest()
    blocked = claim()
    block = lists.policy(more=f'[[block]]\ndigest = "{digest}"\nreason = "bad"').blocks[0]
    assert code_of(path, replace(blocked, blocked={digest: block})) == "image-blocked"


def test_without_a_sha256_that_counts_the_tree_does_not_count_either(path: Path) -> None:
    only_sha512 = claim(**{"lv:checksum:sha256": lists.GONE})
    assert not verify.has_tree(only_sha512)
    assert signing.check_image(path, only_sha512).sha256 == hashlib.sha256(IMAGE).hexdigest()
    with pytest.raises(ValueError, match="without a tree"):
        verify.check_tree(only_sha512, root=root_of(IMAGE), size_bytes=len(IMAGE))


def test_a_list_without_a_tree_is_checked_by_all_its_digests(path: Path) -> None:
    plain = claim(**{"lv:tree": lists.GONE})
    assert signing.check_image(path, plain).sha256 == hashlib.sha256(IMAGE).hexdigest()
    assert code_of(path, replace(plain, signed_digests={**plain.signed_digests, "sha512": bytes(64)})) == "bytes-differ"


def test_an_image_of_no_bytes_or_none_at_all_is_refused(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"")
    assert code_of(path, claim()) == "signed-nothing"
    with pytest.raises(UsageError):
        signing.check_image(tmp_path / "absent", claim())
    with pytest.raises(UsageError):
        signing.check_image(tmp_path, claim())
