"""The cache when processes die at any step, and when many want the same image at once. Real processes, real flock."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lrms_vm import cache, lease, store
from lrms_vm.errors import LrmsVmError
from lrms_vm.paths import Places
from tests.cache_fakes import IMAGE, URL, FakeFetch, acquire, leftovers, places_at, served

SHA256 = hashlib.sha256(IMAGE).hexdigest()
STEPS = ("locked", "part", "written", "synced", "described", "leased", "published", "referred")


def in_child(work: Callable[[], object]) -> int:
    """Start `work` in a forked child; return its pid. It ends with 0, or 1 when `work` raised."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die(_: object = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def all_is_well(places: Places, fetch: FakeFetch) -> None:
    image = acquire(places, fetch, lease="local-2.n")
    assert Path(image.path).read_bytes() == IMAGE
    assert store.healthy(places, image.sha256) is not None
    cache.clean(places)
    assert leftovers(places) == []
    assert [held.key for held in lease.leases(places)] == ["local-2.n"]
    assert list(places.quarantine.iterdir()) == []


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("step", STEPS)
def test_a_process_killed_at_a_step_leaves_a_cache_that_works(tmp_path: Path, step: str, algorithm: str) -> None:
    places = places_at(tmp_path)
    fetch = served(algorithm=algorithm)
    pid = in_child(lambda: acquire(places, fetch, step=lambda name: die() if name == step else None))
    assert ended(pid) == -signal.SIGKILL
    all_is_well(places, fetch)


def test_every_step_is_reached(tmp_path: Path) -> None:
    reached: list[str] = []
    acquire(places_at(tmp_path), served(), step=reached.append)
    assert tuple(reached) == STEPS


def test_a_process_killed_while_receiving_leaves_a_cache_that_works(tmp_path: Path) -> None:
    places = places_at(tmp_path)

    class Dying(FakeFetch):
        def fetch(self, url: str, *, max_bytes: int, deadline: float) -> Iterator[bytes]:
            for number, block in enumerate(super().fetch(url, max_bytes=max_bytes, deadline=deadline)):
                yield block
                if url == URL and number == 40:
                    die()

    assert ended(in_child(lambda: acquire(places, Dying(served().served)))) == -signal.SIGKILL
    assert len(leftovers(places)) == 1
    all_is_well(places, served())


@pytest.mark.parametrize("call", ["rename", "fsync", "chmod", "fchmod", "mkdir", "unlink", "ftruncate", "pwrite"])
def test_a_process_killed_after_any_system_call_leaves_a_cache_that_works(tmp_path: Path, call: str) -> None:
    """Count the calls of one kind in a whole acquire; then die right after the first, the second, ..."""

    def dying_after(count: int) -> None:
        real = getattr(os, call)
        left = [count]

        def counted(*args: object, **more: object) -> object:
            result = real(*args, **more)
            left[0] -= 1
            if left[0] == 0:
                die()
            return result

        setattr(os, call, counted)  # only in the forked child: the kernel's door, not our code

    for count in range(1, 30):
        places = places_at(tmp_path / str(count))
        fetch = served(algorithm="sha512")
        places.state_dir.mkdir(parents=True, mode=0o755)

        def work(count: int = count, places: Places = places, fetch: FakeFetch = fetch) -> None:
            dying_after(count)
            acquire(places, fetch)

        status = ended(in_child(work))
        assert status in (0, -signal.SIGKILL)
        all_is_well(places, fetch)
        if status == 0:
            return
    pytest.fail("more calls than expected")


def test_a_hundred_jobs_make_one_fetch(tmp_path: Path) -> None:
    """As many processes as fit the machine; each logs what it asked the server for."""
    places = places_at(tmp_path)
    log = tmp_path / "log"

    class Logged(FakeFetch):
        def fetch(self, url: str, *, max_bytes: int, deadline: float) -> Iterator[bytes]:
            if url == URL:
                with log.open("a") as file:
                    file.write("x")
            return super().fetch(url, max_bytes=max_bytes, deadline=deadline)

    def work(number: int) -> None:
        image = acquire(places, Logged(served().served, pause_s=0.001), lease=f"local-{number}.n")
        assert Path(image.path).read_bytes() == IMAGE

    pids = [in_child(lambda number=number: work(number)) for number in range(32)]
    assert [ended(pid) for pid in pids] == [0] * 32
    assert log.read_text() == "x"
    assert len(list(lease.leases(places))) == 32
    assert leftovers(places) == []


def test_when_the_one_that_fetches_is_killed_another_takes_over(tmp_path: Path) -> None:
    places = places_at(tmp_path)
    slow = in_child(lambda: acquire(places, served(), step=lambda name: time.sleep(60) if name == "written" else None))
    while not (places.ingest.is_dir() and leftovers(places)):
        time.sleep(0.01)
    second = in_child(lambda: acquire(places, served(), lease="local-2.n"))
    time.sleep(0.2)
    os.kill(slow, signal.SIGKILL)
    assert ended(slow) == -signal.SIGKILL
    assert ended(second) == 0
    all_is_well(places, served())


def test_a_stopped_holder_is_named_when_the_deadline_passes(tmp_path: Path) -> None:
    places = places_at(tmp_path)
    holder = in_child(lambda: acquire(places, served(), step=lambda name: signal.pause() if name == "part" else None))
    while not (places.ingest.is_dir() and leftovers(places)):
        time.sleep(0.01)
    try:
        with pytest.raises(LrmsVmError, match=f"process {holder}") as caught:
            acquire(places, served(), lease="local-2.n", deadline=time.monotonic() + 0.3)
        assert caught.value.code == "cache-busy"
    finally:
        os.kill(holder, signal.SIGKILL)
        ended(holder)


def test_eviction_never_takes_an_image_from_under_a_job(tmp_path: Path) -> None:
    """One process evicts all the time; whoever has acquired finds the file there until it releases."""
    places = places_at(tmp_path)
    acquire(places, served())
    cache.release(places, "local-1.n")

    def evict_always() -> None:
        while True:
            cache.evict(places, 0)

    def use(number: int) -> None:
        for _ in range(15):
            image = acquire(places, served(), lease=f"local-{number}.n")
            for _ in range(5):
                assert Path(image.path).stat().st_size == len(IMAGE)
                time.sleep(0.001)
            cache.release(places, f"local-{number}.n")

    evictor = in_child(evict_always)
    try:
        users = [in_child(lambda number=number: use(number)) for number in range(4)]
        assert [ended(pid) for pid in users] == [0] * 4
    finally:
        os.kill(evictor, signal.SIGKILL)
        ended(evictor)
    assert store.stored(places) is not None
