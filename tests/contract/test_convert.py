"""A signed qcow2 in the cache: converted once, in a sandbox that sees nothing, and decided upon as what was signed."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lrms_vm import cache, command, convert, lease, store, upkeep
from lrms_vm.errors import LrmsVmError, NodeError, RequestError, SiteError
from lrms_vm.fetch import unprivileged
from lrms_vm.image import ImageEntry, VerifiedImage
from lrms_vm.ingest import Received
from lrms_vm.paths import Places
from tests.cache_fakes import FakeClaim, FakeDecide, FakeFetch, acquire, leftovers, places_at, served
from tests.hostile.qcow2_files import backing, disk, put, sound

QCOW2 = bytes(sound())
DISK = disk()
BOTH = ("raw", "qcow2")


@dataclass(frozen=True)
class Offer:
    """An image at a place of its own, with its signature."""

    url: str
    fetch: FakeFetch

    @property
    def times_fetched(self) -> int:
        return self.fetch.log.count(self.url)


def offer(image: bytes, algorithm: str = "sha256") -> Offer:
    url = f"http://images.example.org/{hashlib.sha256(image).hexdigest()[:16]}-{algorithm}.img"
    return Offer(url, served(image, algorithm, url))


def take(places: Places, offered: Offer, **more: Any) -> VerifiedImage:
    return acquire(places, offered.fetch, entry=ImageEntry(name="hep", url=offered.url), **more)


def both(places: Places, offered: Offer, **more: Any) -> VerifiedImage:
    return take(places, offered, decide=FakeDecide(formats=BOTH, blind=more.pop("blind", False)), **more)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return places_at(tmp_path)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("blind", [False, True])
def test_a_qcow2_becomes_the_raw_disk_in_it_once(places: Places, algorithm: str, blind: bool) -> None:
    offered = offer(QCOW2, algorithm)
    image = both(places, offered, blind=blind)
    path = Path(image.path)
    assert path.read_bytes() == DISK
    assert (image.sha256, image.size_bytes) == (hashlib.sha256(DISK).hexdigest(), len(DISK))
    status = path.stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_nlink) == (0o444, os.geteuid(), 1)
    assert status.st_blocks * 512 < len(DISK)
    assert both(places, offered, blind=blind, lease="local-2.n") == image
    assert offered.times_fetched == 1
    assert (leftovers(places), [entry.sound for entry in cache.entries(places)]) == ([], [True])
    (origin,) = (store.healthy(places, image.sha256) or pytest.fail("not sound")).origins
    assert (origin.format, origin.size_bytes, origin.sha256) == (
        *("qcow2", len(QCOW2)),
        hashlib.sha256(QCOW2).hexdigest(),
    )


def code_of(places: Places, offered: Offer, **more: Any) -> str:
    with pytest.raises(LrmsVmError) as caught:
        take(places, offered, **more)
    return caught.value.code


def test_where_policy_takes_raw_only_a_qcow2_is_refused_and_nothing_is_kept(places: Places) -> None:
    assert code_of(places, offer(QCOW2)) == "image-not-raw"
    assert (leftovers(places), cache.entries(places), list(lease.leases(places))) == ([], [], [])


def test_unsigned_bytes_are_not_looked_into(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    offered = offer(QCOW2)
    offered.fetch.served[offered.url] = QCOW2[:-1] + b"x"
    monkeypatch.setattr(convert, "as_raw", lambda *_, **__: pytest.fail("looked into"))
    assert code_of(places, offered, decide=FakeDecide(formats=BOTH)) == "bytes-differ"


def test_a_policy_that_takes_qcow2_no_more_refuses_the_converted_image_too(places: Places) -> None:
    both(places, offer(QCOW2))
    cache.release(places, "local-1.n")
    assert code_of(places, offer(QCOW2)) == "format-not-allowed"
    assert list(lease.leases(places)) == []


def test_a_raw_image_is_refused_where_its_list_says_qcow2(places: Places) -> None:
    assert code_of(places, offer(DISK), decide=FakeDecide(formats=("qcow2",))) == "format-not-allowed"


def test_all_that_become_the_same_disk_share_one_entry(places: Places) -> None:
    other = sound()
    put(other, 80, ">Q", 1)  # another file, the same disk
    for number, offered in enumerate([offer(DISK), offer(QCOW2), offer(bytes(other)), offer(QCOW2, "sha512")] * 2):
        assert Path(both(places, offered, lease=f"local-{number}.n").path).read_bytes() == DISK
        assert offered.times_fetched == 1
    (entry,) = cache.entries(places)
    meta = store.healthy(places, entry.sha256)
    assert meta is not None
    assert [sorted(one.digests) for one in meta.origins] == [["sha256"], ["sha256", "sha512"]]
    assert cache.verify(places, entry.sha256)
    verified = store.healthy(places, entry.sha256)
    assert verified is not None and verified.origins == meta.origins


def test_only_the_newest_origins_are_remembered(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_ORIGINS", 2)
    for number in range(4):
        file = sound()
        put(file, 80, ">Q", number << 8)
        both(places, offer(bytes(file)))
    (entry,) = cache.entries(places)
    meta = store.read_meta(store.entry_dir(places, entry.sha256))
    assert meta is not None and len(meta.origins) == 2
    assert both(places, offer(QCOW2)).sha256 == entry.sha256  # the first, forgotten: converted again


def test_a_link_to_a_disk_that_is_not_known_to_be_of_these_bytes_is_not_followed(places: Places) -> None:
    """Even one that somebody could write: what an image was made of is in its own meta.json."""
    other = take(places, offer(b"another disk"), lease="local-9.n")
    both(places, offer(QCOW2))
    (ref,) = places.signatures.glob("*.ref")
    _, signed = ref.read_text().split()
    for text in (f"{other.sha256} {signed}", f"{other.sha256} {other.sha256}", other.sha256, "x", "a b c", ""):
        ref.write_text(text)
        assert Path(both(places, offer(QCOW2)).path).read_bytes() == DISK


def test_a_converted_image_that_was_changed_is_put_aside_and_converted_again(places: Places) -> None:
    image = both(places, offer(QCOW2))
    path = Path(image.path)
    path.chmod(0o644)
    path.write_bytes(DISK[:-1] + b"x")
    path.chmod(0o444)
    assert Path(both(places, offer(QCOW2)).path).read_bytes() == DISK
    assert [one.name for one in places.quarantine.iterdir()] == [image.sha256]


def test_a_converted_image_that_was_only_touched_proves_itself_and_keeps_its_origin(places: Places) -> None:
    image, offered = both(places, offer(QCOW2)), offer(QCOW2)
    os.utime(image.path, (1, 1))
    assert both(places, offered) == image
    assert offered.times_fetched == 0
    (store.entry_dir(places, image.sha256) / "meta.json").write_text("{")
    assert both(places, offered) == image
    assert offered.times_fetched == 1  # nobody knows any more what it was made of
    assert upkeep.entries(places)[0].sound


def test_a_size_that_the_list_does_not_say_is_refused(places: Places) -> None:
    @dataclass
    class Listed(FakeDecide):
        def claim(self, files: Any, name: str) -> Any:
            claim = super().claim(files, name)
            object.__setattr__(claim, "virtual_size_bytes", len(DISK) + 512)
            return claim

    for file in (QCOW2, DISK):
        assert code_of(places, offer(file), decide=Listed(formats=BOTH)) == "image-size-differs"


# --- crashes


@contextmanager
def in_child(work: Any) -> Iterator[int]:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    yield pid
    os.waitpid(pid, 0)


def all_is_well(places: Places) -> None:
    assert Path(both(places, offer(QCOW2), lease="local-2.n").path).read_bytes() == DISK
    cache.clean(places)
    assert leftovers(places) == []
    assert [held.key for held in lease.leases(places)] == ["local-2.n"]
    assert list(places.quarantine.iterdir()) == []


def die(_: object = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_killed_at_a_step_leaves_a_cache_that_works(tmp_path: Path) -> None:
    steps: list[str] = []
    both(places_at(tmp_path / "all"), offer(QCOW2), step=steps.append)
    assert "converted" in steps
    for step in steps:
        places = places_at(tmp_path / step)
        places.state_dir.parent.mkdir()
        with in_child(lambda: both(places, offer(QCOW2), step=lambda name: die() if name == step else None)):
            pass
        all_is_well(places)


@pytest.mark.parametrize("call", ["rename", "fsync", "fchmod", "fchown"])
def test_a_process_killed_after_any_system_call_leaves_a_cache_that_works(tmp_path: Path, call: str) -> None:
    """From the moment the bytes are accepted on: what comes before is as for any image."""

    def dying_after(count: int) -> None:
        real, left = getattr(os, call), [count]

        def counted(*args: Any, **more: Any) -> Any:
            result = real(*args, **more)
            left[0] -= 1
            if left[0] == 0:
                die()
            return result

        setattr(os, call, counted)  # only in the forked child

    for count in range(1, 40):
        places = places_at(tmp_path / str(count))
        places.state_dir.parent.mkdir()
        done = tmp_path / f"{count}.done"

        def work(count: int = count, places: Places = places, done: Path = done) -> None:
            both(places, offer(QCOW2), step=lambda name: dying_after(count) if name == "written" else None)
            done.touch()

        with in_child(work):
            pass
        all_is_well(places)
        if done.exists():
            assert count > 1
            return
    pytest.fail("more calls than expected")


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program in the sandbox writes something and then does not end."""
    real = convert.sandbox_argv

    def argv(*args: Any, **more: Any) -> list[str]:
        made = real(*args, **more)
        return [*made[: made.index(convert.QEMU_IMG)], "/usr/bin/sh", "-c", "cat /image > /raw; sleep 60"]

    monkeypatch.setattr(convert, "sandbox_argv", argv)


def converting(places: Places) -> list[int]:
    """The processes that have a part of this cache in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if os.fsencode(places.ingest) in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def eventually(question: Callable[[], bool]) -> bool:
    until = time.monotonic() + 10
    while not (answer := question()) and time.monotonic() < until:
        time.sleep(0.001)
    return answer


def gone(places: Places) -> bool:
    return eventually(lambda: not converting(places))


def test_a_process_killed_while_converting_takes_the_sandbox_with_it(
    places: Places, stuck: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    places.state_dir.parent.mkdir(exist_ok=True)
    with in_child(lambda: both(places, offer(QCOW2))) as pid:
        begun = eventually(lambda: any(raw.stat().st_blocks for raw in places.ingest.glob("*/raw")))
        os.kill(pid, signal.SIGKILL)
    assert begun
    assert gone(places)
    assert len(cache.clean(places)) == 1
    monkeypatch.undo()
    all_is_well(places)


def test_a_partial_that_is_taken_up_again_may_hold_half_a_disk(tmp_path: Path) -> None:
    """What is fetched by a signed tree of chunks stays after a crash, and so does what was beside it."""
    (tmp_path / "image").write_bytes(QCOW2)
    (tmp_path / "raw").write_bytes(b"half")
    digest = hashlib.sha256(QCOW2).digest()
    claim: Any = FakeClaim("sha256", digest, digest, BOTH)
    received = Received({"sha256": digest}, store.stamp_of((tmp_path / "image").lstat()))
    with pytest.raises(SiteError):
        convert.as_raw(tmp_path, received, claim, source="q", deadline=time.monotonic() - 1)
    assert (tmp_path / "image").read_bytes() == QCOW2
    vouched, raw = convert.as_raw(tmp_path, received, claim, source="q", deadline=time.monotonic() + 20)
    assert (tmp_path / "image").read_bytes() == DISK
    assert (vouched.format, raw.size_bytes, [one.name for one in tmp_path.iterdir()]) == ("qcow2", len(DISK), ["image"])


def test_at_the_deadline_the_sandbox_ends(places: Places, tmp_path: Path, stuck: None) -> None:
    source = tmp_path / "q"
    source.write_bytes(QCOW2)
    places.state_dir.parent.mkdir(exist_ok=True)
    store.prepare(places)
    start = time.monotonic()
    with pytest.raises(SiteError) as caught:
        convert.to_raw(source, places.ingest / "raw", max_virtual_bytes=1 << 30, deadline=start + 0.3)
    assert caught.value.code == "image-conversion-slow"
    assert 0.3 < time.monotonic() - start < 5.0
    assert gone(places)


# --- the sandbox


def inside(tmp_path: Path, program: list[str], *, identity: Any = None, image: bytes = b"the image") -> str:
    """Run something else where qemu-img would run; return what it says."""
    for name, text in (("image", image), ("raw", b"")):
        (tmp_path / name).write_bytes(text)
    (tmp_path / "image").chmod(0o444)
    if identity is not None:
        os.chown(tmp_path / "raw", identity.uid, identity.gid)
    links = {path: os.path.islink(path) for path in ("/lib", "/lib64", "/lib32") if os.path.exists(path)}
    argv = convert.sandbox_argv(
        tmp_path / "image", tmp_path / "raw", identity=identity, max_bytes=1 << 20, max_cpu_s=5, links=links
    )
    argv = [*argv[: argv.index(convert.QEMU_IMG)], *program]
    return subprocess.run(argv, capture_output=True, text=True, timeout=20, env={"PATH": command.PATH}).stdout


SHELL = """
echo uid $(id -u) gid $(id -g) groups $(id -G)
for path in /*; do echo sees $path; done
cat /etc/passwd /proc/self/mem /raw/../etc/shadow 2>/dev/null && echo reads
echo x 2>/dev/null > /image && echo writes the image
echo x 2>/dev/null > /new && echo writes beside
echo x > /raw && echo writes raw
cat /usr/bin/qemu-img /usr/bin/qemu-img 2>/dev/null > /raw; echo size $(stat -c %s /raw)
ulimit -c; ulimit -n
"""
PYTHON = """
import os, socket
try: bytearray(1 << 30)
except MemoryError: print("memory is bounded")
print("interfaces", [name for _, name in socket.if_nameindex()])
try: socket.create_connection(("127.0.0.1", 22), 1)
except OSError as error: print("network", error.errno)
try: os.setuid(0)
except PermissionError: print("no way back")
"""


def test_in_the_sandbox_there_is_nothing_but_the_two_files(tmp_path: Path) -> None:
    identity = unprivileged()
    assert identity is not None, "these tests run as root"
    lines = inside(tmp_path, ["/usr/bin/sh", "-c", SHELL], identity=identity).splitlines()
    assert lines[0] == f"uid {identity.uid} gid {identity.gid} groups {identity.gid}"
    seen = {line.removeprefix("sees ") for line in lines if line.startswith("sees ")}
    assert seen - {"/lib", "/lib64", "/lib32", "/etc"} == {"/usr", "/image", "/raw", "/dev"}
    assert [line for line in lines if "reads" in line or "writes" in line] == ["writes raw"]
    assert lines[-3:] == [f"size {1 << 20}", "0", "64"]


def test_in_the_sandbox_there_is_no_network_little_memory_and_no_way_back(tmp_path: Path) -> None:
    lines = inside(tmp_path, ["/usr/bin/python3", "-I", "-c", PYTHON], identity=unprivileged()).splitlines()
    assert lines[0] == "memory is bounded"
    assert lines[1] == "interfaces ['lo']"
    assert lines[2].startswith("network ")
    assert lines[3] == "no way back"


@pytest.mark.parametrize("form", ["path", "json", "chain"])
def test_even_an_image_that_our_reader_did_not_see_reads_no_other_file(tmp_path: Path, form: str) -> None:
    canary = tmp_path / "canary"
    canary.write_bytes(b"CANARY" * 50_000)
    tmp_path.chmod(0o755)
    canary.chmod(0o644)
    names = {
        "path": os.fsencode(canary),
        "json": b'json:{"driver":"raw","file":{"driver":"file","filename":"%s"}}' % os.fsencode(canary),
        "chain": b"/image",
    }
    file = sound()
    backing(names[form])(file)
    source = tmp_path / "q"
    source.write_bytes(file)
    source.chmod(0o444)
    plain = subprocess.run(["qemu-img", "convert", "-O", "raw", source, tmp_path / "plain"], capture_output=True)
    if form != "chain":
        assert plain.returncode == 0 and b"CANARY" in (tmp_path / "plain").read_bytes(), (
            "the attack does not work at all"
        )
    with pytest.raises(RequestError) as caught:
        convert.to_raw(source, tmp_path / "raw", max_virtual_bytes=1 << 20, deadline=time.monotonic() + 20)
    assert caught.value.code == "image-unconvertible"
    assert b"CANARY" not in (tmp_path / "raw").read_bytes()


def test_a_disk_larger_than_was_told_is_cut_off(tmp_path: Path) -> None:
    source = tmp_path / "q"
    source.write_bytes(QCOW2)
    with pytest.raises(RequestError) as caught:
        convert.to_raw(source, tmp_path / "raw", max_virtual_bytes=len(DISK) - 512, deadline=time.monotonic() + 20)
    assert caught.value.code == "image-unconvertible"


def test_without_a_sandbox_nothing_is_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "q"
    source.write_bytes(QCOW2)
    monkeypatch.setattr(convert, "SETPRIV", "/usr/bin/absent")
    with pytest.raises(NodeError) as caught:
        convert.to_raw(source, tmp_path / "raw", max_virtual_bytes=1 << 20, deadline=time.monotonic() + 20)
    assert caught.value.code == "sandbox-failed"
    monkeypatch.setattr(convert, "BWRAP", "/usr/bin/absent")
    with pytest.raises(NodeError) as caught:
        convert.to_raw(source, tmp_path / "raw2", max_virtual_bytes=1 << 20, deadline=time.monotonic() + 20)
    assert caught.value.code == "command-missing"


def test_a_full_disk_is_the_nodes_fault(tmp_path: Path) -> None:
    """In a name space of its own, on a file system of 64 KiB."""
    code = f"""
import subprocess, sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent.parent.parent)!r})
from lrms_vm import convert
small = Path({str(tmp_path)!r}) / "small"
small.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", small], check=True)
try:
    convert.to_raw(Path({str(tmp_path)!r}) / "q", small / "raw", max_virtual_bytes=1 << 30, deadline=time.monotonic() + 20)
except OSError as error:
    print(error.errno, error.filename)
"""
    (tmp_path / "q").write_bytes(QCOW2)
    python = [sys.executable, "-c", code]
    done = subprocess.run(["unshare", "--mount", *python], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["28", str(tmp_path / "small/raw")], done.stderr
