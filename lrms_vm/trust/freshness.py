"""Never back: neither to an older list by the same key, nor to an earlier time. Values in, values out.

The state that is kept between runs is written by whoever calls, after every other check has passed, and never before:
a list that is refused must not move the ratchet (CVE-2025-2888).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from lrms_vm.trust.verify_list import SignedList

CLOCK_TOLERANCE = timedelta(minutes=10)  # what a clock that is being set may go back


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
    """The latest time that counts as having been. `leap` is a much later one, seen once and not believed yet."""

    at: datetime
    leap: datetime | None = None


def advance(ratchet: Ratchet, signed: SignedList) -> Ratchet:
    """The state after this list. Raises `RequestError` "list-older", "list-differs"."""
    raise NotImplementedError


def forget(ratchet: Ratchet, identifier: str, spki_sha256: str | None = None) -> Ratchet:
    """Without what is known of a list, under one key or all: an administrator's recovery. Raises `UsageError`."""
    raise NotImplementedError


def check_clock(mark: ClockMark | None, now: datetime) -> ClockMark:
    """The new mark. Raises `SiteError` "clock-behind". `None`: nothing is known yet."""
    raise NotImplementedError


def write_ratchet(ratchet: Ratchet) -> bytes:
    """The file's bytes."""
    raise NotImplementedError


def read_ratchet(data: bytes, *, source: str) -> Ratchet:
    """Read back what `write_ratchet` wrote. Raises `SiteError` "ratchet-damaged"."""
    raise NotImplementedError


def write_clock(mark: ClockMark) -> bytes:
    """The file's bytes."""
    raise NotImplementedError


def read_clock(data: bytes, *, source: str) -> ClockMark:
    """Read back what `write_clock` wrote. Raises `SiteError` "clock-damaged"."""
    raise NotImplementedError
