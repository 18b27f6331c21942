"""Which names a CA may give: EUGridPMA `.namespaces` and Globus `.signing_policy` files. Text in, rules out.

Formats: EUGridPMA "Namespaces format specification" (eugridpma.org/documentation), and the Globus EACL form that
older directories carry (ca-signing-policy). DENY wins over PERMIT; what no PERMIT covers is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

MAX_BYTES = 64 << 10
_STATEMENT = re.compile(
    r'\s*TO\s+Issuer\s+(SELF|"([^"\n]{1,1000})")\s+(PERMIT|DENY)\s+Subject\s+"([^"\n]{1,1000})"\s*', re.IGNORECASE
)
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
    subjects: re.Pattern[str]


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
        statements.append(Statement(issuer, match[3].upper() == "PERMIT", _compiled(_aliased(match[4]))))
        at = match.end()
    if not statements:
        raise NamesError("no statement in it")
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
        elif word == "pos_rights" and issuer is not None:
            signs = value.split("#")[0].strip() == "CA:sign"
        elif word == "cond_subjects" and issuer is not None and signs:
            patterns = re.findall(r'"([^"]{1,1000})"', value) or [_unquoted(value)]
            for pattern in patterns:
                regex = ".*".join(re.escape(part) for part in _aliased(pattern).split("*"))
                statements.append(Statement(issuer, True, _compiled(regex)))
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
    matching = [one for one in mine if one.subjects.fullmatch(_aliased(subject))]
    return bool(matching) and all(one.permit for one in matching)


def _text(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise NamesError(f"{len(data)} bytes; at most {MAX_BYTES}")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise NamesError("not UTF-8") from error


def _unquoted(value: str) -> str:
    match = re.fullmatch(r"""\s*(?:'([^']{1,1000})'|"([^"]{1,1000})")\s*(?:#.*)?""", value)
    if match is None:
        raise NamesError(f"cannot read {value[:60]!r}")
    return match[1] or match[2]


def _aliased(text: str) -> str:
    for pattern, name in _ALIASES:
        text = pattern.sub(name, text)
    return text


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise NamesError(f"{pattern[:60]!r} is not a pattern") from error
