"""One table of a TOML file being read: each getter notes what is wrong and goes on, so all is told at once. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from lrms_vm.errors import UsageError
from lrms_vm.trust import dn
from lrms_vm.units import parse_duration_s, parse_size_bytes

MAX_ITEMS = 1000
MAX_DURATION_S = 3660 * 86400  # ten years: what is added to a date stays one
_HEX_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})", re.ASCII)
_RULE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,63}", re.ASCII)
_NETWORK = re.compile(r"none|nat|bridge:[A-Za-z0-9][A-Za-z0-9._-]{0,14}", re.ASCII)


class Table:
    """`where` opens every problem, which goes to `problems`. A getter takes its key away; `end` tells what is left."""

    def __init__(self, values: Mapping[str, Any], where: str, problems: list[str]) -> None:
        self._values = dict(values)
        self._where = where
        self._problems = problems

    def problem(self, key: str, what: str) -> None:
        shown = key if re.fullmatch(r"[\w-]{1,60}", key) else repr(key[:60])
        self._problems.append(f"{self._where} {shown}: {what}".strip())

    def has(self, key: str) -> bool:
        return key in self._values

    def take(self, key: str) -> Any:
        return self._values.pop(key, None)

    def end(self) -> None:
        for key in self._values:
            self.problem(key, "unknown key")

    def table(self, key: str, where: str) -> Table:
        value = self.take(key)
        if value is not None and not isinstance(value, dict):
            self.problem(key, "expected a table")
            value = None
        return Table(value or {}, where, self._problems)

    def named_tables(self, key: str) -> dict[str, Mapping[str, Any]]:
        """The tables [key.NAME] by name."""
        value = self.take(key)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(one, dict) for one in value.values()):
            self.problem(key, f"expected tables [{key}.NAME]")
            return {}
        return value

    def tables(self, key: str) -> list[Mapping[str, Any]]:
        """The tables [[key]] in their order."""
        value = self.take(key)
        if value is None:
            return []
        if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
            self.problem(key, f"expected [[{key}]] tables")
            return []
        if len(value) > MAX_ITEMS:
            self.problem(key, f"{len(value)} rules; at most {MAX_ITEMS}")
            return []
        return value

    def text(self, key: str) -> str | None:
        value = self.take(key)
        if value is None:
            return None
        if isinstance(value, str) and 0 < len(value) <= 1000 and value.isprintable():
            return value
        self.problem(key, f"expected a text, got {value!r:.60}")
        return None

    def texts(self, key: str, *, required: bool = False) -> tuple[str, ...]:
        value = self.take(key)
        if value is None:
            if required:
                self.problem(key, "missing")
            return ()
        if (
            isinstance(value, list)
            and 0 < len(value) <= MAX_ITEMS
            and all(isinstance(one, str) and 0 < len(one) <= 1000 and one.isprintable() for one in value)
        ):
            return tuple(value)
        self.problem(key, f"expected a list of texts that is not empty, got {value!r:.60}")
        return ()

    def words(self, key: str, allowed: Sequence[str], *, default: tuple[str, ...]) -> tuple[str, ...]:
        if key not in self._values:
            return default
        words = self.texts(key)
        for word in words:
            if word not in allowed:
                self.problem(key, f"expected some of {', '.join(allowed)}, got {word!r:.40}")
        return words

    def word(self, key: str, default: str, allowed: Sequence[str]) -> str:
        value = self.take(key)
        if value is None:
            return default
        if value not in allowed:
            expected = " or ".join(allowed)
            self.problem(key, f"{value!r:.40} is not supported by this version; expected {expected}")
            return default
        return str(value)

    def flag(self, key: str) -> bool:
        """Left out: false."""
        value = self.take(key)
        if value is None or isinstance(value, bool):
            return bool(value)
        self.problem(key, f"expected true or false, got {value!r:.40}")
        return False

    def never(self, key: str) -> None:
        """A flag of which this version honours false only."""
        if self.flag(key):
            self.problem(key, "True is not supported by this version; expected false")

    def number(self, key: str, default: int, least: int, most: int) -> int:
        value = self.take(key)
        if value is None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        self.problem(key, f"expected {least} to {most}, got {value!r:.40}")
        return default

    def path(self, key: str, default: str) -> str:
        value = self.text(key)
        if value is not None and (not value.startswith("/") or ".." in value.split("/")):
            self.problem(key, f"expected an absolute path, got {value!r:.60}")
        return value or default

    def duration_s(self, key: str, default: int, *, most: int = MAX_DURATION_S) -> int:
        value = self.text(key)
        try:
            found = default if value is None else parse_duration_s(value, source=key)
        except UsageError as error:
            self.problem(key, str(error))
            return default
        if found > most:
            self.problem(key, f"{value!r:.40} is too long; at most {most // 86400}d")
            return default
        return found

    def size_bytes(self, key: str, default: int) -> int:
        value = self.text(key)
        try:
            return default if value is None else parse_size_bytes(value, bare="", source=key)
        except UsageError as error:
            self.problem(key, str(error))
            return default

    def memory_mib(self, key: str) -> int | None:
        """Rounded down, for it is a limit; None where it is not said."""
        if not self.has(key):
            return None
        size_bytes = self.size_bytes(key, 1 << 20)
        if size_bytes < 1 << 20:
            self.problem(key, "less than 1 MiB is no memory")
        return size_bytes >> 20

    def network(self, key: str, *more: str) -> str | None:
        value = self.text(key)
        if value is not None and value not in more and _NETWORK.fullmatch(value) is None:
            self.problem(key, f"expected {', '.join(('none', 'nat', *more))} or bridge:NAME, got {value!r:.40}")
            return None
        return value

    def day(self, key: str) -> date | None:
        value = self.take(key)
        if value is None or type(value) is date:
            return value
        try:
            if isinstance(value, str) and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value, re.ASCII):
                return date.fromisoformat(value)
        except ValueError:
            pass  # reported below with every other form
        self.problem(key, f"expected a date like 2027-01-31, got {value!r:.40}")
        return None

    def digest(self, key: str, value: str) -> str:
        """`value` without its "sha256:"."""
        match = _HEX_DIGEST.fullmatch(value)
        if match is None:
            self.problem(key, f"expected a sha256 in 64 small hex digits, got {value!r:.80}")
            return ""
        return match[1]

    def version(self, key: str) -> str | None:
        value = self.take(key)
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63):
            return None if value is None else str(value)
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,18}){0,5}", value, re.ASCII):
            return value
        self.problem(key, f"expected a version like 42 or 1.10, got {value!r:.40}")
        return None

    def name(self, key: str, *, required: bool = False) -> dn.Dn | None:
        """A distinguished name."""
        there = self.has(key)
        value = self.text(key)
        if value is None:
            if required and not there:
                self.problem(key, "missing")
            return None
        try:
            return dn.parse(value)
        except ValueError as error:
            self.problem(key, str(error))
            return None

    def rule_name(self) -> str:
        value = self.text("name")
        if value is None or not is_rule_name(value):
            self.problem("name", f"expected a plain name, got {value!r:.60}")
        return value or ""


def is_rule_name(text: str) -> bool:
    return _RULE_NAME.fullmatch(text) is not None
