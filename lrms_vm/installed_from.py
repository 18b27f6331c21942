"""Which sources an installation was made from: a program that was upgraded since needs its hooks put in place anew.

<prefix>/installed/<lrms>.sources     their digest, written beside the note (installed.py) when all is in place
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from lrms_vm.config import Config
from lrms_vm.errors import NodeError
from lrms_vm.finding import Finding, answer

SOURCES = Path(__file__).parent / "sources"  # in a checkout: links to spank/, guest/, prologue/, epilogue/
_NOT_SOURCES = (".so", ".o", ".new", ".pyc")
_BUILT = ("lrms-vm-guest",)


def digest(sources: Path = SOURCES) -> str:
    """Of every file that an installation is made from, names included; tests and what was built are none."""
    sum_ = hashlib.sha256()
    for directory, directories, names in os.walk(sources, followlinks=True):
        directories.sort()
        for name in sorted(names):
            if name.endswith(_NOT_SOURCES) or name.startswith(("test_", ".")) or name in _BUILT:
                continue
            path = Path(directory, name)
            content = path.read_bytes()
            sum_.update(f"{path.relative_to(sources)}\0{len(content)}\0".encode() + content)
    return sum_.hexdigest()


def stamp(note: Path) -> None:
    """Say beside an installation's note what it was made from. Raises `NodeError`."""
    path, text = note.with_suffix(".sources"), digest() + "\n"
    fresh = path.with_name(f".{path.name}.new")
    try:
        if not path.exists() or path.read_text() != text:
            fresh.write_text(text)
            fresh.replace(path)
    except OSError as error:
        raise NodeError(f"{path}: cannot write: {error.strerror}", code="install-failed") from error


def findings(config: Config) -> Iterator[Finding]:
    """For `doctor`: each installation that the configuration's guest program or plugin belongs to."""
    for named in dict.fromkeys(
        Path(path).parent.parent for path in (config.guest_program, config.spank_plugin) if path
    ):
        for note in sorted((named / "installed").glob("*.json")):
            yield of(note)


def of(note: Path) -> Finding:
    """Whether one installation is this version's."""
    lrms = note.stem
    try:
        same = note.with_suffix(".sources").read_text().strip() == digest()
    except FileNotFoundError:
        same = False
    found = f"{note.parent.parent}: " + ("this version's" if same else "put in place by another version of lrms_vm")
    service = {"slurm": "slurmd", "gridengine": "sge_execd", "torque": "pbs_mom"}.get(lrms)
    then = f", then restart {service}" if service else ""
    return answer(f"hooks for {lrms}", same, found, f"lrms-vm install --lrms={lrms} with the same options{then}")
