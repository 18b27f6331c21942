"""All tests, for `make test`: the emulated hosts beside what is in no hurry, then Slurm's bad nights alone.

The hosts are one with Xen, and after it one with systemd, cgroup v2 and KVM. Their guests mostly wait for each other, and
unit tests for nothing: side by side they take the time of the longer. What breaks things and measures patience against
Slurm's own clocks comes afterwards, with the machine to itself.
Each part is a pytest of its own. The exit code is that of the first part that failed; the later parts run all the same.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
LOGS = CHECKOUT / "build" / "test"
MACHINES = ("tests/integration/xen", "tests/integration/systemd")
GRIDENGINE = ("tests/integration/gridengine",)
USERS = tuple(
    f"tests/integration/slurm/test_{name}.py"
    for name in ("batch", "lists", "refusals", "run", "seeing", "shared_guest", "signals", "submit", "the_demo")
)
CLUSTERS = ("tests/integration", *(f"--ignore={path}" for path in (*MACHINES, *GRIDENGINE, *USERS)))
REST = ("lrms_vm", "tests", "--ignore=tests/integration")
STOP_S = 300  # how long a part that is told to stop may take to stop its daemons


@dataclass(frozen=True)
class Ended:
    """One part: what it was, pytest's exit code, and how long it took."""

    name: str
    exit_code: int
    took_s: float

    def line(self) -> str:
        return f"{self.name:<10} {'passed' if self.exit_code == 0 else 'FAILED'} in {self.took_s / 60:.1f} min"


def pytest(arguments: Sequence[str]) -> list[str]:
    """The command of a part."""
    return [sys.executable, "-m", "pytest", *arguments]


def here(name: str, arguments: Sequence[str]) -> Ended:
    """A part whose output is ours, and that a Ctrl-C reaches as it reaches us."""
    start = time.monotonic()
    process = subprocess.Popen(pytest(arguments), cwd=CHECKOUT)
    try:
        exit_code = process.wait()
    except KeyboardInterrupt:
        process.wait(STOP_S)  # it stops what its fixtures started
        raise
    return Ended(name, exit_code, time.monotonic() - start)


class Beside:
    """A part that runs beside another one; what it writes is kept in a file, and shown when it is waited for."""

    def __init__(self, name: str, argv: Sequence[str]) -> None:
        self.name, self.start = name, time.monotonic()
        LOGS.mkdir(parents=True, exist_ok=True)
        self.log = LOGS / f"{name}.log"
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                argv, cwd=CHECKOUT, stdout=file, stderr=file, stdin=subprocess.DEVNULL, process_group=0
            )
        print(f"{name}: runs beside the next part; see {self.log.relative_to(CHECKOUT)}", flush=True)

    def wait(self) -> Ended:
        exit_code = self.process.wait()
        print(self.log.read_text(errors="replace"), flush=True)
        return Ended(self.name, exit_code, time.monotonic() - self.start)

    def stop(self) -> None:
        """As Ctrl-C does it, which does not reach a process group of its own."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            self.process.wait(STOP_S)


def main() -> int:
    beside = Beside("machines", [sys.executable, "-m", "tests.machines"])
    try:
        ended = [here("rest", REST), here("gridengine", GRIDENGINE), here("users", USERS), beside.wait()]
        ended.append(here("clusters", CLUSTERS))
    finally:
        beside.stop()
    print("\n" + "\n".join(part.line() for part in ended))
    return next((part.exit_code for part in ended if part.exit_code), 0)


if __name__ == "__main__":
    sys.exit(main())
