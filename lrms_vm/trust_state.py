"""What must not go back on a node: versions of lists, the clock, and what bare signatures were first seen with.

trust/ratchet.json                   the newest version of each list by each key
trust/clock.json                     the latest time that counts as having been
trust/bare/<algorithm>-<hex>.json    of bytes with that digest: their sha256, and when each key was first seen to sign
trust/history.jsonl                  every recovery: when, what, why

Root's, mode 0600. What is missing is fresh; what is damaged is a `SiteError` that names the verb which recovers it.
Written only after every other check has passed. `locked` keeps two writers apart.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from lrms_vm.errors import NodeError, RequestError, SiteError, UsageError
from lrms_vm.locks import locked as _locked
from lrms_vm.paths import Places
from lrms_vm.store import make_directories, write_durably
from lrms_vm.values import dataclass

if TYPE_CHECKING:
    from lrms_vm.trust.freshness import ClockMark, Ratchet
    from lrms_vm.trust.verify import Claim

MAX_BYTES = 2 << 20
LOCK_TIMEOUT_S = 10.0
CLOCK_EVERY = timedelta(hours=1)  # how far the kept mark may lie behind: each job would cost a disk its flush
_DIGEST = re.compile(r"(sha1|sha256|sha384|sha512)[-:]([0-9a-f]{40,128})", re.ASCII)


def prepare(places: Places) -> None:
    """Make and check our directories. Raises `NodeError`."""
    make_directories(
        [
            (places.state_dir, 0o755),
            (places.cache_locks, 0o700),
            (places.lists, 0o755),
            (places.trust, 0o700),
            (places.trust / "bare", 0o700),
        ]
    )


@contextlib.contextmanager
def locked(places: Places) -> Iterator[None]:
    """One writer of all of this at a time. Raises `SiteError` when another does not end."""
    with _locked(places.cache_locks / "trust.lock", deadline=time.monotonic() + LOCK_TIMEOUT_S):
        yield


def read_ratchet(places: Places) -> Ratchet:
    """Raises `SiteError` "ratchet-damaged"."""
    from lrms_vm.trust import freshness

    path = _ratchet(places)
    data = _read(path)
    if data is None:
        return freshness.Ratchet()
    try:
        return freshness.read_ratchet(data, source=str(path))
    except SiteError as error:
        raise _recoverable(error, "lrms-vm trust reset ratchet LIST") from error


def keep_ratchet(places: Places, ratchet: Ratchet) -> None:
    """Durably. Caller holds `locked`. Raises `NodeError`."""
    from lrms_vm.trust import freshness

    remove_unfinished(_ratchet(places))
    _write(_ratchet(places), freshness.write_ratchet(ratchet))


def remove_unfinished(path: Path) -> None:
    """What writers of `path` that a crash ended left beside it. Caller holds the lock of its writers."""
    unfinished = re.compile(re.escape(f".{path.name}.") + "[0-9]+", re.ASCII)
    for other in path.parent.iterdir():
        if unfinished.fullmatch(other.name):
            other.unlink(missing_ok=True)


def read_clock(places: Places) -> ClockMark | None:
    """Raises `SiteError` "clock-damaged"."""
    from lrms_vm.trust import freshness

    path = _clock(places)
    data = _read(path)
    if data is None:
        return None
    try:
        return freshness.read_clock(data, source=str(path))
    except SiteError as error:
        raise _recoverable(error, "lrms-vm trust reset clock") from error


@dataclass(frozen=True)
class ClockChecked:
    """What is kept, and what may be kept once everything else has passed too."""

    kept: ClockMark | None
    mark: ClockMark


def check_clock(places: Places, at: datetime) -> ClockChecked:
    """Raises `SiteError` "clock-behind", "clock-damaged"."""
    from lrms_vm.trust import freshness

    try:
        kept = read_clock(places)
        return ClockChecked(kept, freshness.check_clock(kept, at))
    except SiteError as error:
        raise error if error.code != "clock-behind" else _recoverable(error, "lrms-vm trust reset clock") from error


def keep_clock(places: Places, checked: ClockChecked) -> None:
    """Durably, where it says much more than what is kept. Raises `NodeError`, `SiteError` when another does not end.

    Of many jobs at once one writes: what was written since `checked` is of the same moment, or an administrator's.
    """
    from lrms_vm.trust import freshness

    kept, mark = checked.kept, checked.mark
    if kept is None or kept.leap != mark.leap or mark.at >= kept.at + CLOCK_EVERY:
        prepare(places)
        lock, deadline = places.cache_locks / "clock.lock", time.monotonic() + LOCK_TIMEOUT_S
        with _locked(lock, deadline=deadline, instead=lambda: read_clock(places) != kept) as held:
            if held and read_clock(places) == kept:
                _write(_clock(places), freshness.write_clock(mark))


def check_bare(places: Places, claim: Claim, sha256: str, digest: bytes, *, at: datetime, max_age_s: int) -> None:
    """A bare signature binds nothing but a digest: hold it to the bytes and the time that this node first saw it with.

    `digest` is what the signature is over, of the bytes whose sha256 is `sha256` (hex). First seen is kept durably.
    Raises `RequestError` "twin-refused": with SHA-1, two disks with one digest can be made on purpose, and the first
    counts; "signature-aged": it says nothing of its own end, so we do; `SiteError` "bare-damaged".
    """
    from lrms_vm.trust.x509 import spki_sha256

    path = _bare(places, claim.digest_algorithm, digest.hex())
    key = spki_sha256(claim.certificate)
    seen = _first_seen(path, sha256, key, at)
    if seen is None:
        prepare(places)
        with locked(places):
            seen = _first_seen(path, sha256, key, at) or _remember(path, sha256, key, at)
    if at >= seen + timedelta(seconds=max_age_s):
        raise RequestError(
            f"the bare signature by {claim.signer} was first seen on this node at {seen:%Y-%m-%d %H:%M}Z; "
            f"such a signature counts for {max_age_s // 86400} days (s0_max_age)",
            hint="sign the image with CMS, or publish it in a signed list",
            code="signature-aged",
        )


def _first_seen(path: Path, sha256: str, key: str, at: datetime) -> datetime | None:
    """When this key was first seen to sign these bytes; None: not yet. Raises `RequestError` for other bytes."""
    from lrms_vm.trust import sealed_json
    from lrms_vm.trust.json_object import parse_time

    data = _read(path)
    if data is None:
        return None
    try:
        words = sealed_json.read(data, source=str(path))
        pinned, first = str(words["sha256"]), words["first_seen"].get(key)
        seen = None if first is None else parse_time(first)
        if first is not None and seen is None:
            raise ValueError(f"{first!r:.40} is not a time")
    except sealed_json.UNREADABLE as error:
        damaged = sealed_json.damaged(str(path), error, "bare-damaged")
        raise _recoverable(damaged, f"lrms-vm trust reset pin {_name_of(path)}") from error
    if pinned != sha256:
        raise RequestError(
            f"the image sha256:{sha256} has the same {_name_of(path)} as sha256:{pinned}, which was accepted with it "
            "before: they were made to be taken for each other",
            hint="sign the image with SHA-256; if the first was the wrong one, an administrator can let go of it: "
            f'lrms-vm trust reset pin {_name_of(path)} --reason "..."',
            code="twin-refused",
        )
    return seen


def _remember(path: Path, sha256: str, key: str, at: datetime) -> datetime:
    """Caller holds `locked`, and has found that there is nothing about this key."""
    from lrms_vm.trust import sealed_json
    from lrms_vm.trust.json_object import show_time

    data = _read(path)
    seen = {} if data is None else sealed_json.read(data, source=str(path))["first_seen"]
    _write(path, sealed_json.write({"sha256": sha256, "first_seen": {**seen, key: show_time(at)}}))
    return at


def bare_signatures(places: Places) -> list[tuple[str, str, str]]:
    """(digest, the sha256 it is held to, when it was first seen), each as text, for an administrator to read."""
    from lrms_vm.trust import sealed_json

    found = []
    for path in sorted((places.trust / "bare").glob("*.json")):
        try:
            words = sealed_json.read(_read(path) or b"", source=str(path))
            found.append((_name_of(path), str(words["sha256"]), min(words["first_seen"].values(), default="")))
        except sealed_json.UNREADABLE:
            found.append((_name_of(path), "damaged", ""))
    return found


def reset_ratchet(places: Places, identifier: str, *, reason: str, at: datetime) -> None:
    """Forget which versions of a list were seen. A file that cannot be read is put aside whole.

    Raises `UsageError` for a list that was never seen, or without a reason.
    """
    from lrms_vm.trust import freshness

    with locked(places):
        try:
            ratchet = freshness.forget(read_ratchet(places), identifier)
        except SiteError:
            _put_aside(places, f"ratchet {identifier}", _ratchet(places), reason=reason, at=at)
            return
        _note(places, f"ratchet {identifier}", reason=reason, at=at)
        keep_ratchet(places, ratchet)


def reset_clock(places: Places, *, reason: str, at: datetime) -> None:
    """Let the mark be `at`, whatever it was. Raises `UsageError` without a reason."""
    from lrms_vm.trust import freshness

    with locked(places):
        _note(places, "clock", reason=reason, at=at)
        _write(_clock(places), freshness.write_clock(freshness.ClockMark(at)))


def reset_pin(places: Places, digest: str, *, reason: str, at: datetime) -> None:
    """Forget what a bare signature over `digest` (sha1:HEX) was first seen with. Raises `UsageError`."""
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise UsageError(f"{digest[:80]!r} is not a digest like sha1:HEX", code="digest-unreadable")
    path = _bare(places, match[1], match[2])
    if not os.path.lexists(path):
        raise UsageError(f"no bare signature over {digest} was seen here", code="pin-unknown")
    with locked(places):
        _put_aside(places, f"pin {digest}", path, reason=reason, at=at)


def history(places: Places) -> list[dict[str, str]]:
    """Every recovery, the oldest first; lines that a crash cut short are passed over."""
    found = []
    for line in (_read(places.trust / "history.jsonl") or b"").splitlines():
        with contextlib.suppress(ValueError, AttributeError, RecursionError):
            found.append({str(key): str(value) for key, value in json.loads(line).items()})
    return found


def _note(places: Places, what: str, *, reason: str, at: datetime) -> None:
    """Before the recovery itself: one without its reason must not be."""
    if not reason.strip() or not reason.isprintable() or len(reason) > 500:
        raise UsageError("a recovery needs a reason, one line of text", hint='--reason "..."', code="reason-missing")
    by = os.environ.get("SUDO_USER") or str(os.getuid())
    line = json.dumps({"at": at.astimezone(UTC).isoformat(), "what": what, "by": by, "reason": reason})
    path = places.trust / "history.jsonl"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, line.encode() + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise NodeError(f"{path}: cannot write: {error.strerror}", code="state-unwritable") from error


def _put_aside(places: Places, what: str, path: Path, *, reason: str, at: datetime) -> None:
    _note(places, what, reason=reason, at=at)
    try:
        path.rename(path.with_name(f"{path.name}.reset"))
    except OSError as error:
        raise NodeError(f"{path}: cannot rename: {error.strerror}", code="state-unwritable") from error


def _ratchet(places: Places) -> Path:
    return places.trust / "ratchet.json"


def _clock(places: Places) -> Path:
    return places.trust / "clock.json"


def _bare(places: Places, algorithm: str, digest: str) -> Path:
    return places.trust / "bare" / f"{algorithm}-{digest}.json"


def _name_of(path: Path) -> str:
    return path.name.removesuffix(".json").replace("-", ":", 1)


def _recoverable(error: SiteError, verb: str) -> SiteError:
    return SiteError(error.message, hint=f'look into it, then: {verb} --reason "..."', code=error.code)


def _read(path: Path) -> bytes | None:
    """None where there is none. Raises `NodeError` for one that root may not believe, or that cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NodeError(f"{path}: cannot read: {error.strerror}", code="state-unsafe") from error
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise NodeError(f"{path}: not a file that only root can write", code="state-unsafe")
        return file.read(MAX_BYTES)


def _write(path: Path, data: bytes) -> None:
    try:
        write_durably(path, data)
    except OSError as error:
        raise NodeError(f"{path}: cannot write: {error.strerror}", code="state-unwritable") from error
