"""What we made for one job on one node, noted before it is made, so that whatever happens next can undo it.

`record.jsonl` is append-only: one JSON object a line. A line cut short by a crash is the last one and is ignored:
the step it announced had not begun. The record lives in run_dir, which a reboot empties together with the guests;
what survives a reboot (disks, leases) is found by name.

`VERSION` goes up when a job leaves something that a teardown of before would not undo: such a teardown then refuses.
Older versions are read for ever: programs are upgraded while jobs run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import Any

from lrms_vm.errors import NodeError
from lrms_vm.values import dataclass

VERSION = 1
MAX_BYTES = 1 << 20

# Every step that changes the world, in order. The crash tests kill the prologue before and after each.
STEPS = (
    "begin",
    "lease",
    "verified",
    "disk_dir",
    "overlay",
    "network",
    "seed",
    "cgroup",
    "domain",
    "channel",
    "verdict",
    "attach",
    "done",
)


@dataclass(frozen=True)
class Noted:
    """What a record says, read back."""

    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    phases_ms: dict[str, float] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """The prologue came to its end."""
        return "done" in self.steps

    def lasted_s(self, now: float) -> float | None:
        """From the prologue's start to `now`, a time.monotonic() value: by the clock that nobody sets.

        None where the record does not say, or is of before a reboot, at which that clock begins anew.
        """
        began = self.steps.get("begin", {}).get("began")
        return now - began if isinstance(began, int | float) and began <= now else None


class Record:
    """The writing half; the prologue's alone."""

    def __init__(self, path: Path, *, on_note: Callable[[str], None] | None = None) -> None:
        """`on_note` is called with each step's name once it is noted: the crash tests end the process there."""
        self._path = path
        self._on_note = on_note

    def begin(self, **facts: Any) -> None:
        """Make the file. Its directory is there already."""
        self._append({"version": VERSION, "step": "begin", **facts}, os.O_CREAT | os.O_EXCL)
        self._noted("begin")

    def note(self, step: str, **facts: Any) -> None:
        """Say what is about to be made. Returns only when the line is written."""
        if step not in STEPS:
            raise ValueError(f"{step} is not in STEPS")  # a step that the crash tests do not know
        self._append({"step": step, "at": time.time(), **facts}, 0)
        self._noted(step)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens inside, in milliseconds."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.took(name, (time.monotonic() - start) * 1e3)

    def took(self, phase: str, ms: float) -> None:
        """Say how long a phase took."""
        self._append({"phase": phase, "ms": round(ms, 2)}, 0)

    def _noted(self, step: str) -> None:
        if self._on_note is not None:
            self._on_note(step)

    def _append(self, line: dict[str, Any], flags: int) -> None:
        text = json.dumps(line).encode() + b"\n"
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
            try:
                if os.write(fd, text) != len(text):
                    raise NodeError(f"{self._path}: written only in part", hint="is /run full?", code="disk-full")
            finally:
                os.close(fd)
        except OSError as error:
            raise NodeError(f"{self._path}: cannot write: {error.strerror}", code="record-unwritable") from error


def read(path: Path) -> Noted:
    """Read a record; an absent one notes nothing. Damaged lines are passed over: teardown works by name as well.

    Raises `NodeError`, also for a record by a newer version: it may list what this one does not know to undo.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES)
    except FileNotFoundError:
        return Noted()
    except OSError as error:
        raise NodeError(f"{path}: cannot read: {error.strerror}", code="record-unreadable") from error
    noted = Noted()
    for line in text.split(b"\n"):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), str):
            _require_known(entry.get("version", VERSION), path)
            noted.steps[entry["step"]] = entry
        elif (
            isinstance(entry, dict) and isinstance(entry.get("phase"), str) and isinstance(entry.get("ms"), int | float)
        ):
            noted.phases_ms[entry["phase"]] = noted.phases_ms.get(entry["phase"], 0.0) + float(entry["ms"])
    return noted


def _require_known(version: Any, path: Path) -> None:
    if type(version) is not int or not 1 <= version <= VERSION:
        raise NodeError(
            f"{path}: a record of version {version!r:.20}, this lrms_vm knows up to {VERSION}; nothing is touched",
            hint="install the newer lrms_vm again, then `lrms-vm reap`",
            code="record-newer",
        )
