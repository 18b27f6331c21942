"""The commands of docs/admin.md, read from it: the nodes of the tests are installed by what administrators are told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from demo.layout import CHECKOUT

GUIDE = CHECKOUT / "docs" / "admin.md"
APT = "apt install "


def sections(hypervisor: str) -> tuple[str, ...]:
    """The headings, as the guide has them, of what is done before the node runs, in this order."""
    return (
        "1. The package, where users can execute it",
        f"With {hypervisor}",
        "2. The configuration",
        "3. Hooks and plugin",
    )


def commands(headings: Sequence[str], path: Path = GUIDE) -> list[str]:
    """One shell command a line: the indented lines below these headings. Raises `ValueError` for a heading gone."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("#").strip()
            found[heading] = []
        elif line.startswith("    ") and heading:
            found[heading].append(line.strip())
    if missing := [name for name in headings if not found.get(name)]:
        raise ValueError(f"{path}: no commands below the heading {missing[0]!r}")
    return [line for name in headings for line in found[name]]


def packages(lines: Sequence[str]) -> list[str]:
    """What these commands have apt install."""
    return [word for line in lines if line.startswith(APT) for word in line.removeprefix(APT).split()]
