"""The commands of docs/admin.md, read from it: the node of the tests is installed by what administrators are told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from demo.layout import CHECKOUT

GUIDE = CHECKOUT / "docs" / "admin.md"
# What is done before the node runs, in this order; the headings as the guide has them.
SECTIONS = (
    "1. The package, where users can execute it",
    "With Xen",
    "2. The configuration",
    "3. Hooks and plugin",
)
APT = "apt install "


def commands(path: Path = GUIDE, sections: Sequence[str] = SECTIONS) -> list[str]:
    """One shell command a line: the indented lines below these headings. Raises `ValueError` for a heading gone."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("#").strip()
            found[heading] = []
        elif line.startswith("    ") and heading:
            found[heading].append(line.strip())
    if missing := [name for name in sections if not found.get(name)]:
        raise ValueError(f"{path}: no commands below the heading {missing[0]!r}")
    return [line for name in sections for line in found[name]]


def packages(lines: Sequence[str]) -> list[str]:
    """What these commands have apt install."""
    return [word for line in lines if line.startswith(APT) for word in line.removeprefix(APT).split()]
