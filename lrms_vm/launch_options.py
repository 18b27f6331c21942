"""Reading the command line that a guest asks a launcher (srun, pbsdsh) to be started with. Pure.

A launcher's table is an allow-list: where and how a job's tasks run may be said; nothing that would run or write
something on the host, reach another job, or bypass the guest. What is not in the table is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field

from lrms_vm.errors import UsageError
from lrms_vm.values import dataclass

Option = tuple[str, str | None]  # its long name, and its value if it has one


@dataclass(frozen=True)
class Grammar:
    """A launcher's options. `long` says of each: "=" takes a value, "?" may take one as --name=value only, "" none."""

    program: str
    long: Mapping[str, str]
    short: Mapping[str, str]  # a letter's long name
    refused: Mapping[str, str] = field(default_factory=dict)  # letters that are known and refused, likewise
    hints: Mapping[str, str] = field(default_factory=dict)  # for refused names
    has_long: bool = True  # False: its long names are ours only, for messages

    def read(self, arguments: Sequence[str]) -> tuple[list[Option], tuple[str, ...]]:
        """The options, and the command after them: as getopt_long(3) with bundles, abbreviations and values in the
        next word, up to the first operand. Raises `UsageError` (64) naming the option that is refused or unreadable."""
        options: list[Option] = []
        rest = list(arguments)
        while rest and rest[0].startswith("-") and rest[0] != "-":
            word = rest.pop(0)
            if word == "--":
                break
            options += [self._long(word, rest)] if word.startswith("--") else self._bundle(word, rest)
        return options, tuple(rest)

    def usage(self, what: str, hint: str = "") -> UsageError:
        """Called in a way that its manual page does not know."""
        return UsageError(f"{self.program}: {what}", hint=hint or f"see {self.program}(1)", code="launch-usage")

    def refusal(self, what: str, hint: str = "") -> UsageError:
        """Known, and not for a guest to ask."""
        hint = hint or "what is started from a guest may only say where and how its tasks run"
        return UsageError(f"{self.program}: {what}", hint=hint, code="launch-refused")

    def _long(self, word: str, rest: list[str]) -> Option:
        written, equals, value = word[2:].partition("=")
        name = self._full(written)
        takes = self.long[name]
        if takes == "" and equals:
            raise self.usage(f"--{name} takes no value")
        if takes == "=" and not equals:
            if not rest:
                raise self.usage(f"--{name} needs a value")
            return name, rest.pop(0)
        return name, value if equals else None

    def _full(self, written: str) -> str:
        """The option meant; exact, or an abbreviation of only one that the launcher or we know (getopt_long(3))."""
        if not self.has_long:
            raise self._refused(written)
        if written in self.long:
            return written
        known = [*self.long, *self.hints, *self.refused.values()]
        meant = sorted({name for name in known if written and name.startswith(written)})
        if len(meant) == 1 and meant[0] in self.long:
            return meant[0]
        raise self._refused(meant[0] if len(meant) == 1 else written)

    def _bundle(self, word: str, rest: list[str]) -> list[Option]:
        found: list[Option] = []
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter not in self.short:
                raise self._refused(self.refused.get(letter, ""), f"-{letter}")
            name = self.short[letter]
            takes = self.long[name]
            if takes == "":
                found.append((name, None))
            elif letters or takes == "?":  # -n2; an optional value only stands in the same word
                found.append((name, letters or None))
                letters = ""
            elif rest:
                found.append((name, rest.pop(0)))
            else:
                raise self.usage(f"-{letter} needs a value")
        return found

    def _refused(self, name: str, letter: str = "") -> UsageError:
        long = f"--{name}" if name else ""
        shown = f"{letter} ({long})" if letter and long else letter or long
        return self.refusal(f"option {shown!r:.80} is not possible from inside a guest", self.hints.get(name, ""))
