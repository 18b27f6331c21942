"""Ask a server for a signed image list, believe it, keep it.

One process asks for a list at a time, the others take its answer. A new version is kept only after every check has
passed: the copy first, then the ratchet, then the clock's mark; a crash between leaves each old or new, whole, and the
next version starts from the newer of copy and ratchet.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from lrms_vm import journal, list_copy, locks, trust_state
from lrms_vm.config import Subscription
from lrms_vm.errors import LrmsVmError, NodeError, RequestError, SiteError
from lrms_vm.fetch import Fetcher
from lrms_vm.image import Listed
from lrms_vm.list_copy import Copy
from lrms_vm.paths import Places
from lrms_vm.trust import dn, freshness, list_extract
from lrms_vm.trust.freshness import Ratchet
from lrms_vm.trust.imagelist import compare_versions
from lrms_vm.trust.json_object import parse_time, show_time
from lrms_vm.trust.verify import Claim
from lrms_vm.trust.verify_list import SignedList
from lrms_vm.values import dataclass

MAX_BYTES = 2 << 20  # of a signed message: 1 MiB of list, its signature and certificates
ASK_TIMEOUT_S = 5.0  # how long a server may take where there is a good copy
FETCH_TIMEOUT_S = 30.0  # and where there is none
DOWN_S = 10.0  # how long a server that did not answer is left alone
KEEP_S = 86400.0  # how long a copy outlives its subscription: whoever mistyped a table finds the same list again


class Decide(Protocol):
    """The trust core, bound to this site's policy, this job and this moment."""

    @property
    def at(self) -> datetime: ...

    def open_list(self, signed: bytes) -> SignedList: ...

    def listed(self, listed: Listed) -> Claim: ...


@dataclass
class Refresher:
    """Refreshes the copies of subscribed lists, for one job or verb. `deadline` is a `time.monotonic()` value."""

    subscriptions: Mapping[str, Subscription]
    places: Places
    decide: Decide
    fetch: Fetcher
    deadline: float
    step: Callable[[str], None] = lambda _: None  # told each step of acceptance: the crash tests end the process there
    _since: float = field(default_factory=time.time)  # what a server said after this is an answer to us

    def refresh(self, name: str, *, soon: bool = False) -> Copy:
        """Ask the server for a list, and accept what it says. `soon`: there is a copy to go on with.

        Raises `SiteError` with the code of what is wrong: the list, not the job, is at fault.
        """
        one = self.subscriptions[name]
        trust_state.prepare(self.places)
        until = min(self.deadline, time.monotonic() + (ASK_TIMEOUT_S if soon else FETCH_TIMEOUT_S))
        lock = self.places.cache_locks / f"list-{name}.lock"
        try:
            with locks.locked(lock, deadline=0.0 if soon else until):
                copy = self.copy(name)
                if copy is not None and copy.answered_at >= self._since:
                    return copy  # another process has asked meanwhile
                self._raise_if_down(name)
                try:
                    return self._accepted(one, copy, self._fetched(one, until))
                except LrmsVmError as error:
                    _say_down(self._down(name), error)
                    raise
        except RequestError as error:
            raise SiteError(f"list {name} ({one.url}): {error.message}", hint=error.hint, code=error.code) from error
        except OSError as error:
            raise NodeError(f"{error.filename}: {error.strerror}", code="cache-unwritable") from error

    def copy(self, name: str) -> Copy | None:
        """The copy of a subscribed list, from where it is subscribed to now; old or not."""
        try:
            found = list_copy.read(path_of(self.places, name))
        except OSError as error:
            raise NodeError(f"{error.filename}: cannot read: {error.strerror}", code="state-unsafe") from error
        one = self.subscriptions[name]
        if found is None or found.head.url != one.url or one.identifier not in ("", found.head.identifier):
            return None
        return found

    def drop(self, name: str) -> None:
        """Without a copy that is damaged: the server is asked for all of it."""
        path_of(self.places, name).unlink(missing_ok=True)

    def failed_s(self, name: str) -> float | None:
        """How many seconds ago the server last did not answer, or not with a list that counts."""
        with contextlib.suppress(OSError):
            return abs(time.time() - self._down(name).stat().st_mtime)
        return None

    def _fetched(self, one: Subscription, until: float) -> bytes:
        try:
            return b"".join(self.fetch.fetch(one.url, max_bytes=MAX_BYTES, deadline=until))
        except RequestError as error:
            said, hint = f"list {one.name}: {error.message}", "is [lists] right, and the list there?"
            if error.code == "image-missing":
                raise SiteError(said, hint=hint, code="list-missing") from error
            if error.code == "image-too-large":
                raise SiteError(said, hint=hint, code="list-too-large") from error
            raise SiteError(said, hint=error.hint, code=error.code) from error

    def _accepted(self, one: Subscription, old: Copy | None, message: bytes) -> Copy:
        """The copy of what the server said, which passed every check. Raises `RequestError` or `SiteError`."""
        mark = trust_state.check_clock(self.places, self.decide.at)
        message_sha256 = hashlib.sha256(message).hexdigest()
        if old is not None and old.head.message_sha256 == message_sha256:
            self._settle(old)
            return self._kept(one.name)
        signed = self.decide.open_list(message)
        _check_identifier(one, old, signed)
        with trust_state.locked(self.places):
            ratchet = _seeded(trust_state.read_ratchet(self.places), old)
            advanced = check_ratchet(ratchet, signed)
            self.step("checked")
            trust_state.remove_unfinished(path_of(self.places, one.name))
            _write_copy(path_of(self.places, one.name), one.url, message_sha256, signed, old, self.decide.at)
            self.step("listed")
            trust_state.keep_ratchet(self.places, advanced)
            self.step("ratcheted")
            trust_state.keep_clock(self.places, mark)
            self.step("clocked")
        count = len(signed.content.images)
        journal.say(
            "info",
            f"list {one.name}",
            f"version {signed.content.version} accepted: {count} images, by {_signer(signed)}",
        )
        return self._kept(one.name)

    def _settle(self, copy: Copy) -> None:
        """A crash may have come between the copy and the ratchet."""
        with trust_state.locked(self.places):
            ratchet = trust_state.read_ratchet(self.places)
            seeded = _seeded(ratchet, copy)
            if seeded is not ratchet:
                trust_state.keep_ratchet(self.places, seeded)

    def _kept(self, name: str) -> Copy:
        """The copy, which is an answer to all who wait for the lock: the file's own time would be a few ms early."""
        now = time.time()
        os.utime(path_of(self.places, name), (now, now))
        copy = self.copy(name)
        if copy is None:
            raise NodeError(f"{path_of(self.places, name)}: written, but not to be read", code="state-unsafe")
        return copy

    def _raise_if_down(self, name: str) -> None:
        """Another process asked while we waited, or a moment ago, and got no answer."""
        path = self._down(name)
        with contextlib.suppress(FileNotFoundError):
            at = path.stat().st_mtime
            if at >= self._since or 0 <= time.time() - at < DOWN_S:
                code, _, text = path.read_text(errors="replace")[:1000].partition(" ")
                raise SiteError(text, hint="try again later", code=code)

    def _down(self, name: str) -> Path:
        return self.places.cache_locks / f"list-{name}.down"


def path_of(places: Places, name: str) -> Path:
    """Where the copy of the list [lists.NAME] is kept."""
    return places.lists / f"{name}.list"


def forget(subscription: Subscription, places: Places, *, reason: str, at: datetime) -> None:
    """An administrator's recovery: whatever version of whichever list is there next counts. Raises `UsageError`."""
    path = path_of(places, subscription.name)
    copy = list_copy.read(path)
    identifier = subscription.identifier or (copy.head.identifier if copy is not None else subscription.name)
    trust_state.reset_ratchet(places, identifier, reason=reason, at=at)
    path.unlink(missing_ok=True)


def remove_unsubscribed(places: Places, subscriptions: Mapping[str, Subscription]) -> list[str]:
    """Remove the copies of lists that the site no longer subscribes to; return their names. Raises `NodeError`.

    What must not go back stays in the ratchet: subscribed to again, no older version counts.
    """
    removed = []
    try:
        for path in sorted(places.lists.glob("*.list")):
            name = path.name.removesuffix(".list")
            if name in subscriptions or abs(time.time() - path.lstat().st_mtime) < KEEP_S:
                continue
            with locks.locked(places.cache_locks / f"list-{name}.lock", deadline=time.monotonic() + ASK_TIMEOUT_S):
                with trust_state.locked(places):
                    ratchet = trust_state.read_ratchet(places)
                    seeded = _seeded(ratchet, list_copy.read(path))
                    if seeded is not ratchet:  # a crash came between the copy and the ratchet
                        trust_state.keep_ratchet(places, seeded)
                path.unlink(missing_ok=True)
                (places.cache_locks / f"list-{name}.down").unlink(missing_ok=True)
            journal.say("info", f"list {name}", f"its copy was removed: there is no [lists.{name}] any more")
            removed.append(name)
    except OSError as error:
        raise NodeError(f"{error.filename}: cannot remove: {error.strerror}", code="cache-unwritable") from error
    return removed


def _check_identifier(one: Subscription, old: Copy | None, signed: SignedList) -> None:
    """A server must not answer with another list, which the ratchet would know nothing of."""
    expected = one.identifier or (old.head.identifier if old is not None else "")
    if expected not in ("", signed.content.identifier):
        raise RequestError(
            f"this is the list {signed.content.identifier}, expected {expected}",
            hint="if it is meant to be another: set identifier in [lists.NAME], or lrms-vm trust reset ratchet NAME",
            code="list-other",
        )


def check_ratchet(ratchet: Ratchet, signed: SignedList) -> Ratchet:
    """`freshness.advance`; and after a change of keys nothing that was made before what the other key made.

    Else the last list by a key that was given up would count for as long as the key's certificate does.
    """
    advanced = freshness.advance(ratchet, signed)
    content = signed.content
    for (identifier, spki), seen in ratchet.lists.items():
        if identifier == content.identifier and spki != signed.spki_sha256 and content.created < seen.created:
            raise RequestError(
                f"version {content.version} of the list {identifier} was created at {show_time(content.created)}; "
                f"one by another key, from {show_time(seen.created)}, was accepted already",
                hint="the server or a mirror serves an old copy",
                code="list-older",
            )
    return advanced


def _seeded(ratchet: Ratchet, copy: Copy | None) -> Ratchet:
    """The ratchet, at least as far on as the copy is: that was kept first."""
    if copy is None or (created := parse_time(copy.head.created)) is None:
        return ratchet
    head = copy.head
    key = (head.identifier, head.spki_sha256)
    seen = ratchet.lists.get(key)
    if seen is not None and compare_versions(head.version, seen.version) <= 0:
        return ratchet
    return Ratchet({**ratchet.lists, key: freshness.Seen(head.version, bytes.fromhex(head.content_sha256), created)})


def _write_copy(path: Path, url: str, message_sha256: str, signed: SignedList, old: Copy | None, at: datetime) -> None:
    content = signed.content
    head = list_copy.Head(
        url=url,
        identifier=content.identifier,
        version=content.version,
        title=content.title,
        created=show_time(content.created),
        valid_until=show_time(signed.valid_until),
        accepted_at=show_time(at),
        signer=_signer(signed),
        spki_sha256=signed.spki_sha256,
        content_sha256=signed.content_sha256.hex(),
        message_sha256=message_sha256,
    )
    images = [
        list_copy.New(
            one.name,
            one.version,
            one.digests["sha256"].hex() if "sha256" in one.digests else None,
            one.expires,
            list_extract.write_extract(signed, one),
        )
        for one in content.images
    ]
    list_copy.write(path, head, images, _gone(head, images, old))


def _gone(head: list_copy.Head, images: list[list_copy.New], old: Copy | None) -> list[list_copy.Gone]:
    """What this version of the list has no longer, and what earlier ones dropped."""
    if old is None or old.head.identifier != head.identifier:
        return []
    there = {(one.name, one.version) for one in images}
    dropped = [
        list_copy.Gone(row.name, row.version, row.sha256, head.version, head.created, head.signer)
        for row in old.rows()
        if (row.name, row.version) not in there
    ]
    return dropped + [one for one in old.gone() if (one.name, one.version) not in there]


def _signer(signed: SignedList) -> str:
    return dn.show(signed.signer.subject)


def _say_down(path: Path, error: LrmsVmError) -> None:
    with contextlib.suppress(OSError):  # then the next process asks again
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w") as file:
            file.write(f"{error.code} {error.message}")
