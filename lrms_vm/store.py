"""The content-addressed store: store/sha256/ab/<hex>/{image,meta.json}. The name is the sha256 of the bytes.

Names appear and disappear only under one lock (`changing`), held for moments. Readers take none: they write a lease,
then read meta.json and compare the file's stamp with it. Removal goes the other way round, meta.json first, leases
second; so either the reader finds no meta.json or the remover finds the lease.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lrms_vm import journal
from lrms_vm import lease as leasing
from lrms_vm import pins as pinning
from lrms_vm.errors import NodeError
from lrms_vm.hashing import ALGORITHMS, Leaves
from lrms_vm.locks import locked
from lrms_vm.paths import Places
from lrms_vm.trust import tree
from lrms_vm.values import dataclass

MAX_META_BYTES = 16 << 10
MAX_ORIGINS = 16  # each takes at most 500 bytes of meta.json
MAX_NAMES = 8  # each at most 200 bytes
HIDDEN = "meta.hidden"  # what meta.json is called while an eviction looks at the leases
LEAVES = "leaves"
MIN_CHUNK_BYTES = 4096  # of the leaves that we make
WHY = "why.json"  # in what was put aside: what was found, and when
MAX_QUARANTINED = 4
_HEX = re.compile("[0-9a-f]{64}", re.ASCII)

Stamp = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Vouched:
    """Bytes as they came in, which somebody signed. `digests` is by algorithm; sha256 is always there."""

    digests: Mapping[str, bytes]
    size_bytes: int
    format: str = "raw"

    @property
    def sha256(self) -> str:
        return self.digests["sha256"].hex()


@dataclass(frozen=True)
class Meta:
    """What was found out when the bytes came in. `digests` is by algorithm; sha256 is always there."""

    digests: Mapping[str, bytes]
    stamp: Stamp
    stored_at: float  # time.time()
    source: str
    origins: tuple[Vouched, ...] = ()  # what this raw disk was converted from, here; the newest last
    names: tuple[str, ...] = ()  # by which it came; the newest last. For people: nothing is decided by them
    vo: str = ""  # whose quota it counts to: that of the first job that brought it
    verified_at: float = 0.0  # time.time() when all of it was last read and found right; 0: when it was stored

    @property
    def size_bytes(self) -> int:
        return self.stamp[2]

    def vouched(self, sha256: str) -> Vouched | None:
        """The bytes of that sha256 (hex), if they are this disk or this disk was made of them."""
        own = Vouched(self.digests, self.size_bytes)
        return next((one for one in (own, *self.origins) if one.sha256 == sha256), None)

    def with_origins(self, origins: Iterable[Vouched]) -> Meta:
        """Remember more of them; the newest `MAX_ORIGINS` are kept."""
        known = {one.sha256: one for one in self.origins}
        for one in origins:
            before = known.pop(one.sha256, one)
            known[one.sha256] = replace(one, digests={**before.digests, **one.digests})
        return replace(self, origins=tuple(known.values())[-MAX_ORIGINS:])

    def with_names(self, names: Iterable[str]) -> Meta:
        """Remember more of them; the newest `MAX_NAMES` are kept."""
        return replace(self, names=tuple(dict.fromkeys((*self.names, *names)))[-MAX_NAMES:])


def prepare(places: Places) -> None:
    """Make and check our directories. Raises `NodeError`."""
    open_to_all = (places.state_dir, places.store, places.store / "sha256")
    ours_only = (
        *(places.ingest, places.cache_locks, places.leases, places.signatures),
        *(places.quarantine, places.pins),
    )
    make_directories([*((path, 0o755) for path in open_to_all), *((path, 0o700) for path in ours_only)])


def make_directories(wanted: Iterable[tuple[Path, int]]) -> None:
    """Make and check (path, mode): real directories, ours, writable by nobody else. Only the first may lack parents.

    Raises `NodeError`.
    """
    parents = True
    try:
        for path, mode in wanted:
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):
                    path.mkdir(mode=mode, parents=parents)
                status = os.lstat(path)
            parents = False
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and mode & ~status.st_mode:
                path.chmod(mode)  # pbs_mom's umask is 077, and many a root's: libvirt-qemu must get to an image
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
                raise NodeError(
                    f"{path}: owner {status.st_uid}, mode {stat.filemode(status.st_mode)}; expected a real directory, "
                    "writable by its owner alone",
                    hint="a cache elsewhere is named by state_dir, not by a symbolic link",
                    code="state-unsafe",
                )
    except OSError as error:
        raise NodeError(f"{error.filename}: cannot make: {error.strerror}", code="state-unwritable") from error


def entry_dir(places: Places, sha256: str) -> Path:
    """Where an image lives. `sha256` is hex: nothing else ever becomes part of a path."""
    if _HEX.fullmatch(sha256) is None:
        raise NodeError(f"{sha256[:80]!r} is not a sha256 in hex", code="digest-unreadable")
    return places.store / "sha256" / sha256[:2] / sha256


def stamp_of(status: os.stat_result) -> Stamp:
    """What changes when anybody writes to the file: a write cannot put ctime back (inode(7))."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def healthy(places: Places, sha256: str) -> Meta | None:
    """The image's `Meta` if its file is as it was left; None if it is absent or was touched. O(1), no lock."""
    directory = entry_dir(places, sha256)
    meta = read_meta(directory)
    if meta is None or meta.digests["sha256"].hex() != sha256:
        return None
    try:
        fd = os.open(directory / "image", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None  # a link, or gone: the cold path finds out which
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    safe = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o222
    return meta if safe and stamp_of(status) == meta.stamp else None


def read_meta(directory: Path, name: str = "meta.json") -> Meta | None:
    """Read and check; None when absent or damaged: an entry that cannot prove itself is not believed."""
    try:
        fd = os.open(directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            words = json.loads(file.read(MAX_META_BYTES))
        device, inode, size, mtime, ctime = (int(n) for n in words["stamp"])
        digests = _read_digests(words["digests"])
        if words["version"] != 1:
            return None
        return Meta(
            digests,
            (device, inode, size, mtime, ctime),
            float(words["stored_at"]),
            str(words["source"]),
            tuple(
                Vouched(_read_digests(one["digests"]), int(one["size"]), str(one["format"]))
                for one in words.get("origins", [])
            ),
            tuple(str(name) for name in words.get("names", []))[-MAX_NAMES:],
            str(words.get("vo", "")),
            float(words.get("verified_at", 0)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _read_digests(words: Any) -> dict[str, bytes]:
    digests = {str(name): bytes.fromhex(text) for name, text in words.items() if name in ALGORITHMS}
    if len(digests["sha256"]) != 32:
        raise ValueError("not a sha256")
    return digests


def write_meta(directory: Path, meta: Meta) -> None:
    """Atomically and durably, 0644. The file's time stays: it says when the image was last used. Raises `OSError`."""
    words: dict[str, Any] = {
        "version": 1,
        "digests": {name: digest.hex() for name, digest in meta.digests.items()},
        "stamp": list(meta.stamp),
        "stored_at": meta.stored_at,
        "source": meta.source,
    }
    if meta.origins:
        words["origins"] = [
            {"format": one.format, "size": one.size_bytes, "digests": {n: d.hex() for n, d in one.digests.items()}}
            for one in meta.origins
        ]
    words |= {key: value for key in ("names", "vo", "verified_at") if (value := getattr(meta, key))}
    path = directory / "meta.json"
    used_ns = None
    with contextlib.suppress(OSError):
        used_ns = path.lstat().st_mtime_ns
    write_durably(path, json.dumps(words).encode(), 0o644)
    if used_ns is not None:
        os.utime(path, ns=(used_ns, used_ns))


def used(places: Places, sha256: str) -> None:
    """The image is, or was until now, in use: it goes later. Only the order of eviction depends on it."""
    with contextlib.suppress(OSError):
        os.utime(entry_dir(places, sha256) / "meta.json")


def read_leaves(directory: Path, size_bytes: int) -> Leaves | None:
    """The leaves that were found when all of the image was last right; None when there are none that are whole.

    They only say where to look: what they call damaged is read as a whole before it is believed.
    """
    try:
        fd = os.open(directory / LEAVES, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            chunk_bytes = int.from_bytes(file.read(8), "big")
            count = tree.chunk_count(size_bytes, chunk_bytes) if chunk_bytes >= MIN_CHUNK_BYTES else 0
            text = file.read(tree.LEAF_BYTES * count)
            seal = file.read(64)
    except OSError:
        return None
    if not count or len(text) != tree.LEAF_BYTES * count or hashlib.sha256(text).digest() != seal:
        return None
    return Leaves(chunk_bytes, tuple(text[at : at + tree.LEAF_BYTES] for at in range(0, len(text), tree.LEAF_BYTES)))


def write_leaves(directory: Path, leaves: Leaves) -> None:
    """Chunk size in 8 octets, the leaves, and their SHA-256. Raises `OSError`."""
    text = b"".join(leaves.leaves)
    sealed = leaves.chunk_bytes.to_bytes(8, "big") + text + hashlib.sha256(text).digest()
    write_durably(directory / LEAVES, sealed, 0o644)


def write_durably(path: Path, text: bytes, mode: int = 0o600) -> None:
    """Replace a file: after a crash it is the old one or the new one, whole. Raises `OSError`."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with open(fd, "wb") as file:
        file.write(text)
        file.flush()
        os.fchmod(fd, mode)
        os.fsync(fd)
    fresh.rename(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """A name is durable only when its directory is (fsync(2))."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def changing(places: Places, *, deadline: float) -> Iterator[None]:
    """The only time names in the store, in ingest and in quarantine change."""
    with locked(places.cache_locks / "store.lock", deadline=deadline):
        yield


def refuse_writers(path: Path) -> str:
    """Make sure that nobody has the file open for writing; return a note where the file system cannot tell.

    A read lease is granted only when there is no writer (fcntl(2), F_SETLEASE). It matters: a second store to a page
    that is mapped and already dirty does not change ctime. Raises `NodeError`.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # should somebody open it this moment: SIGIO would end us
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOTSUP, errno.ENOLCK):
            return f"the file system below {path.parent} has no leases: cannot prove that nobody is writing"
        raise NodeError(f"{path}: another process has it open for writing", code="image-writer") from error
    finally:
        os.close(fd)
    return ""


def publish(places: Places, part: Path, sha256: str) -> None:
    """Give a finished part its name, durably. Caller holds `changing`; nothing has that name. Raises `OSError`."""
    target = entry_dir(places, sha256)
    target.parent.mkdir(mode=0o755, exist_ok=True)
    target.parent.chmod(0o755)  # whatever the umask
    part.chmod(0o755)
    part.rename(target)
    sync_directory(target.parent)
    sync_directory(target.parent.parent)


def quarantine(places: Places, sha256: str, why: str = "its bytes are not the ones that its name says") -> None:
    """Take an entry out of service, keeping it for whoever wants to know. Caller holds `changing`.

    The newest `MAX_QUARANTINED` are kept. It says why, and when, in `why.json`.
    """
    entry, target = entry_dir(places, sha256), places.quarantine / sha256
    if not os.path.lexists(entry):
        return
    shutil.rmtree(target, ignore_errors=True)
    entry.rename(target)
    with contextlib.suppress(OSError):  # a full or dying disk: that it is out of service is what matters
        write_durably(target / WHY, json.dumps({"why": why[:500], "at": time.time()}).encode())
    journal.say("error", "cache", f"image sha256:{sha256} is put aside in {target}: {why}")
    for path in quarantined(places)[MAX_QUARANTINED:]:
        shutil.rmtree(path, ignore_errors=True)


def quarantined(places: Places) -> list[Path]:
    """What is put aside, the newest first. Raises `OSError`."""
    return sorted(places.quarantine.iterdir(), key=lambda path: -path.lstat().st_ctime_ns)


def remove(places: Places, sha256: str) -> bool:
    """Remove an entry unless a job holds it or it is pinned; True when it is gone. Caller holds `changing`.

    Raises `OSError`.
    """
    with retired(places, [sha256]) as trash:
        return bool(trash)


@contextlib.contextmanager
def retired(places: Places, digests: Iterable[str]) -> Iterator[list[str]]:
    """Take those entries out of the store that no job holds and nobody pinned; yield them; then remove their bytes.

    Caller holds `changing` when this begins, and may let go of it inside. Raises `OSError`.
    """
    hidden: list[str] = []
    gone: list[str] = []
    with contextlib.ExitStack() as stack:
        try:
            for sha256 in digests:
                if os.path.lexists(entry_dir(places, sha256)):
                    hidden.append(sha256)
                    _hide(entry_dir(places, sha256))
            # Only now: whoever takes a lease from here on finds no meta.json, and gives it back.
            stay = {lease.sha256 for lease in leasing.leases(places)} | {pin.sha256 for pin in pinning.pins(places)}
            for sha256 in hidden:
                if sha256 not in stay and _retire(entry_dir(places, sha256), places.ingest, stack):
                    gone.append(sha256)
        finally:
            for sha256 in hidden:
                show(entry_dir(places, sha256))
        yield gone


def _hide(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        (directory / "meta.json").rename(directory / HIDDEN)


def _retire(directory: Path, ingest: Path, stack: contextlib.ExitStack) -> bool:
    """Move an entry to where rubbish is; `stack` removes it. False for one whose maker has not yet let go of it."""
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    stack.callback(os.close, lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # so that no `clean` removes it under us
    except BlockingIOError:
        return False
    trash = ingest / f"{directory.name}.{secrets.token_hex(4)}.trash"
    directory.rename(trash)
    stack.callback(shutil.rmtree, trash, ignore_errors=True)
    return True


def show(directory: Path) -> None:
    """Undo an eviction that found a lease, or that a crash cut short."""
    with contextlib.suppress(FileNotFoundError):
        (directory / HIDDEN).rename(directory / "meta.json")


def stored(places: Places) -> Iterator[str]:
    """The sha256 of every entry, sound or not. The directory is the index: there is no other."""
    for directory in sorted((places.store / "sha256").glob("[0-9a-f][0-9a-f]/*")):
        if _HEX.fullmatch(directory.name) and directory.parent.name == directory.name[:2]:
            yield directory.name
