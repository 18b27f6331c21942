"""Evicting, pinning and scrubbing when processes die at any call, and a disk that really is full."""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from lrms_vm import cache, pins, scrub, store, upkeep
from lrms_vm.errors import LrmsVmError
from lrms_vm.image import ImageEntry
from lrms_vm.paths import Places
from lrms_vm.scrub import Pace
from tests.cache_fakes import IMAGE, acquire, leftovers, places_at, served

SHA256 = hashlib.sha256(IMAGE).hexdigest()
OTHER = b"other" * 10_000
CALLS = ("rename", "unlink", "rmdir", "fsync", "mkdir", "fchmod", "open")
MIB = 1 << 20
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x00020000, 0x4000, 1 << 18  # sched.h, mount(2)


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked child and return how it ended: 0, 1 when it raised, or minus the signal's number."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def dying_after(call: str, count: int) -> None:
    """The process ends with SIGKILL right after that many calls; only in a forked child: the kernel's door."""
    real = getattr(os, call)
    left = [count]

    def counted(*args: object, **more: object) -> object:
        result = real(*args, **more)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(os, call, counted)


def filled(root: Path) -> Places:
    """Two images nobody holds, with their leaves."""
    places = places_at(root)
    acquire(places, served(), lease="local-1.n")
    entry = ImageEntry(name="other", url="http://x/other.img")
    acquire(places, served(OTHER, url=entry.url), entry=entry, lease="local-2.n")
    list(scrub.scrub(places, Pace()))
    for key in ("local-1.n", "local-2.n"):
        cache.release(places, key)
    return places


def evict(places: Places) -> None:
    cache.evict(places, 0)


def pin_and_unpin(places: Places) -> None:
    upkeep.pin(places, SHA256, "a reason")
    pins.unpin(places, SHA256)
    upkeep.pin(places, SHA256, "another")


def scrub_all(places: Places) -> None:
    assert [one.state for one in scrub.scrub(places, Pace())] == ["good", "good"]


def put_aside(places: Places) -> None:
    with store.changing(places, deadline=0):
        store.quarantine(places, SHA256)


WORKS = [evict, pin_and_unpin, scrub_all, put_aside]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("work", WORKS)
def test_a_process_killed_after_any_call_leaves_nothing_wrong_and_nothing_behind(
    tmp_path: Path, work: Callable[[Places], None], call: str
) -> None:
    for count in range(1, 60):
        places = filled(tmp_path / str(count))

        def dying(count: int = count, places: Places = places) -> None:
            dying_after(call, count)
            work(places)

        status = in_child(dying)
        assert status in (0, -signal.SIGKILL)
        pinned = [pin.sha256 for pin in pins.pins(places)]
        assert set(pinned) <= {SHA256}
        cache.clean(places)
        assert leftovers(places) == []
        for entry in cache.entries(places):
            assert entry.sound and cache.verify(places, entry.sha256)
        if pinned:
            assert store.healthy(places, SHA256) is not None
        image = acquire(places, served(), lease="local-3.n")
        assert Path(image.path).read_bytes() == IMAGE
        cache.release(places, "local-3.n")
        for sha256 in pinned:
            pins.unpin(places, sha256)
        cache.evict(places, 0)
        left = [p for p in places.state_dir.rglob("*") if p.is_file() and p.parent.name not in ("locks", "signatures")]
        assert [path.name for path in left if path.parent != places.trust] == []
        if status == 0:
            return
    pytest.fail("more calls than expected")


def on_small_disk(size: str, work: Callable[[Places], None], where: Path) -> None:
    """Run `work` with a cache on a file system of that size that only its process sees."""

    def mounted() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
        assert libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0, os.strerror(ctypes.get_errno())
        where.mkdir()
        options = f"size={size},mode=755".encode()
        assert libc.mount(b"tmpfs", bytes(where), b"tmpfs", 0, options) == 0, os.strerror(ctypes.get_errno())
        work(places_at(where))

    assert in_child(mounted) == 0


def noise(number: int, size_bytes: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest() * (size_bytes // 32)


def bring(places: Places, number: int, size_bytes: int) -> str:
    entry = ImageEntry(name=f"i{number}", url=f"http://x/{number}.img")
    fetch = served(noise(number, size_bytes), url=entry.url)
    return acquire(places, fetch, entry=entry, lease=f"local-{number}.n").sha256


def test_a_disk_that_fills_up_evicts_and_tries_again(tmp_path: Path) -> None:
    def work(places: Places) -> None:
        first = bring(places, 1, 20 * MIB)
        cache.release(places, "local-1.n")
        second = bring(places, 2, 36 * MIB)
        assert set(store.stored(places)) == {second} != {first}
        assert leftovers(places) == []

    on_small_disk("48m", work, tmp_path / "disk")


@pytest.mark.parametrize("size_bytes", [33 * MIB, 60 * MIB, 100 * MIB])
def test_a_full_disk_that_jobs_hold_is_refused_by_the_numbers(tmp_path: Path, size_bytes: int) -> None:
    def work(places: Places) -> None:
        held = bring(places, 1, 20 * MIB)
        with pytest.raises(LrmsVmError) as caught:
            bring(places, 2, size_bytes)
        assert caught.value.code == "disk-full" and caught.value.blame == "node"
        assert "jobs hold 20 MiB of it (local-1.n)" in caught.value.message
        assert leftovers(places) == [] and list(store.stored(places)) == [held]
        assert store.healthy(places, held) is not None
        cache.release(places, "local-1.n")
        assert cache.evict(places, 0) == [held]

    on_small_disk("48m", work, tmp_path / "disk")


def test_a_sparse_image_larger_than_the_disk_comes_in(tmp_path: Path) -> None:
    def work(places: Places) -> None:
        entry = ImageEntry(name="sparse", url="http://x/sparse.img")
        body = b"boot" + bytes(100 * MIB) + noise(1, MIB)
        image = acquire(places, served(body, url=entry.url), entry=entry)
        assert image.size_bytes == len(body)

    on_small_disk("48m", work, tmp_path / "disk")


@pytest.mark.parametrize("free_kib", range(0, 64, 4))
def test_a_disk_full_at_any_block_refuses_or_serves_and_leaves_nothing(tmp_path: Path, free_kib: int) -> None:
    """The last kilobytes: where metadata, leases, signatures and locks no longer fit."""

    def work(places: Places) -> None:
        store.prepare(places)
        ballast = places.state_dir / "ballast"
        free = os.statvfs(places.state_dir)
        ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - (free_kib << 10)))
        try:
            image = acquire(places, served())
            assert Path(image.path).read_bytes() == IMAGE
        except LrmsVmError as error:
            assert (error.blame, error.code) in (("node", "disk-full"), ("node", "state-unwritable")), error
            assert leftovers(places) == []
        ballast.unlink()
        cache.clean(places)
        assert Path(acquire(places, served()).path).read_bytes() == IMAGE

    on_small_disk("8m", work, tmp_path / "disk")
