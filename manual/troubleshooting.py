"""docs/troubleshooting.md: codes, messages and blame from the source; cause and remedy from people."""

from __future__ import annotations

import re
from pathlib import Path

from manual.codes import KINDS, Code, collect

ROOT = Path(__file__).resolve().parent.parent
WORDS = Path(__file__).with_name("codes.txt")
MAX_MESSAGES = 12
HEAD = """\
# Troubleshooting: message, cause, remedy

A message of ours begins `lrms-vm:` in a job's output and `lrms_vm:` in a drained node's reason. Search this page for
its fixed words, or for the code: the log has it (`journalctl -t lrms_vm | grep job=KEY`, [seeing.md](seeing.md)), a
node's reason begins with it, and `lrms_vm_refusals_total` of `lrms-vm metrics` counts by it.

| whose fault | exit | what the user sees | what becomes of node and job |
| --- | --- | --- | --- |
| the request's | 77, 64 | the message in the job's output, and this exit code | the node stays, the job must change |
| the site's | 75 | the same; Grid Engine, Torque and OpenPBS try again three times first | the node stays |
| the site's settings | 78 | the same | the node stays; every VM job fails until they are mended |
| the node's | 69 | nothing: the job runs elsewhere | the node is taken out with the message as its reason |
| the guest's | 70 | the message and the end of the guest's console in the job's output | the node stays |

What each batch system does is in [exit-codes.md](exit-codes.md). `…` stands for what is filled in; a message without
one of its own here is passed on from a library or another program. This page is made from the source by `make pages`.
"""


def page() -> str:
    """The page's text. Raises `KeyError` for a code that nobody has written about."""
    found = collect()
    words, kinds = _own_words()
    trust = _trust_words()
    parts, done = [HEAD], set[str]()
    for heading, codes in [*words.items(), ("Signatures, rules and lists", trust)]:
        parts.append(f"\n## {heading}\n")
        for code, (cause, remedy) in sorted(codes.items()):
            if code in done:
                continue
            done.add(code)
            parts.append(_entry(code, found[code], cause, remedy, kinds.get(code, "")))
    missing = sorted(set(found) - done)
    if missing:
        raise KeyError(f"{WORDS.name}: no cause and remedy for {', '.join(missing)}")
    return "".join(parts)


def _entry(code: str, one: Code, cause: str, remedy: str, kind: str) -> str:
    kinds = sorted(one.kinds or {kind or "RequestError"}, key=lambda name: KINDS[name].exit_code)
    whose = ", ".join(f"{KINDS[name].blame} {KINDS[name].exit_code}" for name in kinds)
    who, _, what = remedy.partition(":")
    lines = [f"\n**`{code}`** ({whose}): {cause}. *{who.capitalize()}:*{what}.\n"]
    messages = sorted(one.messages)[:MAX_MESSAGES]
    lines += [f"- {_shown(message)}\n" for message in messages]
    return lines[0] + ("\n" if messages else "") + "".join(lines[1:])


def _shown(message: str) -> str:
    return "`` " + re.sub(r"\s+", " ", message).replace("``", "''") + " ``"


def _own_words() -> tuple[dict[str, dict[str, tuple[str, str]]], dict[str, str]]:
    """(cause, remedy) by heading and code, and the kinds that the source has in tables only."""
    sections: dict[str, dict[str, tuple[str, str]]] = {}
    kinds = {}
    for line in WORDS.read_text().splitlines():
        if line.startswith("## "):
            sections[line[3:]] = {}
        elif line and not line.startswith("#"):
            name, cause, remedy = (cell.strip() for cell in line.split(" | "))
            code, _, kind = name.partition(" ")
            if kind:
                kinds[code] = kind.strip("()")
            list(sections.values())[-1][code] = (cause, remedy)
    return sections, kinds


def _trust_words() -> dict[str, tuple[str, str]]:
    """The table of docs/trust.md, which tests/unit/test_trust_codes.py keeps true."""
    table = (ROOT / "docs" / "trust.md").read_text().partition("\n## Codes")[2]
    found: dict[str, tuple[str, str]] = {}
    for line in table.splitlines():
        if line.startswith("| `"):
            first, _, means, remedy = (cell.strip() for cell in line.split("|")[1:-1])
            if remedy == "as the message says" or ": " not in remedy:
                remedy = f"user: {remedy}"
            found |= {code: (means, remedy) for code in re.findall(r"`([a-z0-9-]+)`", first) if code != "accepted"}
    return found
