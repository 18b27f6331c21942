"""Many jobs that want the same image at once, over real http; and what keeps them apart when locks and leases fail."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.herd import server, together_s
from lrms_vm import cache, lease, locks, store
from lrms_vm.errors import LrmsVmError
from lrms_vm.fetch import Fetch
from lrms_vm.image import ImageEntry
from lrms_vm.paths import Places
from tests.cache_fakes import IMAGE, URL, FakeFetch, acquire, leftovers, places_at, served

SHA256 = hashlib.sha256(IMAGE).hexdigest()
HERD = 64


def in_child(work: object) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()  # type: ignore[operator]
            status = 0
        finally:
            os._exit(status)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return places_at(tmp_path)


def test_a_herd_makes_one_download_and_one_question(tmp_path: Path, places: Places) -> None:
    import lrms_vm.trust.verify_list  # noqa: F401 - not again in each process

    root, log = tmp_path / "www", tmp_path / "log"
    root.mkdir()
    body = os.urandom(1 << 20) * 24
    (root / "hep.img").write_bytes(body)
    (root / "hep.img.p7s").write_text(f"sha256 {hashlib.sha256(body).hexdigest()}")
    with server(root, log) as url:
        entry = ImageEntry("hep", f"{url}/hep.img")

        def work(number: int) -> None:
            image = acquire(places, Fetch(), entry=entry, lease=f"local-{number}.n")
            assert Path(image.path).stat().st_size == len(body)

        together_s(HERD, work)
    assert sorted(log.read_text().split()) == ["/hep.img", "/hep.img.p7s"]
    assert len(list(lease.leases(places))) == HERD
    assert leftovers(places) == []


def test_those_who_wait_for_a_signature_do_not_wait_for_one_who_is_stopped(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first asks and never gets an answer; the others then ask themselves."""
    monkeypatch.setattr("lrms_vm.sidefiles.ASK_TIMEOUT_S", 0.5)
    store.prepare(places)

    class Stuck(FakeFetch):
        def fetch(self, url: str, *, max_bytes: int, deadline: float) -> Iterator[bytes]:
            if url.endswith(".p7s"):
                os.kill(os.getpid(), signal.SIGSTOP)
            return super().fetch(url, max_bytes=max_bytes, deadline=deadline)

    stuck = in_child(lambda: acquire(places, Stuck(served().served)))
    try:
        os.waitpid(stuck, os.WUNTRACED)
        began = time.monotonic()
        assert acquire(places, served(), lease="local-2.n").sha256 == SHA256
        assert time.monotonic() - began > 0.4
    finally:
        os.kill(stuck, signal.SIGKILL)
        ended(stuck)


def test_a_stopped_holder_is_called_stopped(places: Places) -> None:
    store.prepare(places)
    path = places.cache_locks / "x.lock"

    def hold() -> None:
        with locks.locked(path, deadline=time.monotonic() + 5):
            os.kill(os.getpid(), signal.SIGSTOP)

    holder = in_child(hold)
    try:
        os.waitpid(holder, os.WUNTRACED)
        with (
            pytest.raises(LrmsVmError, match=f"process {holder}, which is stopped"),
            locks.locked(path, deadline=time.monotonic() + 0.1),
        ):
            pass
    finally:
        os.kill(holder, signal.SIGKILL)
        ended(holder)


def test_a_lock_file_that_somebody_removes_keeps_nobody_apart_and_breaks_nothing(places: Places) -> None:
    """Those who waited for the removed file go on with the one that has the name."""
    store.prepare(places)
    lock = places.cache_locks / f"sha256-{SHA256}.lock"
    slow = in_child(lambda: acquire(places, served(), step=lambda name: time.sleep(1) if name == "written" else None))
    while not leftovers(places):
        time.sleep(0.01)
    waiting = in_child(lambda: acquire(places, served(), lease="local-2.n"))
    time.sleep(0.2)
    lock.unlink()
    late = [in_child(lambda n=n: acquire(places, served(), lease=f"local-{n}.n")) for n in range(3, 8)]
    assert [ended(pid) for pid in [slow, waiting, *late]] == [0] * 7
    assert store.healthy(places, SHA256) is not None
    assert leftovers(places) == [] and list(places.quarantine.iterdir()) == []
    assert len(list(lease.leases(places))) == 7


def test_who_waited_for_a_removed_lock_file_takes_the_new_one(places: Places) -> None:
    store.prepare(places)
    path = places.cache_locks / "x.lock"
    log = places.state_dir / "log"

    def work(hold_s: float) -> None:
        with locks.locked(path, deadline=time.monotonic() + 10):
            with log.open("a") as file:
                file.write("in ")
            time.sleep(hold_s)
            with log.open("a") as file:
                file.write("out ")

    first = in_child(lambda: work(0.6))
    while not log.exists():
        time.sleep(0.01)
    waiters = [in_child(lambda: work(0.05)) for _ in range(6)]
    time.sleep(0.2)
    path.unlink()
    assert [ended(pid) for pid in [first, *waiters]] == [0] * 7
    assert log.read_text() == "in out " * 7


def test_a_hundred_that_wait_cost_next_to_nothing_and_are_woken_at_once(places: Places) -> None:
    """What they wait for needs the processors; whoever asked for it ten times a second would take them."""
    store.prepare(places)
    path, ready = places.cache_locks / "x.lock", places.state_dir / "ready"

    def wait() -> None:
        spent_s = time.process_time()
        with locks.locked(path, deadline=time.monotonic() + 30, instead=ready.exists) as held:
            assert not held
        assert time.process_time() - spent_s < 0.05
        assert time.time() - ready.stat().st_mtime < 1.5  # the next time they would ask by themselves

    with locks.locked(path, deadline=time.monotonic() + 5):
        waiting = [in_child(wait) for _ in range(100)]
        time.sleep(2)
        ready.touch()
    assert [ended(pid) for pid in waiting] == [0] * len(waiting)


def test_one_of_those_who_wait_takes_over_from_a_holder_that_dies(places: Places) -> None:
    store.prepare(places)
    path, made = places.cache_locks / "x.lock", places.state_dir / "made"

    def hold() -> None:
        with locks.locked(path, deadline=time.monotonic() + 5):
            os.kill(os.getpid(), signal.SIGSTOP)

    def make() -> None:
        with locks.locked(path, deadline=time.monotonic() + 30, instead=made.exists) as held:
            if held and not made.exists():  # as the cache does: look again
                made.touch(exist_ok=False)

    holder = in_child(hold)
    os.waitpid(holder, os.WUNTRACED)
    waiting = [in_child(make) for _ in range(20)]
    time.sleep(0.3)
    os.kill(holder, signal.SIGKILL)
    ended(holder)
    assert [ended(pid) for pid in waiting] == [0] * len(waiting)
    assert made.exists()


def test_a_wait_that_was_given_up_locks_nothing_when_its_turn_comes(places: Places) -> None:
    store.prepare(places)
    path = places.cache_locks / "x.lock"
    with locks.locked(path, deadline=time.monotonic() + 5):
        with pytest.raises(LrmsVmError), locks.locked(path, deadline=time.monotonic() + 0.1):
            pass
        with locks.locked(path, deadline=time.monotonic() + 5, instead=iter([False, True]).__next__) as held:
            assert not held
    time.sleep(0.1)  # their turn
    with locks.locked(path, deadline=time.monotonic()) as held:
        assert held


def test_two_prologues_of_one_job_share_its_lease(places: Places) -> None:
    pids = [in_child(lambda: acquire(places, served(), lease="local-1.n")) for _ in range(4)]
    assert [ended(pid) for pid in pids] == [0] * 4
    assert [held.key for held in lease.leases(places)] == ["local-1.n"]
    cache.release(places, "local-1.n")
    assert cache.evict(places, 0) == [SHA256]


def test_a_pid_that_is_used_again_does_not_keep_a_lease(places: Places) -> None:
    acquire(places, served())
    words = json.loads((places.leases / "local-1.n").read_text())
    assert words["pid"] == os.getpid() and cache.clean(places) == []
    (places.leases / "local-1.n").write_text(json.dumps({**words, "started": str(int(words["started"]) - 1)}))
    assert cache.clean(places) == ["lease local-1.n"]


def test_leases_of_an_earlier_boot_end_with_it_and_the_image_stays(places: Places) -> None:
    acquire(places, served())
    words = json.loads((places.leases / "local-1.n").read_text())
    (places.leases / "local-1.n").write_text(json.dumps({**words, "boot_id": "00000000-0000-0000-0000-000000000000"}))
    assert cache.clean(places) == ["lease local-1.n"]
    fetch = served()
    assert acquire(places, fetch, lease="local-2.n").sha256 == SHA256
    assert URL not in fetch.log


def test_a_pin_survives_a_crash_of_everything_else_and_the_image_too(places: Places) -> None:
    from lrms_vm import pins, upkeep

    acquire(places, served())
    cache.release(places, "local-1.n")
    upkeep.pin(places, SHA256, "production")

    def evict_and_die() -> None:
        real = os.rename

        def dying(*arguments: object) -> None:
            real(*arguments)  # type: ignore[arg-type]
            os.kill(os.getpid(), signal.SIGKILL)

        os.rename = dying  # type: ignore[assignment]
        with store.changing(places, deadline=time.monotonic() + 1):
            store.remove(places, SHA256)  # as one who had seen it before it was pinned

    assert ended(in_child(evict_and_die)) == -signal.SIGKILL
    cache.clean(places)
    assert store.healthy(places, SHA256) is not None
    assert [pin.sha256 for pin in pins.pins(places)] == [SHA256]
