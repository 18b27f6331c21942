"""From what the machines said to the table. Pure.

A `Run` is one boot of one configuration. Times are the machine's own, in ns: with -icount and SHIFT = 0, instructions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from figure3.payloads import PAYLOADS, ROWS, TURNS

REFERENCE = "native"
CLOCK_TOLERANCE = 1e-4  # how far a Linux's clock may be from the machine's time, as a fraction
_LINE = re.compile(r"figure3: (\{.*\})")
_JETS = re.compile(r"figure3: jets (0x[0-9a-f.p+]+)")
_FAILED = re.compile(r"figure3: failed: .*")


class ResultError(Exception):
    """The machine did not do what it should have; the text says what was missing or wrong."""


@dataclass(frozen=True)
class Measured:
    """One payload, once. `elapsed_ns`: the clock of the Linux it ran in; `ticks`: the machine's time stamp counter."""

    payload: str
    turn: int
    elapsed_ns: int
    ticks: int
    user_us: int
    system_us: int


@dataclass(frozen=True)
class Run:
    """One boot."""

    boot: str
    measured: tuple[Measured, ...]
    fingerprint: str  # of the jets found

    def of(self, payload: str, turn: int = TURNS) -> Measured:
        return next(one for one in self.measured if (one.payload, one.turn) == (payload, turn))

    def row_ns(self, row: str) -> int:
        """The machine's time of all payloads of a row, in their last turn."""
        return sum(self.of(payload.name).ticks for payload in PAYLOADS if payload.row == row)


def parse(boot: str, console: str) -> Run:
    """Read what a machine printed. Raises `ResultError` for anything missing, failed or inconsistent."""
    if failed := _FAILED.search(console):
        raise ResultError(f"{boot}: {failed[0]}")
    measured = []
    for found in _LINE.finditer(console):
        try:
            said: dict[str, Any] = json.loads(found[1])
            status = int(said.pop("status"))
            one = Measured(**said)
        except (ValueError, KeyError, TypeError) as error:
            raise ResultError(f"{boot}: cannot read {found[0][:200]!r}") from error
        if status != 0:
            raise ResultError(f"{boot}: payload {one.payload} ended with {status}")
        if abs(one.elapsed_ns - one.ticks) > CLOCK_TOLERANCE * one.ticks:
            raise ResultError(
                f"{boot}: {one.payload}: its clock says {one.elapsed_ns} ns, the machine's counter {one.ticks}: "
                "the clock of this Linux is not the machine's time"
            )
        measured.append(one)
    expected = [(payload.name, turn) for turn in range(1, TURNS + 1) for payload in PAYLOADS]
    if (seen := [(one.payload, one.turn) for one in measured]) != expected:
        missing = [f"{name} {turn}" for name, turn in expected if (name, turn) not in seen]
        raise ResultError(
            f"{boot}: did not come to its end; missing: {', '.join(missing) or 'nothing, but out of order'}"
        )
    prints = set(_JETS.findall(console))
    if len(prints) != 1:
        raise ResultError(f"{boot}: expected one fingerprint of the jets, got {sorted(prints)}")
    return Run(boot, tuple(measured), prints.pop())


def to_json(run: Run) -> dict[str, Any]:
    return asdict(run)


def from_json(said: Mapping[str, Any]) -> Run:
    """The reverse of `to_json`."""
    return Run(said["boot"], tuple(Measured(**one) for one in said["measured"]), said["fingerprint"])


@dataclass(frozen=True)
class Cell:
    """One payload or row on one configuration, over its runs.

    `relative`: native time / this time, the talk's measure: 1 is native speed, less is slower. `spread`: largest less
    smallest of the runs, as a fraction of the smallest; 0 when they agree to the instruction.
    """

    name: str
    boot: str
    time_ns: int
    relative: float
    spread: float


def cells(runs: Sequence[Run]) -> list[Cell]:
    """Rows, then single payloads, of each configuration. Raises `ResultError` when the jets differ anywhere."""
    if len(prints := {run.fingerprint for run in runs}) != 1:
        raise ResultError(f"the jets are not the same everywhere: {sorted(prints)}")
    by_boot: dict[str, list[Run]] = {}
    for run in runs:
        by_boot.setdefault(run.boot, []).append(run)
    found = []
    for name in (*ROWS, *(payload.name for payload in PAYLOADS if payload.name not in ROWS)):
        times = {boot: [_time_ns(run, name) for run in many] for boot, many in by_boot.items()}
        reference_ns = min(times[REFERENCE])
        for boot, many_ns in times.items():
            least_ns = min(many_ns)
            spread = (max(many_ns) - least_ns) / least_ns
            found.append(Cell(name, boot, least_ns, reference_ns / least_ns, spread))
    return found


def _time_ns(run: Run, name: str) -> int:
    return run.row_ns(name) if name in ROWS else run.of(name).ticks


def clock_error(runs: Sequence[Run]) -> float:
    """The most that a clock was away from the machine's time, as a fraction."""
    return max(abs(one.elapsed_ns - one.ticks) / one.ticks for run in runs for one in run.measured)


def table(found: Sequence[Cell], boots: Sequence[str]) -> str:
    """Time natively, then each configuration's relative performance."""
    others = [boot for boot in boots if boot != REFERENCE]
    lines = [f"{'payload':<10} {'native':>11} " + "".join(f"{boot:>9}" for boot in others) + f" {'spread':>9}   what"]
    singles = [payload for payload in PAYLOADS if payload.name not in ROWS]
    names = {**ROWS, **{payload.name: f"  of {payload.row}" for payload in singles}}
    by_key = {(cell.name, cell.boot): cell for cell in found}
    for name, what in names.items():
        row = [by_key[name, boot] for boot in boots]
        relative = "".join(f"{by_key[name, boot].relative:>9.3f}" for boot in others)
        native_ms = by_key[name, REFERENCE].time_ns / 1e6
        lines.append(f"{name:<10} {native_ms:>8.1f} ms {relative} {max(cell.spread for cell in row):>9.1e}   {what}")
    return "\n".join(lines)
