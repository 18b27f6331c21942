from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest

from lrms_vm import cache, scrub, store, upkeep
from lrms_vm.errors import NodeError
from lrms_vm.image import ImageEntry
from lrms_vm.paths import Places
from lrms_vm.scrub import DAMAGED, GOOD, UNFINISHED, Pace
from lrms_vm.trust import tree
from tests.cache_fakes import IMAGE, acquire, places_at, served

MIB = 1 << 20
LARGE = b"boot" + bytes(3 * MIB) + b"x" * (4 * MIB) + b"end"


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return places_at(tmp_path)


@pytest.fixture(autouse=True)
def not_said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What the node's log is told."""
    told: list[tuple[str, str]] = []
    monkeypatch.setattr("lrms_vm.journal.say", lambda level, key, text: told.append((level, text)))
    return told


def bring(places: Places, body: bytes = LARGE, number: int = 1) -> str:
    entry = ImageEntry(name=f"i{number}", url=f"http://x/{number}.img")
    return acquire(places, served(body, url=entry.url), entry=entry, lease=f"local-{number}.n").sha256


def rot(path: Path, offset: int) -> None:
    """One byte differs and the inode does not show it: what was kept of it is set to what it is now."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        old = file.read(1)
        file.seek(offset)
        file.write(bytes([old[0] ^ 1]))
    path.chmod(0o444)
    words = json.loads(path.with_name("meta.json").read_text())
    words["stamp"] = list(store.stamp_of(path.lstat()))
    path.with_name("meta.json").write_text(json.dumps(words))


def states(places: Places, **pace: object) -> list[str]:
    return [one.state for one in scrub.scrub(places, Pace(**pace))]  # type: ignore[arg-type]


def image_of(places: Places, sha256: str) -> Path:
    return store.entry_dir(places, sha256) / "image"


def forget_leaves(places: Places, sha256: str) -> None:
    (store.entry_dir(places, sha256) / store.LEAVES).unlink(missing_ok=True)


def test_a_sound_image_is_good_twice_and_the_second_time_by_its_leaves(places: Places) -> None:
    sha256 = bring(places)
    forget_leaves(places, sha256)
    before = time.time()
    assert states(places) == [GOOD]
    leaves = store.read_leaves(store.entry_dir(places, sha256), len(LARGE))
    assert leaves is not None and leaves.chunk_bytes == tree.CHUNK_BYTES
    assert cache.entries(places)[0].verified_at >= before
    assert states(places) == [GOOD]


def test_rot_is_named_put_aside_said_and_fetched_again(places: Places, not_said: list[tuple[str, str]]) -> None:
    sha256 = bring(places)
    assert states(places) == [GOOD]
    rot(image_of(places, sha256), 5 * MIB)
    [done] = scrub.scrub(places, Pace())
    assert done.state == DAMAGED
    assert done.found == f"1 of 4 chunks differ: 2 (bytes {4 * MIB} to {6 * MIB - 1})"
    assert list(store.stored(places)) == []
    [level, text] = not_said[-1]
    assert level == "error" and sha256 in text and "chunks differ" in text and "local-1.n" in text
    assert [one.sha256 for one in upkeep.quarantine(places)] == [sha256]
    assert bring(places) == sha256
    assert states(places) == [GOOD]


def test_rot_is_found_the_first_time_too(places: Places) -> None:
    sha256 = bring(places)
    forget_leaves(places, sha256)
    rot(image_of(places, sha256), 5 * MIB)
    assert states(places) == [DAMAGED]


def test_bytes_in_what_was_a_hole_are_rot(places: Places) -> None:
    sha256 = bring(places, b"a" + bytes(8 * MIB))
    assert states(places) == [GOOD]
    rot(image_of(places, sha256), 5 * MIB)
    assert states(places) == [DAMAGED]


@pytest.mark.parametrize("damage", [b"", b"\0" * 8, b"\0\0\0\0\0\x20\0\0" + b"x" * 200, b"\xff" * 8])
def test_leaves_that_are_not_whole_are_made_again(places: Places, damage: bytes) -> None:
    sha256 = bring(places)
    assert states(places) == [GOOD]
    path = store.entry_dir(places, sha256) / store.LEAVES
    path.write_bytes(damage)
    assert states(places) == [GOOD]
    assert store.read_leaves(path.parent, len(LARGE)) is not None


def test_leaves_are_never_believed_against_the_name(places: Places) -> None:
    sha256 = bring(places)
    assert states(places) == [GOOD]
    directory = store.entry_dir(places, sha256)
    leaves = store.read_leaves(directory, len(LARGE))
    assert leaves is not None
    store.write_leaves(directory, type(leaves)(leaves.chunk_bytes, (bytes(32), *leaves.leaves[1:])))
    assert states(places) == [GOOD]
    assert store.healthy(places, sha256) is not None


def test_the_longest_unread_comes_first(places: Places) -> None:
    first, second = bring(places, number=1), bring(places, IMAGE, number=2)
    assert [one.sha256 for one in scrub.scrub(places, Pace())] == [first, second]
    assert cache.verify(places, first)
    assert [one.sha256 for one in scrub.scrub(places, Pace())] == [second, first]


def test_when_the_time_is_up_the_next_scrub_goes_on_there(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = bring(places)
    bring(places, IMAGE, number=2)
    assert states(places) == [GOOD, GOOD]
    over = iter([False, False, False, True])  # before the image, and before each chunk
    monkeypatch.setattr(Pace, "over", lambda _: next(over))
    [done] = scrub.scrub(places, Pace())
    assert (done.sha256, done.state) == (sha256, UNFINISHED)
    monkeypatch.undo()
    monkeypatch.setattr("lrms_vm.journal.say", lambda *_: None)
    resumed, other = scrub.scrub(places, Pace())
    assert (resumed.sha256, resumed.state, other.state) == (sha256, GOOD, GOOD)
    assert done.read_bytes == 4 * MIB and resumed.read_bytes == 2 * MIB + (len(LARGE) - 6 * MIB)
    assert not places.scrub.exists()


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 2000, b'{"sha256": 1, "stamp": [1e999, 0, 0, 0, 0], "chunk": 1}'])
def test_a_damaged_cursor_is_not_there(places: Places, text: bytes) -> None:
    bring(places)
    places.scrub.write_bytes(text)
    assert states(places) == [GOOD]


def test_reading_keeps_to_its_pace(places: Places) -> None:
    bring(places)
    slept: list[float] = []
    states(places, bytes_per_s=10 * MIB, sleep=slept.append)
    states(places, bytes_per_s=10 * MIB, sleep=slept.append)
    assert slept and max(slept) == pytest.approx(0.5, abs=0.25)  # five MiB of data, the holes are free


def test_a_disk_that_cannot_read_is_damage_and_a_process_without_files_is_not(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = bring(places)
    assert states(places) == [GOOD]
    real = os.preadv
    for number, expected in ((errno.EMFILE, None), (errno.EIO, DAMAGED)):

        def failing(fd: int, buffers: object, offset: int, number: int = number) -> int:
            if offset >= 4 * MIB:
                raise OSError(number, os.strerror(number))
            return real(fd, buffers, offset)  # type: ignore[arg-type]

        def failing_too(fd: int, count: int, offset: int, number: int = number) -> bytes:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "preadv", failing)
        monkeypatch.setattr(os, "pread", failing_too)
        if expected is None:
            with pytest.raises(NodeError):
                states(places)
            assert store.healthy(places, sha256) is not None
        else:
            assert states(places) == [expected]


def test_a_touched_image_proves_itself(places: Places) -> None:
    sha256 = bring(places)
    os.utime(image_of(places, sha256))
    assert states(places) == [GOOD]
    assert store.healthy(places, sha256) is not None


def test_an_image_evicted_while_it_is_read_is_gone(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = bring(places)
    cache.release(places, "local-1.n")
    real = os.posix_fadvise

    def evicting(*arguments: int) -> None:
        cache.evict(places, 0)
        real(*arguments)

    monkeypatch.setattr(os, "posix_fadvise", evicting)
    assert [(one.sha256, one.state) for one in scrub.scrub(places, Pace())] == [(sha256, scrub.GONE)]


def test_the_processors_are_given_back(places: Places) -> None:
    before = os.sched_getscheduler(0)
    with scrub.idle():
        assert os.sched_getscheduler(0) == os.SCHED_IDLE
    assert os.sched_getscheduler(0) == before
