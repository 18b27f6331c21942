"""Which names a CA may give: EUGridPMA `.namespaces` and Globus `.signing_policy` files. Text in, rules out.

Formats: EUGridPMA "Namespaces format specification" (eugridpma.org/documentation), and the Globus EACL form that
older directories carry (ca-signing-policy). DENY wins over PERMIT; what no PERMIT covers is refused.

A namespaces file's subjects are called regular expressions. Those that CAs publish use `.*` and nothing else, and have
dots and brackets in their names; so that is what we read, and no expression of a file or name can keep us busy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from lrms_vm.values import dataclass

MAX_BYTES = 64 << 10
_STATEMENT = re.compile(
    r'\s*TO\s+Issuer\s+(SELF|"([^"\n]{1,1000})")\s+(PERMIT|DENY)\s+Subject\s+"([^"\n]{1,1000})"\s*', re.IGNORECASE
)
_SEVERAL = re.compile(r"""\s*'((?:\s*"[^"']{1,1000}")+)\s*'\s*(?:#.*)?""")  # '"/O=People/*" "/O=Robots/*"'
_BEYOND_US = re.compile(r"[\[\]|^$\\{}]|(?<!\.)\*")
_BEYOND_US_IN_DENY = re.compile(r"[()+?]")
# As OpenSSL has spelled them over the years: the same attribute.
_ALIASES = (
    (re.compile(r"/(?:Email|E|emailAddress)=", re.IGNORECASE), "/emailAddress="),
    (re.compile(r"/(?:USERID|UID)=", re.IGNORECASE), "/UID="),
)


class NamesError(ValueError):
    """The file cannot be read as what its name says. Leaves this package as `SiteError`."""


@dataclass(frozen=True)
class Statement:
    """One PERMIT or DENY."""

    issuer: str | None  # slash form; None: the CA that the file belongs to
    permit: bool
    subjects: tuple[str, ...]  # what must be there in this order, with anything between: "/O=People/", ""

    def covers(self, subject: str) -> bool:
        first, *middle = self.subjects
        if not middle:
            return subject == first
        last = middle.pop()
        at, end = len(first), len(subject) - len(last)
        if at > end or not (subject.startswith(first) and subject.endswith(last)):
            return False
        for part in middle:
            if (found := subject.find(part, at, end)) < 0:
                return False
            at = found + len(part)
        return True


def parse_namespaces(data: bytes) -> tuple[Statement, ...]:
    """Raises `NamesError`."""
    text = _text(data)
    joined = re.sub(r"\\[ \t]*\n", " ", "\n".join(re.sub(r"^\s*#.*", "", line) for line in text.splitlines()))
    statements = []
    at = 0
    while joined[at:].strip():
        match = _STATEMENT.match(joined, at)
        if match is None:
            raise NamesError(f"cannot read {joined[at : at + 60].strip()!r}")
        issuer = None if match[1].upper() == "SELF" else _aliased(match[2])
        permit = match[3].upper() == "PERMIT"
        subjects = _subjects(_aliased(match[4]), permit)
        if subjects:
            statements.append(Statement(issuer, permit, subjects))
        at = match.end()
    if not statements:
        raise NamesError("no statement in it that we read; of regular expressions that is .* only")
    return tuple(statements)


def parse_signing_policy(data: bytes) -> tuple[Statement, ...]:
    """Raises `NamesError`."""
    statements: list[Statement] = []
    issuer: str | None = None
    signs = False
    for line in _text(data).splitlines():
        words = line.split(None, 2)
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 3:
            raise NamesError(f"cannot read {line[:60]!r}")
        word, authority, value = words
        if word == "access_id_CA" and authority.upper() == "X509":
            issuer, signs = _aliased(_unquoted(value)), False
        elif word == "pos_rights" and authority == "globus" and issuer is not None:
            signs = value.split("#")[0].strip() == "CA:sign"
        elif word == "cond_subjects" and authority == "globus" and issuer is not None and signs:
            several = _SEVERAL.fullmatch(value)
            for pattern in re.findall(r'"([^"]*)"', several[1]) if several else [_unquoted(value)]:
                statements.append(Statement(issuer, True, tuple(_aliased(pattern).split("*"))))
        elif word != "neg_rights":
            raise NamesError(f"cannot read {line[:60]!r}")
        else:
            raise NamesError("neg_rights is not supported")
    if not statements:
        raise NamesError("no statement in it")
    return tuple(statements)


def permits(statements: Iterable[Statement], *, issuer: str, subject: str) -> bool:
    """Whether this CA may give this name; both in slash form, and the file is the CA's own."""
    mine = [one for one in statements if one.issuer is None or one.issuer == _aliased(issuer)]
    matching = [one for one in mine if one.covers(_aliased(subject))]
    return bool(matching) and all(one.permit for one in matching)


def _text(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise NamesError(f"{len(data)} bytes; at most {MAX_BYTES}")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise NamesError("not UTF-8") from error


def _unquoted(value: str) -> str:
    match = re.fullmatch(r"""\s*(?:'([^'"]{1,1000})'|"([^'"]{1,1000})")\s*(?:#.*)?""", value)
    if match is None:
        raise NamesError(f"cannot read {value[:60]!r}")
    return match[1] or match[2]


def _aliased(text: str) -> str:
    for pattern, name in _ALIASES:
        text = pattern.sub(name, text)
    return text


def _subjects(pattern: str, permit: bool) -> tuple[str, ...]:
    """Never wider than the file's author meant for a PERMIT, never narrower for a DENY.

    A PERMIT that says more than we read permits nothing, as in IGTF's file of the USERTrust root CA, where names of
    CAs end with "[Run by the Issuer]": its other statements must count. A DENY like that makes the file unreadable.
    """
    if _BEYOND_US.search(pattern) or (not permit and _BEYOND_US_IN_DENY.search(pattern)):
        if permit:
            return ()
        raise NamesError(f"{pattern[:60]!r}: of regular expressions only .* is read")
    return tuple(pattern.split(".*") if permit else re.split(r"\.\*?", pattern))
