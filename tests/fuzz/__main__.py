"""python -m tests.fuzz [-s SECONDS] [TARGET ...]: each target for so long; a find is printed and kept, and fails.

With `atheris` installed (pip install atheris) it is led by coverage, else by chance from the same seeds.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.fuzz.mutate import mutated
from tests.fuzz.targets import SEEDS, TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("-s", "--seconds", type=int, default=20, help="for each target (default: 20)")
    parser.add_argument("-o", "--finds", type=Path, default=Path("build/fuzz"), help="directory for what is found")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    given = parser.parse_args()
    if unknown := sorted(set(given.targets) - set(TARGETS)):
        parser.error(f"no target {', '.join(unknown)}")
    given.finds.mkdir(parents=True, exist_ok=True)
    with_coverage = importlib.util.find_spec("atheris") is not None
    run = _led_by_coverage if with_coverage else _led_by_chance
    found = 0
    for target in given.targets or TARGETS:
        executions, finds = run(target, given.seconds, given.finds)
        print(f"{target:14} {executions:>10} executions in {given.seconds} s: {finds or 'no'} finds", flush=True)
        found += finds
    return 1 if found else 0


def _led_by_chance(target: str, seconds: int, finds: Path) -> tuple[int, int]:
    chance, ends, executions, found = random.Random(), time.monotonic() + seconds, 0, 0
    while time.monotonic() < ends and found < 10:
        data = mutated(chance.choice(SEEDS[target]), chance)
        executions += 1
        try:
            TARGETS[target](data)
        except Exception:
            found += 1
            path = finds / f"{target}-{hashlib.sha256(data).hexdigest()[:12]}"
            path.write_bytes(data)
            print(f"{path}:\n{traceback.format_exc()}", flush=True)
    return executions, found


def _led_by_coverage(target: str, seconds: int, finds: Path) -> tuple[int, int]:
    with tempfile.TemporaryDirectory(prefix="lrms_vm-fuzz-") as corpus:
        for number, seed in enumerate(SEEDS[target]):
            (Path(corpus) / str(number)).write_bytes(seed)
        argv = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "tests.fuzz.by_coverage",
            target,
            corpus,
            str(seconds),
            str(finds),
        ]
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace")
    counted = re.findall(r"^#(\d+)\s", done.stderr, re.MULTILINE)
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], flush=True)
    return int(counted[-1]) if counted else 0, int(done.returncode != 0)


if __name__ == "__main__":
    raise SystemExit(main())
