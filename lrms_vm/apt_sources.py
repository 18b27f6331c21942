"""The host's own apt sources, cut down to one suite: an image is built from wherever this machine gets its packages.

Pure: text in, text out. sources.list(5) has two formats, one line per source and deb822 stanzas.
"""

from __future__ import annotations

import re

_LINE = re.compile(r"deb\s+(?:\[[^\]]*\]\s+)?\S+\s+(\S+)(?:\s+\S+)*\s*", re.ASCII)
_FIELD = re.compile(r"([A-Za-z-]+):\s*(.*)", re.ASCII)


def lines_for_suite(text: str, suite: str) -> str:
    """The one-line sources of `suite`, its updates and its security archive.

    >>> lines_for_suite("deb uri:a bookworm main\\ndeb uri:b nodistro main\\n", "bookworm")
    'deb uri:a bookworm main\\n'
    """
    kept = []
    for line in text.splitlines():
        bare = line.partition("#")[0].strip()
        match = _LINE.fullmatch(bare)
        if match and _belongs(match[1], suite):
            kept.append(bare + "\n")
    return "".join(kept)


def stanzas_for_suite(text: str, suite: str) -> str:
    """The deb822 stanzas of binary packages of `suite`; other suites a stanza names are left out of it."""
    kept = []
    for stanza in re.split(r"\n\s*\n", text):
        lines = [line for line in stanza.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        fields = {m[1].lower(): m[2].split() for line in lines if (m := _FIELD.fullmatch(line))}
        suites = [name for name in fields.get("suites", []) if _belongs(name, suite)]
        if not suites or "deb" not in fields.get("types", []) or fields.get("enabled") == ["no"]:
            continue
        kept.append("\n".join(_with(line, suites) for line in lines) + "\n")
    return "\n".join(kept)


def _belongs(name: str, suite: str) -> bool:
    return name in (suite, f"{suite}-updates", f"{suite}-security", f"{suite}/updates")


def _with(line: str, suites: list[str]) -> str:
    lowered = line.lower()
    if lowered.startswith("suites:"):
        return "Suites: " + " ".join(suites)
    return "Types: deb" if lowered.startswith("types:") else line
