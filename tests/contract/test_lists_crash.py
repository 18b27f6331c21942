"""A signed list being accepted when its process dies at any step, and when many processes want it. Real processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lrms_vm import list_copy, trust_state
from lrms_vm.config import Subscription
from lrms_vm.decision import Decision, JobDecision
from lrms_vm.errors import LrmsVmError
from lrms_vm.image import ImageEntry, parse_reference
from lrms_vm.list_refresh import Refresher, path_of
from lrms_vm.lists import Lists
from lrms_vm.paths import Places
from tests.cache_fakes import FakeFetch, places_at
from tests.lists import ALICE, ANCHORS, LIST, NOW, image, payload, policy, sign

URL = "https://images.example.org/atlas.image_list"
STEPS = ("checked", "listed", "ratcheted", "clocked")
OLD = sign(payload([image("atlas/old")], **{"hv:version": "7"}), ALICE)
NEW = sign(payload([image("atlas/new")], **{"hv:version": "8"}), ALICE)
LISTS = {"atlas": Subscription("atlas", URL)}


def find(places: Places, name: str, fetch: FakeFetch, step: Callable[[str], None] = lambda _: None) -> ImageEntry:
    decide = JobDecision(Decision(policy(), ANCHORS), "atlas001", (), "", NOW)
    refresher = Refresher(LISTS, places, decide, fetch, time.monotonic() + 20, step)
    entry = Lists(refresher).find(parse_reference(name, source="test"))
    assert entry is not None
    return entry


def serving(message: bytes) -> FakeFetch:
    return FakeFetch({URL: message})


def in_child(work: Callable[[], object]) -> int:
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


def version_of(places: Places) -> str:
    copy = list_copy.read(path_of(places, "atlas"))
    return copy.head.version if copy is not None else ""


def all_is_well(places: Places, before: str = "7") -> None:
    """Old or new, whole; what was once accepted as new is never older again; and nothing unfinished is left."""
    seen = [one.version for one in trust_state.read_ratchet(places).lists.values()]
    trust_state.read_clock(places)
    copied = version_of(places)
    assert copied in (before, "8") and seen in ([before] if before else [], ["8"])
    assert not (seen == ["8"] and copied != "8"), "the copy comes first"
    if copied == "8":
        os.utime(path_of(places, "atlas"), (1, 1))
        with pytest.raises(LrmsVmError):
            find(places, "atlas/old", serving(OLD))
        assert version_of(places) == "8"
    for path in places.cache_locks.glob("*.down"):
        path.unlink()
    time.sleep(0.01)
    assert find(places, "atlas/new", serving(NEW)).version == "1.2.3"
    assert [one.version for one in trust_state.read_ratchet(places).lists.values()] == ["8"]
    if copied != "8":
        names = [path.name for path in (*places.lists.iterdir(), *places.trust.iterdir())]
        assert [name for name in names if name.startswith((".atlas", ".ratchet"))] == []


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("step", STEPS)
def test_a_process_killed_at_a_step_leaves_the_old_list_or_the_new(tmp_path: Path, step: str, first: bool) -> None:
    places = places_at(tmp_path)
    if not first:
        find(places, "atlas/old", serving(OLD))
    work = in_child(lambda: find(places, "atlas/new", serving(NEW), lambda name: die() if name == step else None))
    assert ended(work) == -signal.SIGKILL
    all_is_well(places, "" if first else "7")


def test_every_step_is_reached(tmp_path: Path) -> None:
    reached: list[str] = []
    find(places_at(tmp_path), "atlas/old", serving(OLD), reached.append)
    assert tuple(reached) == STEPS


@pytest.mark.parametrize("call", ["rename", "fsync", "fchmod", "mkdir", "open", "pwrite", "utime"])
def test_a_process_killed_after_any_system_call_leaves_the_old_list_or_the_new(tmp_path: Path, call: str) -> None:
    """Count the calls of one kind in a whole acceptance; then die right after the first, the second, ..."""

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

    for count in range(1, 60):
        places = places_at(tmp_path / str(count))
        find(places, "atlas/old", serving(OLD))

        def work(count: int = count, places: Places = places) -> None:
            dying_after(count)
            find(places, "atlas/new", serving(NEW))

        status = ended(in_child(work))
        assert status in (0, -signal.SIGKILL)
        all_is_well(places)
        if status == 0:
            return
    pytest.fail("more calls than expected")


class Logged(FakeFetch):
    """Appends to a file what it was asked for: all processes see it."""

    path: Path
    wait_s = 0.0

    def fetch(self, url: str, *, max_bytes: int, deadline: float) -> Iterator[bytes]:
        with self.path.open("a") as file:
            file.write("x")
        time.sleep(self.wait_s)
        return super().fetch(url, max_bytes=max_bytes, deadline=deadline)


def logged(tmp_path: Path, served: Any, wait_s: float = 0.3) -> Logged:
    fetch = Logged({URL: served} if served is not None else {})
    fetch.path, fetch.wait_s = tmp_path / "log", wait_s
    return fetch


def test_many_jobs_make_one_request(tmp_path: Path) -> None:
    places, fetch = places_at(tmp_path), logged(tmp_path, OLD)
    pids = [in_child(lambda: find(places, "atlas/old", fetch)) for _ in range(24)]
    assert [ended(pid) for pid in pids] == [0] * 24
    assert fetch.path.read_text() == "x"


def test_many_jobs_do_not_each_wait_for_a_server_that_does_not_answer(tmp_path: Path) -> None:
    places, fetch = places_at(tmp_path), logged(tmp_path, None)
    start = time.monotonic()
    pids = [in_child(lambda: find(places, "atlas/old", fetch)) for _ in range(24)]
    assert [ended(pid) for pid in pids] == [1] * 24
    assert fetch.path.read_text() == "x" and time.monotonic() - start < 5


def test_while_one_process_refreshes_the_others_use_the_copy(tmp_path: Path) -> None:
    places = places_at(tmp_path)
    find(places, "atlas/old", serving(OLD))
    os.utime(path_of(places, "atlas"), (1, 1))
    fetch = logged(tmp_path, OLD, wait_s=60)
    slow = in_child(lambda: find(places, "atlas/old", fetch))
    try:
        while not fetch.path.exists():
            time.sleep(0.01)
        start = time.monotonic()
        assert find(places, "atlas/old", serving(OLD)).name == "atlas/old"
        assert time.monotonic() - start < 1
    finally:
        os.kill(slow, signal.SIGKILL)
        ended(slow)
    assert find(places, "atlas/old", serving(OLD)).name == "atlas/old"


def test_two_lists_accepted_at_once_are_both_in_the_ratchet(tmp_path: Path) -> None:
    places = places_at(tmp_path)
    names = [f"list{number}" for number in range(8)]
    lists = {name: Subscription(name, f"https://x.example.org/{name}") for name in names}
    served = {lists[name].url: sign(payload(**{"dc:identifier": name}), ALICE) for name in names}

    def work(name: str) -> None:
        decide = JobDecision(Decision(policy(), ANCHORS), "atlas001", (), "", NOW)
        Refresher(lists, places, decide, FakeFetch(dict(served)), time.monotonic() + 20).refresh(name)

    pids = [in_child(lambda name=name: work(name)) for name in names]
    assert [ended(pid) for pid in pids] == [0] * 8
    assert sorted(name for name, _ in trust_state.read_ratchet(places).lists) == names
    assert LIST not in names
