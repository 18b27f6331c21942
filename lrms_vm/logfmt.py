"""The one form of our lines for logs: `name=value name="a value"`, which grep, awk and logfmt parsers read.

A value is as it is where it is plain; else in quotes as JSON has them, with everything odd escaped: no value can begin
a new line, close its quotes, or look like another name. Names are ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

MAX_VALUE_LETTERS = 1200  # as written; syslog(3) and journald take 2 KiB and more of a line
_PLAIN = re.compile(r"[A-Za-z0-9._:/@+-]+", re.ASCII)
_WORD = re.compile(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|[^ "]+)(?: |\Z)', re.ASCII)


def line(words: Mapping[str, object]) -> str:
    r"""One line, in the order given.

    >>> line({"job": "local-1.n", "text": "two\nlines"})
    'job=local-1.n text="two\\nlines"'
    """
    return " ".join(f"{name}={quoted(str(value))}" for name, value in words.items())


def quoted(value: str, *, at_most: int = MAX_VALUE_LETTERS) -> str:
    """The value as a line has it; what is too long ends with `...`."""
    if _PLAIN.fullmatch(value) and len(value) <= at_most:
        return value
    text = json.dumps(value)
    kept = value[:at_most]
    while len(text) > at_most:
        text = json.dumps(kept + "...")
        kept = kept[: len(kept) * 9 // 10]
    return text


def parse(text: str) -> dict[str, str]:
    """The words of such a line; raises `ValueError` for what is none."""
    words: dict[str, str] = {}
    at = 0
    while at < len(text):
        found = _WORD.match(text, at)
        if found is None or found[1] in words:
            raise ValueError(f"not a line of ours at letter {at}: {text[at : at + 40]!r}")
        words[found[1]] = json.loads(found[2]) if found[2].startswith('"') else found[2]
        at = found.end()
    return words
