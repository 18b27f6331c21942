"""The node's counters on disk, for metrics.py. They are said to nobody's cost: what cannot be counted is not.

    state_dir/metrics/counters.json   0600 root    metrics.Counters, replaced whole, under a lock
    state_dir/metrics/left/<key>      0600 root    how many things of that job could not be removed, until they are

What is promised after a crash: a job's history and its count are two files. The count and the note that it is counted
are one, replaced at once: no job is counted twice. A job whose history is there and that is not counted is counted by
the next `lrms-vm metrics`; it is lost only where the same job ran here again, or 1000 more ended, before that. A
refusal, a retry or a leftover whose process dies between the deed and the count is not counted.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lrms_vm import locks
from lrms_vm.errors import LrmsVmError
from lrms_vm.metrics import Counters, read, write
from lrms_vm.paths import Places

LOCK_TIMEOUT_S = 2.0


def load(places: Places) -> Counters:
    """As they are. A file that cannot be read counts as nothing."""
    try:
        return read((places.metrics / "counters.json").read_bytes())
    except OSError:
        return Counters()


def job_ended(places: Places, history: Mapping[str, Any]) -> None:
    """Count one job by the history that was just kept."""
    _change(places, lambda counters: counters.ended(history))


def refused(places: Places, blame: str, code: str, *, sent_back: bool) -> None:
    """A prologue that made no guest; `sent_back`: its job was, to run elsewhere or later."""

    def change(counters: Counters) -> bool:
        counters.refused(blame, code)
        counters.retries += sent_back
        return True

    _change(places, change)


def left(places: Places, key: str, number: int) -> None:
    """How many things a teardown of this job could not remove. 0 costs next to nothing."""
    path = places.metrics / "left" / key
    try:
        if not number:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(str(number))
    except OSError:
        pass  # the log has it, and the batch system was told

    def change(counters: Counters) -> bool:
        counters.leftovers += number
        return True

    _change(places, change)


def left_now(places: Places) -> int:
    """What is left of all jobs, as far as anybody tried to remove it."""
    total = 0
    for path in _entries(places.metrics / "left"):
        try:
            total += int(path.read_bytes()[:20])
        except (OSError, ValueError):
            total += 1
    return total


def catch_up(places: Places) -> Counters:
    """Count the ended jobs whose count was lost to a crash; return the counters as they are then."""

    def change(counters: Counters) -> bool:
        paths = [path for path in _entries(places.history) if not path.name.startswith(".")]
        histories = sorted((_history(path) for path in paths), key=lambda one: str(one.get("ended_at", "")))
        return sum(counters.ended(one) for one in histories) > 0

    _change(places, change)
    return load(places)


def _change(places: Places, change: Callable[[Counters], bool]) -> None:
    """Read, change, replace, under the lock. Raises nothing: neither a full disk nor a stuck reader costs a job."""
    path = places.metrics / "counters.json"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locks.locked(path.with_name("lock"), deadline=time.monotonic() + LOCK_TIMEOUT_S):
            counters = load(places)
            if not change(counters):
                return
            fresh = path.with_name(".counters.json.new")
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(write(counters))
            fresh.replace(path)
    except (OSError, LrmsVmError):
        return


def _history(path: Path) -> dict[str, Any]:
    try:
        words = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return words if isinstance(words, dict) else {}


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []
