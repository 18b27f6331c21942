"""Which VOMS attributes (FQANs) a job's user has, by the site's own mapping from them to groups and accounts.

No batch system tells a prologue the user's proxy. But where users come by grid, the gatekeeper gave them an account and
groups by their FQANs, from files that LCMAPS reads (lcmaps_voms_localgroup(8), lcmaps_voms_localaccount(8)):

    "/atlas/Role=production*"  atlasprd        a group (groupmapfile), or an account (grid-mapfile)
    "/atlas/Role=pilot"        .atlaspil       in a grid-mapfile: the pool of accounts atlaspil001, atlaspil002, ...

Read backwards: who is in the group atlasprd had an FQAN that one of the group's lines covers. Which one, nobody knows,
so a rule takes the group for proof only where it covers all of them. Pure: text in, values out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lrms_vm.trust.patterns import covers
from lrms_vm.values import dataclass

MAX_BYTES = 1 << 20
MAX_LINES = 10_000
_LINE = re.compile(r'\s*(?:"([^"]{1,1000})"|([^"\s#]\S{0,999}))\s+(\S{1,1000})\s*(?:#.*)?')
# A VO, its groups, then perhaps a role; "*" stands for anything. Never a DN: its first part has a "=".
_FQAN = re.compile(r"/[A-Za-z0-9][A-Za-z0-9._-]*(?:\*|(?:/[A-Za-z0-9._=*-]+)*)", re.ASCII)
_NULL = re.compile(r"/(?:Role|Capability)=NULL(?=/|$)")


class MapfileError(ValueError):
    """The file cannot be read as what it should be. The message has the line's number."""


@dataclass(frozen=True)
class Mapped:
    """One line: who has such an FQAN is put into this group, or gets this account."""

    fqan: str  # with "*"; or a DN, which is no FQAN
    target: str  # a group's name, an account's, or a pool of accounts with a leading dot
    is_group: bool

    def is_of(self, user: str, groups: Iterable[str]) -> bool:
        if self.is_group:
            return self.target in groups
        if self.target.startswith("."):
            return re.fullmatch(re.escape(self.target[1:]) + "[0-9]+", user, re.ASCII) is not None
        return self.target == user


def parse_mapfile(data: bytes, *, groups: bool) -> tuple[Mapped, ...]:
    """A groupmapfile (`groups`) or a grid-mapfile. Raises `MapfileError`."""
    if len(data) > MAX_BYTES:
        raise MapfileError(f"{len(data)} bytes; at most {MAX_BYTES}")
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise MapfileError("not UTF-8") from error
    if len(lines) > MAX_LINES:
        raise MapfileError(f"{len(lines)} lines; at most {MAX_LINES}")
    found = []
    for number, line in enumerate(map(str.expandtabs, lines), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None or not line.isprintable():
            raise MapfileError(f'line {number}: expected "FQAN" NAME, got {line[:60]!r}')
        fqan = match[1] or match[2]
        found += [Mapped(fqan, target, groups) for target in match[3].split(",") if target]
    return tuple(found)


def is_fqan(text: str) -> bool:
    """Whether a rule may say this: it names its VO first."""
    return _FQAN.fullmatch(text) is not None


def has_any(wanted: Sequence[str], mapping: Sequence[Mapped], *, user: str, groups: Sequence[str]) -> bool:
    """Whether this user is known to have an FQAN that one of `wanted` covers."""
    names = {one.target for one in mapping if one.is_group and one.is_of(user, groups)}
    if any(_proves((True, name), wanted, mapping) for name in names):
        return True
    accounts = [one for one in mapping if not one.is_group and one.is_of(user, groups)]
    return bool(accounts) and all(_covered(one.fqan, wanted) for one in accounts)


def is_mapped(wanted: Sequence[str], mapping: Sequence[Mapped]) -> bool:
    """Whether there can be a user for whom `has_any` holds."""
    return any(_proves((one.is_group, one.target), wanted, mapping) for one in mapping)


def _proves(target: tuple[bool, str], wanted: Sequence[str], mapping: Sequence[Mapped]) -> bool:
    mine = [one.fqan for one in mapping if (one.is_group, one.target) == target]
    return bool(mine) and all(_covered(fqan, wanted) for fqan in mine)


def _covered(fqan: str, wanted: Sequence[str]) -> bool:
    return any(covers(_plain(pattern), _plain(fqan)) for pattern in wanted)


def _plain(fqan: str) -> str:
    """Without what says nothing: /atlas/Role=NULL/Capability=NULL is /atlas."""
    return _NULL.sub("", fqan)
