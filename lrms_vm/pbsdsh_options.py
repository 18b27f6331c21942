"""Which options `pbsdsh` inside a guest may give to the real one on the host: Torque's and OpenPBS's table. Pure.

Torque 6.1: -c copies, -n node, -h host, -u, -o, -s, -v, -e list, -E. OpenPBS 23.06: -c, -n, -h, -s, -v, -o. The same
letters but for -o: Torque's takes the tasks' output, OpenPBS's does not wait for them. Neither has long options.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from lrms_vm.launch_options import Grammar
from lrms_vm.values import dataclass

_BOTH = {"copies": "=", "node": "=", "host": "=", "synchronous": "", "verbose": "", "output": ""}
_BOTH_SHORT = {"c": "copies", "n": "node", "h": "host", "s": "synchronous", "v": "verbose", "o": "output"}
TORQUE = Grammar(
    "pbsdsh",
    {**_BOTH, "unique": "", "variables": "=", "all-variables": ""},
    {**_BOTH_SHORT, "u": "unique", "e": "variables", "E": "all-variables"},
    has_long=False,
)
OPENPBS = Grammar("pbsdsh", _BOTH, _BOTH_SHORT, has_long=False)

_VALUES = {
    "copies": (re.compile(r"[0-9]{1,9}", re.ASCII), "a number"),
    "node": (re.compile(r"[0-9]{1,9}", re.ASCII), "a node's number in the job"),
    "host": (re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}(/[0-9]{1,9})?", re.ASCII), "a host of the job"),
}


@dataclass(frozen=True)
class Tasks:
    """What the shim may ask of the real pbsdsh."""

    options: tuple[str, ...]  # as to be given, in their order
    variables: Mapping[bytes, bytes] | None  # of -e and -E, taken out of `options`; None: neither was given
    command: tuple[str, ...]


def parse(grammar: Grammar, arguments: Sequence[str], guest: Mapping[bytes, bytes]) -> Tasks:
    """Read pbsdsh's command line as Torque's does: options end at the first operand. `guest` is the environment there.

    Raises `UsageError` (64) naming the option that is refused or cannot be read.
    """
    options: list[str] = []
    variables: dict[bytes, bytes] | None = None
    found, command = grammar.read(arguments)
    letters = {name: letter for letter, name in grammar.short.items()}
    for name, value in found:
        if name == "all-variables":
            variables = {**(variables or {}), **guest}
        elif name == "variables":
            variables = {**(variables or {}), **_listed(value or "", guest)}
        elif value is None:
            options.append(f"-{letters[name]}")
        else:
            form, what = _VALUES[name]
            if form.fullmatch(value) is None:
                raise grammar.usage(f"-{letters[name]} {value!r:.80}: expected {what}")
            options += [f"-{letters[name]}", value]
    if not command:
        raise grammar.usage("no program to run", "pbsdsh [options] PROGRAM [arguments]")
    return Tasks(tuple(options), variables, command)


def _listed(text: str, guest: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """-e NAME[=VALUE],...: a name alone has the value it has here, or none."""
    words = (os.fsencode(word).partition(b"=") for word in text.split(",") if word)
    return {name: value if equals else guest.get(name, b"") for name, equals, value in words if name}
