"""man(7), as little of it as three pages need."""

from __future__ import annotations


def escaped(text: str) -> str:
    """Text as it is: no backslash, dash or leading dot of it means anything to roff."""
    lines = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").split("\n")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in lines)


def title(name: str, section: int, version: str, line: str) -> str:
    head = f'.TH {escaped(name.upper())} {section} "" "lrms_vm {version}" "lrms_vm"\n'
    return f"{head}.SH NAME\n{escaped(name)} \\- {escaped(line)}\n"


def heading(text: str) -> str:
    return f".SH {escaped(text.upper())}\n"


def subheading(text: str) -> str:
    return f".SS {escaped(text)}\n"


def paragraph(text: str) -> str:
    return f".PP\n{escaped(text)}\n"


def term(word: str, meaning: str, value: str = "") -> str:
    """A word, the value that follows it, and what it means."""
    after = f" {escaped(value)}" if value else ""
    words = escaped(meaning) if meaning else "\\&"
    return f".TP\n\\fB{escaped(word)}\\fR{after}\n{words}\n"


def verbatim(text: str) -> str:
    return f".PP\n.nf\n{escaped(text.rstrip())}\n.fi\n"
