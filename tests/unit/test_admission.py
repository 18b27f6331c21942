"""Room for an image: before it comes, while it comes, and when the disk says that it is full."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from pathlib import Path
from typing import Any

import pytest

from lrms_vm import admission, cache, pins, store, upkeep
from lrms_vm.admission import Admission
from lrms_vm.errors import LrmsVmError
from lrms_vm.image import ImageEntry
from lrms_vm.paths import Places
from lrms_vm.water_marks import Limits
from tests.cache_fakes import FakeFetch, acquire, leftovers, places_at, served

KIB = 1 << 10


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return places_at(tmp_path)


def image(number: int, kib: int = 100) -> tuple[ImageEntry, FakeFetch]:
    entry = ImageEntry(name=f"vo{number % 2}/i{number}", url=f"http://x/{number}.img")
    return entry, served(bytes([number + 1]) * (kib * KIB), url=entry.url)


def bring(places: Places, number: int, *, release: bool = True, kib: int = 100, **limits: Any) -> str:
    entry, fetch = image(number, kib)
    lease = f"local-{number}.n"
    made = Admission(Limits(**{"reserve_bytes": 0, **limits}))
    sha256 = acquire(places, fetch, entry=entry, lease=lease, admission=made).sha256
    os.utime(store.entry_dir(places, sha256) / "meta.json", (number + 1, number + 1))
    if release:
        (places.leases / lease).unlink()
    return sha256


def refused(places: Places, number: int, **more: Any) -> LrmsVmError:
    with pytest.raises(LrmsVmError) as caught:
        bring(places, number, **more)
    assert leftovers(places) == []
    return caught.value


def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "LOOK_EVERY_BYTES", 32 * KIB)


def test_a_quota_evicts_the_least_recently_used(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    look_often(monkeypatch)
    first, second, third = (bring(places, number, quota_bytes=400 * KIB) for number in range(3))
    fourth = bring(places, 3, quota_bytes=400 * KIB)
    left = set(store.stored(places))
    assert first not in left and {third, fourth} <= left
    assert second in left or len(left) == 2


def test_a_lease_that_ends_counts_as_use(places: Places) -> None:
    first, second = bring(places, 0, release=False), bring(places, 1)
    cache.release(places, "local-0.n")
    assert [entry.sha256 for entry in cache.entries(places)] == [first, second]
    assert cache.evict(places, 150 * KIB) == [second]


def test_reading_or_describing_an_image_anew_is_no_use(places: Places) -> None:
    first, second = bring(places, 0), bring(places, 1)
    assert cache.verify(places, first)
    os.utime(Path(store.entry_dir(places, first)) / "image")
    assert cache.verify(places, first)
    assert [entry.sha256 for entry in cache.entries(places)] == [second, first]


def test_a_pinned_image_is_never_evicted(places: Places) -> None:
    first, second = bring(places, 0), bring(places, 1)
    upkeep.pin(places, first, "production")
    assert cache.evict(places, 0) == [second]
    assert [pin.reason for pin in pins.pins(places)] == ["production"]
    assert pins.unpin(places, first) and not pins.unpin(places, first)
    assert cache.evict(places, 0) == [first]


def test_an_image_whose_maker_has_not_let_go_of_it_stays(places: Places) -> None:
    first, second = bring(places, 0), bring(places, 1)
    lock = os.open(store.entry_dir(places, first), os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert cache.evict(places, 0) == [second]
    assert store.healthy(places, first) is not None
    os.close(lock)
    assert cache.evict(places, 0) == [first]


@pytest.mark.parametrize("name", ["leases", "pins"])
def test_an_eviction_that_cannot_see_who_holds_what_removes_nothing(
    places: Places, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    made = {bring(places, 0), bring(places, 1)}

    def unreadable(_: Places) -> Any:
        raise OSError(errno.EIO, "Input/output error", str(places.leases))

    monkeypatch.setattr(f"lrms_vm.store.{'leasing' if name == 'leases' else 'pinning'}.{name}", unreadable)
    with pytest.raises(LrmsVmError):
        upkeep.remove(places, sorted(made))
    assert {sha256 for sha256 in store.stored(places) if store.healthy(places, sha256)} == made


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b'{"reason": 1}', b"[" * 10_000])
def test_a_damaged_pin_still_pins(places: Places, text: bytes) -> None:
    first = bring(places, 0)
    upkeep.pin(places, first, "x")
    (places.pins / first).write_bytes(text)
    assert cache.evict(places, 0) == []


def test_what_is_gone_cannot_be_pinned(places: Places) -> None:
    first = bring(places, 0)
    cache.evict(places, 0)
    with pytest.raises(LrmsVmError) as caught:
        upkeep.pin(places, first, "")
    assert caught.value.code == "image-not-stored"
    assert list(pins.pins(places)) == []


@pytest.mark.parametrize("quota", [0, 60 * KIB])
def test_an_image_that_the_quota_cannot_hold_is_refused_by_the_numbers(
    places: Places, monkeypatch: pytest.MonkeyPatch, quota: int
) -> None:
    look_often(monkeypatch)
    error = refused(places, 0, quota_bytes=quota, kib=1000)
    assert error.code == "disk-full" and error.exit_code == 69
    assert "the cache may take" in error.message and "free" in error.message
    assert list(store.stored(places)) == []


def test_who_holds_the_room_is_named(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    look_often(monkeypatch)
    bring(places, 0, release=False)
    upkeep.pin(places, bring(places, 1), "")
    error = refused(places, 2, quota_bytes=220 * KIB, kib=1000)
    assert re.search(r"jobs hold 10\d KiB of it \(local-0.n\), pins 10\d KiB more", error.message)


def test_a_size_that_is_sure_is_insisted_upon_before_the_first_byte(places: Places, tmp_path: Path) -> None:
    path = tmp_path / "local.img"
    path.write_bytes(b"x" * (300 * KIB))
    asked = FakeFetch(
        {
            str(path): path.read_bytes(),
            f"{path}.p7s": served(path.read_bytes()).served["http://images.example.org/hep.img.p7s"],
        }
    )
    with pytest.raises(LrmsVmError, match="no room for 300 KiB more") as caught:
        acquire(
            places, asked, entry=ImageEntry("local", str(path)), admission=Admission(Limits(200 * KIB, reserve_bytes=0))
        )
    assert caught.value.code == "disk-full"
    assert str(path) not in asked.log


def test_a_signed_size_that_may_be_holes_is_not_insisted_upon(places: Places) -> None:
    entry = ImageEntry(name="sparse", url="http://x/sparse.img")
    store.prepare(places)
    Admission(Limits(200 * KIB, reserve_bytes=0)).admit(places, entry, at_most_bytes=20 << 30)
    body = b"boot" + bytes(4 << 20)
    made = acquire(
        places, served(body, url=entry.url), entry=entry, admission=Admission(Limits(200 * KIB, reserve_bytes=0))
    )
    assert made.size_bytes == len(body)


def test_a_signed_size_that_fits_makes_its_room_first(places: Places) -> None:
    first = bring(places, 0)
    entry, _ = image(1)
    Admission(Limits(200 * KIB, reserve_bytes=0)).admit(places, entry, at_most_bytes=150 * KIB)
    assert first not in set(store.stored(places))


def test_a_vo_that_is_over_its_quota_evicts_its_own_and_keeps_the_node(places: Places) -> None:
    quota = {"vo1": 150 * KIB}
    other, own = bring(places, 0), bring(places, 1, vo_quota_bytes=quota)
    newer = bring(places, 3, vo_quota_bytes=quota, release=False)
    entry, _ = image(5)
    with pytest.raises(LrmsVmError) as caught:
        Admission(Limits(reserve_bytes=0, vo_quota_bytes=quota)).admit(places, entry, at_most_bytes=100 * KIB)
        Admission(Limits(reserve_bytes=0, vo_quota_bytes={"vo1": 50 * KIB})).admit(places, entry, at_most_bytes=0)
    assert (caught.value.code, caught.value.exit_code) == ("vo-quota-full", 75)
    assert set(store.stored(places)) == {other, newer}
    assert own not in set(store.stored(places))


class FullOnce:
    """The disk is full until something was removed."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, name: str) -> None:
        if name == "written" and self.left:
            self.left -= 1
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_evicts_once_and_tries_once_more(places: Places) -> None:
    idle = bring(places, 0)
    entry, fetch = image(1)
    made = acquire(places, fetch, entry=entry, step=FullOnce(1))
    assert fetch.log.count(entry.url) == 2
    assert list(store.stored(places)) == [made.sha256] and idle != made.sha256


def test_a_disk_that_stays_full_is_the_nodes_fault(places: Places) -> None:
    bring(places, 0)
    entry, fetch = image(1)
    with pytest.raises(LrmsVmError, match="no space left") as caught:
        acquire(places, fetch, entry=entry, step=FullOnce(9))
    assert caught.value.code == "disk-full"
    assert fetch.log.count(entry.url) == 2
    assert leftovers(places) == []


def test_a_full_disk_on_which_everything_is_held_is_not_tried_again(places: Places) -> None:
    bring(places, 0, release=False)
    entry, fetch = image(1)
    with pytest.raises(LrmsVmError, match=r"jobs hold 10\d KiB of it \(local-0.n\)"):
        acquire(places, fetch, entry=entry, step=FullOnce(9))
    assert fetch.log.count(entry.url) == 1


def test_room_is_made_of_the_quarantine_first(places: Places) -> None:
    damaged, sound = bring(places, 0), bring(places, 1)
    with store.changing(places, deadline=0):
        store.quarantine(places, damaged, "for the test")
    assert [one.why for one in upkeep.quarantine(places)] == ["for the test"]
    Admission(Limits(330 * KIB, reserve_bytes=0)).admit(places, image(2)[0], at_most_bytes=100 * KIB)
    assert upkeep.quarantine(places) == []
    assert sound in set(store.stored(places))


def test_the_quarantine_keeps_the_newest_few(places: Places) -> None:
    made = [bring(places, number) for number in range(store.MAX_QUARANTINED + 2)]
    for sha256 in made:
        with store.changing(places, deadline=0):
            store.quarantine(places, sha256)
    assert {one.sha256 for one in upkeep.quarantine(places)} == set(made[2:])


def test_an_image_remembers_its_names_and_whose_quota_it_counts_to(places: Places) -> None:
    entry, fetch = image(1)
    acquire(places, fetch, entry=entry)
    again = ImageEntry(name="cms/same", url="http://y/same.img")
    acquire(places, served(bytes([2]) * (100 * KIB), "sha512", url=again.url), entry=again)
    found = cache.entries(places)[0]
    assert (found.names, found.vo) == (("vo1/i1", "cms/same"), "vo1")
