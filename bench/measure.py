"""How we time: interleaved pairs, medians. A shared, noisy machine makes absolute times worthless, pairs less so."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

FASTER = "faster"  # the unit of a value that is theirs / ours: the more the better


@dataclass(frozen=True)
class Result:
    """One line of the table. `goal` is the most that `value` may be, or the least where it says how much faster."""

    name: str
    value: float
    unit: str
    goal: float
    what: str

    @property
    def held(self) -> bool:
        return self.value >= self.goal if self.unit == FASTER else self.value <= self.goal


def wall_s(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def program(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> Callable[[], None]:
    """An action that runs a program to its end and fails if it does."""

    def run() -> None:
        subprocess.run(
            argv,
            check=True,
            env=dict(environment) if environment is not None else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    return run


def paired_medians_s(ours: Callable[[], object], theirs: Callable[[], object], *, times: int) -> tuple[float, float]:
    """Run both in turn `times` times, after one run of each that does not count; return the medians in seconds."""
    ours()
    theirs()
    pairs = [(wall_s(ours), wall_s(theirs)) for _ in range(times)]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


def write_results(results: Sequence[Result], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"results": [asdict(result) for result in results]}, indent=1) + "\n")


def table(results: Sequence[Result]) -> str:
    lines = [f"{'name':<24} {'value':>9} {'goal':>9}  unit   what"]
    for result in results:
        mark = " " if result.held else "!"
        lines.append(f"{result.name:<24} {result.value:>9.3f} {result.goal:>9.3f}{mark} {result.unit:<6} {result.what}")
    return "\n".join(lines)
