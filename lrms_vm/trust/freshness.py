"""Never back: neither to an older list by the same key, nor to an earlier time. Values in, values out.

The state that is kept between runs is written by whoever calls, after every other check has passed, and never before:
a list that is refused must not move the ratchet (CVE-2025-2888).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from lrms_vm.errors import RequestError, SiteError, UsageError
from lrms_vm.trust import sealed_json
from lrms_vm.trust.json_object import VERSION, parse_time, show_time
from lrms_vm.values import dataclass

if TYPE_CHECKING:
    from lrms_vm.trust.verify_list import SignedList

CLOCK_TOLERANCE = timedelta(minutes=10)  # what a clock that is being set may go back
LEAP = timedelta(days=60)  # further ahead than a node stays away: believed only if it lasts
LEAP_LASTS = timedelta(hours=1)
MAX_LISTS = 2000
_SPKI = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class Seen:
    """The newest list accepted under one key."""

    version: str
    content_sha256: bytes
    created: datetime


@dataclass(frozen=True)
class Ratchet:
    """By (list identifier, the key's spki_sha256 in hex): a stolen key's version 99 does not lock out its successor."""

    lists: Mapping[tuple[str, str], Seen] = field(default_factory=dict)


@dataclass(frozen=True)
class ClockMark:
    """The latest time that counts as having been. `leap` is when a much later time was first seen: not believed yet."""

    at: datetime
    leap: datetime | None = None


def advance(ratchet: Ratchet, signed: SignedList) -> Ratchet:
    """The state after this list, the same where it is known. Raises `RequestError` "list-older", "list-differs"."""
    from lrms_vm.trust.imagelist import compare_versions  # the clock alone needs nothing of lists

    content, key = signed.content, (signed.content.identifier, signed.spki_sha256)
    now = Seen(content.version, signed.content_sha256, content.created)
    seen = ratchet.lists.get(key)
    if seen == now:
        return ratchet
    if seen is not None:
        order = compare_versions(content.version, seen.version)
        if order < 0:
            raise RequestError(
                f"version {content.version} of the list {content.identifier} is older than {seen.version}, "
                f"which this node has seen by the same key (created {show_time(seen.created)})",
                hint="the server or a mirror serves an old copy",
                code="list-older",
            )
        if order == 0:
            raise RequestError(
                f"version {content.version} of the list {content.identifier} was seen with other content "
                f"(created {show_time(seen.created)}, this one {show_time(content.created)})",
                hint="its endorser must give what he changes a higher version",
                code="list-differs",
            )
    elif len(ratchet.lists) >= MAX_LISTS:
        raise SiteError(
            f"{MAX_LISTS} lists and keys were seen on this node; no more are kept",
            hint="forget those that are no longer used",
            code="ratchet-full",
        )
    return Ratchet({**ratchet.lists, key: now})


def forget(ratchet: Ratchet, identifier: str, spki_sha256: str | None = None) -> Ratchet:
    """Without what is known of a list, under one key or all: an administrator's recovery. Raises `UsageError`."""
    left = {
        key: seen
        for key, seen in ratchet.lists.items()
        if key[0] != identifier or (spki_sha256 is not None and key[1] != spki_sha256)
    }
    if len(left) == len(ratchet.lists):
        under = f" under the key {spki_sha256}" if spki_sha256 else ""
        raise UsageError(f"no list {identifier!r:.160}{under} was seen here", code="list-unknown")
    return Ratchet(left)


def check_clock(mark: ClockMark | None, now: datetime) -> ClockMark:
    """The new mark. `None`: nothing is known yet. Raises `SiteError` "clock-behind".

    A clock that is back revives what has expired, revoked certificates with their old CRLs among it. A clock that
    leaps ahead for a moment, as at a boot with an empty battery, must not bar the node until then: a leap counts only
    once the clock has gone on from there for an hour; `ClockMark(now)` undoes one that did.
    """
    if mark is None:
        return ClockMark(now)
    if now < mark.at - CLOCK_TOLERANCE:
        raise SiteError(
            f"the clock says {show_time(now)}, but it was {show_time(mark.at)} already",
            hint="set the node's clock; if it was wrong then, an administrator can set the mark back",
            code="clock-behind",
        )
    if now <= mark.at + LEAP:
        return ClockMark(max(mark.at, now))
    if mark.leap is None or now < mark.leap:
        return ClockMark(mark.at, now)
    return ClockMark(now) if now >= mark.leap + LEAP_LASTS else mark


def write_ratchet(ratchet: Ratchet) -> bytes:
    """The file's bytes."""
    lists = [
        {
            "list": identifier,
            "spki_sha256": spki,
            "version": seen.version,
            "content_sha256": seen.content_sha256.hex(),
            "created": show_time(seen.created),
        }
        for (identifier, spki), seen in sorted(ratchet.lists.items())
    ]
    return sealed_json.write({"lists": lists})


def read_ratchet(data: bytes, *, source: str) -> Ratchet:
    """Read back what `write_ratchet` wrote. Raises `SiteError` "ratchet-damaged"."""
    from lrms_vm.trust.imagelist import IDENTIFIER

    try:
        lists: dict[tuple[str, str], Seen] = {}
        for one in sealed_json.read(data, source=source)["lists"]:
            key = (_matching(one["list"], IDENTIFIER), _matching(one["spki_sha256"], _SPKI))
            content_sha256 = bytes.fromhex(_matching(one["content_sha256"], _SPKI))
            if key in lists:
                raise ValueError("a list is there twice")
            lists[key] = Seen(_matching(one["version"], VERSION), content_sha256, _time(one["created"]))
        return Ratchet(lists)
    except sealed_json.UNREADABLE as error:
        raise sealed_json.damaged(source, error, code="ratchet-damaged") from error


def write_clock(mark: ClockMark) -> bytes:
    """The file's bytes."""
    return sealed_json.write({"at": show_time(mark.at), "leap": None if mark.leap is None else show_time(mark.leap)})


def read_clock(data: bytes, *, source: str) -> ClockMark:
    """Read back what `write_clock` wrote. Raises `SiteError` "clock-damaged"."""
    try:
        state = sealed_json.read(data, source=source)
        return ClockMark(_time(state["at"]), None if state["leap"] is None else _time(state["leap"]))
    except sealed_json.UNREADABLE as error:
        raise sealed_json.damaged(source, error, code="clock-damaged") from error


def _matching(value: Any, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise ValueError(f"cannot read {value!r:.80}")
    return value


def _time(value: Any) -> datetime:
    if not isinstance(value, str) or (found := parse_time(value)) is None:
        raise ValueError(f"{value!r:.40} is not a time")
    return found
