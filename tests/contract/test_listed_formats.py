"""Formats of images of a signed list, with the real trust core: what is signed is the qcow2, what boots the raw disk."""

from __future__ import annotations

import hashlib
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lrms_vm import cache, store
from lrms_vm.decision import Decision, JobDecision
from lrms_vm.errors import LrmsVmError
from lrms_vm.image import ImageEntry, Listed, VerifiedImage
from lrms_vm.paths import Places
from lrms_vm.trust.verify_list import open_list
from tests.cache_fakes import FakeFetch, places_at
from tests.hostile.qcow2_files import disk, sound
from tests.lists import ANCHORS, NOW, image, payload, policy, sign

QCOW2, DISK = bytes(sound()), disk()
URL = "https://images.example.org/a.img"
FORMATS = 'formats = ["raw", "qcow2"]'
ALLOWED = {"builder": FORMATS, "defaults": FORMATS}


def take(places: Places, content: bytes = QCOW2, *, rules: dict[str, str] = ALLOWED, **changes: Any) -> VerifiedImage:
    """One job's image, from the list to the cache."""
    site = policy(**rules)
    described = image(content=content, **{"lv:format": "qcow2", "hv:format": "QCOW2", **changes})
    signed = open_list(sign(payload([described])), anchors=ANCHORS, policy=policy(**ALLOWED), at=NOW)
    (found,) = signed.content.images
    entry = ImageEntry(name=found.name, url=URL, listed=Listed("atlas", signed, found))
    return cache.acquire(
        entry,
        places=places,
        lease="local-1.n",
        decide=JobDecision(Decision(site, ANCHORS), "atlas001", (), "", NOW + timedelta(hours=1)),
        fetch=FakeFetch({URL: content}),
        max_image_bytes=site.max_image_bytes,
        deadline=time.monotonic() + 30,
    )


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return places_at(tmp_path)


def code_of(places: Places, **more: Any) -> str:
    with pytest.raises(LrmsVmError) as caught:
        take(places, **more)
    return caught.value.code


def test_a_listed_qcow2_boots_as_the_disk_in_it(places: Places) -> None:
    for _ in range(2):  # cold, then warm
        found = take(places, **{"lv:virtual_size": len(DISK)})
        assert Path(found.path).read_bytes() == DISK
        assert found.sha256 == hashlib.sha256(DISK).hexdigest()
        assert found.rule == "alice"
    meta = store.healthy(places, found.sha256)
    assert meta is not None
    (origin,) = meta.origins
    assert set(origin.digests) == {"sha256", "sha512"}  # all that the list gives
    assert origin.digests["sha512"] == hashlib.sha512(QCOW2).digest()


@pytest.mark.parametrize("rules", [{}, {"builder": FORMATS}, {"defaults": FORMATS}])
def test_it_is_refused_cold_and_warm_where_policy_does_not_say_so_twice(places: Places, rules: dict[str, str]) -> None:
    assert code_of(places, rules=rules) == "format-not-allowed"
    take(places)
    assert code_of(places, rules=rules) == "format-not-allowed"


def test_a_list_that_says_another_format_than_the_file_has_is_refused(places: Places) -> None:
    assert code_of(places, **{"lv:format": "raw", "hv:format": "RAW"}) == "image-not-raw"
    assert code_of(places, content=DISK) == "format-not-allowed"


def test_a_list_that_says_another_size_than_the_disk_has_is_refused(places: Places) -> None:
    for _ in range(2):  # cold, then warm by another version of the list
        assert code_of(places, **{"lv:virtual_size": len(DISK) + 512}) == "image-size-differs"
        take(places)


def test_a_block_of_the_raw_disk_stops_the_qcow2_too(places: Places) -> None:
    block = f'[[block]]\ndigest = "sha256:{hashlib.sha256(DISK).hexdigest()}"\nreason = "a bad kernel"'
    take(places)
    assert code_of(places, rules={**ALLOWED, "more": block}) == "image-blocked"


def test_narrower_limits_stop_what_was_converted_before(places: Places) -> None:
    take(places)
    assert code_of(places, rules={**ALLOWED, "defaults": f'{FORMATS}\nmax_virtual = "64KiB"'}) == (
        "image-virtual-too-large"
    )
