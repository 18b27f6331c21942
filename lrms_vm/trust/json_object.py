"""The fields of a signed image list: each getter takes one key, checks its form, and says where a defect is."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, NoReturn

from lrms_vm.errors import RequestError
from lrms_vm.trust import strict_json

MAX_WORDS = 100
MAX_TEXT_LENGTH = 4000
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}", re.ASCII)  # a VO's or a kernel's name
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", re.ASCII)
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", re.ASCII)
# A host's name or address, a port, no password before them; no blanks, double quotes or braces anywhere.
_HOST = r"(?:[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_URL = re.compile(rf"(?=.{{1,2000}}$)(?:file:///|[a-z][a-z0-9+.-]{{1,15}}://{_HOST}(?:[/?#]|$)).*", re.ASCII)
_URL_CHARACTERS = re.compile(r"[!#-;=?-\[\]_a-z~]+", re.ASCII)
_CRITICAL = "lv:crit:"  # a key that whoever does not know it must not pass over; there are none yet


def parse_time(text: str) -> datetime | None:
    """UTC, to the second, in the one form that lists have; None for every other."""
    if _TIME.fullmatch(text) is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # a 31st of February, the year 0
        return None


def show_time(at: datetime) -> str:
    """The same form."""
    return at.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"


class JsonObject:
    """One JSON object being read: every getter takes a key and raises "list-malformed" with the key's place."""

    def __init__(self, value: Any, where: str) -> None:
        self._where = where
        if not isinstance(value, dict):
            raise RequestError(f"{where}: expected an object", code="list-malformed")
        self._values: dict[str, Any] = value
        for key in value:
            if key.startswith(_CRITICAL):
                raise RequestError(
                    f"{where}: {key!r:.80} must be understood, and this version does not",
                    hint="a newer lrms_vm may",
                    code="list-critical-key",
                )

    def fail(self, key: str, what: str) -> NoReturn:
        raise RequestError(
            f"{self._where} {key}: {what}", hint="the list's endorser must correct it", code="list-malformed"
        )

    def has(self, key: str) -> bool:
        """Whether it is there and says something: tools write "" and null for what they do not know."""
        return self._values.get(key) not in (None, "")

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def object(self, key: str) -> JsonObject:
        return JsonObject(self._values.get(key), f"{self._where} {key}")

    def sequence(self, key: str, most: int) -> list[Any]:
        value = self._values.get(key)
        if not isinstance(value, list):
            self.fail(key, "expected a list")
        if len(value) > most:
            raise RequestError(f"{self._where} {key}: {len(value)} entries; at most {most}", code="list-too-long")
        return value

    def text(self, key: str) -> str:
        """For people: what cannot be printed becomes a blank."""
        value = self._values.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            self.fail(key, f"expected a text, got {value!r:.40}")
        if value.isprintable():
            return value[:MAX_TEXT_LENGTH]
        return "".join(char if char.isprintable() else " " for char in value[:MAX_TEXT_LENGTH])

    def matching(self, key: str, pattern: re.Pattern[str]) -> str:
        value = self._values.get(key)
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            self.fail(key, f"{value!r:.80} is missing or not of the form that is expected")
        return value

    def version(self, key: str) -> str:
        value = self._values.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return str(value)
        return self.matching(key, VERSION)

    def words(self, key: str) -> tuple[str, ...]:
        """A name, or a list of names."""
        if not self.has(key):
            return ()
        value = self._values[key]
        words = value if isinstance(value, list) else [value]
        if len(words) > MAX_WORDS or not all(isinstance(one, str) and WORD.fullmatch(one) for one in words):
            self.fail(key, "expected a name or a list of names")
        return tuple(words)

    def size(self, key: str) -> int:
        """In bytes, at least one; a number, or its decimal text as AppDB writes it."""
        size_bytes = strict_json.integer(self._values.get(key))
        if not size_bytes:
            self.fail(key, f"{self._values.get(key)!r:.40} is not a size in bytes")
        return size_bytes

    def digest(self, key: str, bits: int) -> bytes:
        value = self._values.get(key)
        if not isinstance(value, str) or re.fullmatch(rf"[0-9a-fA-F]{{{bits // 4}}}", value, re.ASCII) is None:
            self.fail(key, f"expected {bits // 4} hex digits")
        return bytes.fromhex(value)

    def date(self, key: str) -> datetime:
        value = self._values.get(key)
        if not isinstance(value, str) or (found := parse_time(value)) is None:
            self.fail(key, f"{value!r:.40} is not a time like 2027-01-31T00:00:00Z")
        return found

    def url(self, key: str) -> str:
        return checked_url(self._values.get(key), self, key)


def checked_url(value: Any, where: JsonObject, key: str) -> str:
    if not isinstance(value, str) or _URL_CHARACTERS.fullmatch(value) is None or _URL.fullmatch(value) is None:
        where.fail(key, f"{value!r:.80} is not a URL in plain ASCII without blanks, quotes and passwords")
    return value
