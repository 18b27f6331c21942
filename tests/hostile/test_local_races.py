"""What somebody on the node could do between one look at an image and the next. C110 to C121 of the corpus.

Root alone can reach the store; these are mistakes of root's own, of a backup program, or of a node half broken into.
Whatever is done to the files, a job gets the bytes that were signed, or a refusal.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lrms_vm import cache, store
from lrms_vm.errors import LrmsVmError, RequestError
from lrms_vm.fetch import Fetch
from lrms_vm.image import ImageEntry
from lrms_vm.paths import Places
from tests.cache_fakes import ENTRY, IMAGE, URL, FakeDecide, FakeFetch, acquire, leftovers, places_at, served, sign

SHA256 = hashlib.sha256(IMAGE).hexdigest()
OTHER = b"evil" * (len(IMAGE) // 4) + bytes(len(IMAGE) % 4)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts: needs root")


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return places_at(tmp_path)


def again(places: Places) -> tuple[bytes, int]:
    """The bytes the next job gets, and how often the server was asked for the image for it."""
    fetch = served()
    return Path(acquire(places, fetch, lease="local-2.n").path).read_bytes(), fetch.log.count(URL)


def stored(places: Places) -> Path:
    return Path(acquire(places, served()).path)


def test_c110_another_file_of_the_name_is_not_served(places: Places, tmp_path: Path) -> None:
    path = stored(places)
    other = tmp_path / "other"
    other.write_bytes(OTHER)
    other.chmod(0o444)
    status = path.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)
    assert again(places) == (IMAGE, 1)


def test_c111_bytes_changed_in_place_are_not_served_though_size_and_times_are_the_same(places: Places) -> None:
    path = stored(places)
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"evil")
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert again(places) == (IMAGE, 1)


@pytest.mark.parametrize("mapped", [False, True])
def test_c112_an_image_that_somebody_still_writes_to_is_not_published(places: Places, mapped: bool) -> None:
    held: list[Any] = []

    def step(name: str) -> None:
        if name == "written":
            (part,) = (path for path in places.ingest.rglob("image") if path.is_file())
            file = part.open("r+b")
            held.append(file)
            if mapped:
                held[:] = [mmap.mmap(file.fileno(), 0)]
                file.close()

    with pytest.raises(LrmsVmError) as caught:
        acquire(places, served(), step=step, deadline=time.monotonic() + 3)
    held[0].close()
    assert caught.value.code == "image-writer"
    assert cache.entries(places) == [] and leftovers(places) == []


def test_c113_a_second_name_of_the_file_lets_nobody_change_it_unseen(places: Places, tmp_path: Path) -> None:
    path = stored(places)
    second = tmp_path / "second-name"
    os.link(path, second)
    second.chmod(0o644)
    with second.open("r+b") as file:
        file.write(b"evil")
    second.chmod(0o444)
    assert again(places) == (IMAGE, 1)


@needs_root
def test_c114_another_file_mounted_over_the_image_is_not_served(places: Places, tmp_path: Path) -> None:
    path = stored(places)
    other = tmp_path / "other"
    other.write_bytes(OTHER)
    other.chmod(0o444)
    subprocess.run(["mount", "--bind", str(other), str(path)], check=True)
    try:
        try:
            got: Any = again(places)[0]
        except LrmsVmError as error:
            got = error.code
    finally:
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mounted in (one for one in mounts if one.startswith(str(tmp_path))):  # put aside, it went along
            subprocess.run(["umount", "-l", mounted], check=True)
    assert got != OTHER
    assert again(places)[0] == IMAGE


def test_c118_a_name_that_is_there_before_us_is_neither_followed_nor_used(places: Places, tmp_path: Path) -> None:
    store.prepare(places)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    for name in (f"sha256-{SHA256}.part", f"sha256-{SHA256}.kept.part", SHA256):
        (places.ingest / name).symlink_to(victim)
    assert again(places) == (IMAGE, 1)
    assert victim.read_bytes() == b"precious"


def test_c120_a_policy_that_changes_while_the_image_comes_counts_for_the_next_job_at_the_latest(places: Places) -> None:
    decide = FakeDecide()

    class Slow(FakeFetch):
        def fetch(self, url: str, *, max_bytes: int, deadline: float) -> Iterator[bytes]:
            if url == URL:
                decide.refuse = RequestError("its builder is blocked now", code="builder-blocked")
            return super().fetch(url, max_bytes=max_bytes, deadline=deadline)

    fetch = Slow({URL: IMAGE, f"{URL}.p7s": sign(IMAGE)})
    code = None
    try:
        acquire(places, fetch, decide=decide)
    except LrmsVmError as error:
        code = error.code
    assert code in (None, "builder-blocked")
    with pytest.raises(RequestError) as caught:
        acquire(places, fetch, decide=decide, lease="local-2.n")
    assert caught.value.code == "builder-blocked"


def test_a_source_that_changes_while_it_is_copied_is_not_what_was_signed(places: Places, tmp_path: Path) -> None:
    source = tmp_path / "hep.img"
    source.write_bytes(IMAGE)
    (tmp_path / "hep.img.p7s").write_bytes(sign(IMAGE))
    entry = ImageEntry(name="hep", url=str(source))
    stop = threading.Event()

    def scribble() -> None:
        with source.open("r+b") as file:
            while not stop.is_set():
                for text in (b"evil", IMAGE[:4]):
                    file.seek(len(IMAGE) // 2)
                    file.write(text)
                    file.flush()

    writer = threading.Thread(target=scribble)
    writer.start()
    try:
        for number in range(10):
            try:
                image = acquire(places, Fetch(), entry=entry, lease=f"local-{number}.n")
            except RequestError as error:
                assert error.code in ("bytes-differ", "image-short"), error
            else:
                assert hashlib.sha256(Path(image.path).read_bytes()).hexdigest() == SHA256
    finally:
        stop.set()
        writer.join()
    assert ENTRY.name == entry.name


@pytest.mark.parametrize(
    "lie",
    [
        lambda words: words["digests"].update(sha256="0" * 64),
        lambda words: words.update(stamp=[0, 0, 0, 0, 0]),
        lambda words: words.update(stamp=words["stamp"][:4]),
        lambda words: words.update(
            origins=[{"digests": {"sha256": "0" * 64}, "size_bytes": 1, "format": "qcow2"}] * 99
        ),
    ],
)
def test_a_meta_that_lies_lets_nothing_else_in(places: Places, lie: Callable[[dict[str, Any]], None]) -> None:
    meta = stored(places).with_name("meta.json")
    words = json.loads(meta.read_text())
    lie(words)
    meta.write_text(json.dumps(words))
    assert again(places)[0] == IMAGE
