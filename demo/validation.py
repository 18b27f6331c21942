"""The run-time test of the original work: the same payload outside the guest, compared bit for bit, and the plot."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from demo.layout import CHECKOUT, Layout
from demo.programs import ENVIRONMENT, DemoError, run

JETS = CHECKOUT / "examples" / "jets"
EVENTS = 100  # as examples/jets/job.sh asks for when nothing is said


@dataclass(frozen=True)
class Validation:
    """What compare.py found."""

    jets: int
    events: int
    identical: bool
    text: str


def make_outside(layout: Layout) -> Path:
    """An interpreter with the payload's packages, on this machine. Made once per list of packages."""
    venv = layout.base / "outside"
    wanted = (JETS / "requirements.txt").read_text()
    stamp = venv / "requirements"
    if not stamp.exists() or stamp.read_text() != wanted:
        run(["/usr/bin/python3", "-m", "venv", venv], timeout_s=120)
        run(
            [venv / "bin" / "pip", "install", "-q", "--no-deps", "-r", JETS / "requirements.txt"],
            timeout_s=900,
            pip=True,
        )
        stamp.write_text(wanted)
    return venv / "bin" / "python"


def run_outside(layout: Layout, *, like: Path) -> Path:
    """The same payload without a guest, with as many events as `like`; return its result.

    Runs again only when its program, its packages or the number changed.
    """
    events = str(json.loads(like.read_text())["events"])
    python = make_outside(layout)
    said = hashlib.sha256((JETS / "jets.py").read_bytes() + (JETS / "requirements.txt").read_bytes()).hexdigest()
    result = layout.cache / f"jets-outside-{said[:16]}-{events}.json"
    if not result.exists():
        fresh = result.with_suffix(".new")
        run([python, JETS / "jets.py", "--events", events, "--out", fresh], timeout_s=600)
        fresh.replace(result)
    return result


def compare(inside: Path, outside: Path) -> Validation:
    """Bit for bit, by examples/jets/compare.py: exit 0 when identical."""
    done = subprocess.run(
        [sys.executable, str(JETS / "compare.py"), str(inside), str(outside), "--json"],
        capture_output=True,
        text=True,
        env=dict(ENVIRONMENT),
        timeout=60,
    )
    try:
        said = json.loads(done.stdout)
        return Validation(int(said["jets"]), int(said["events"]), done.returncode == 0 and bool(said["identical"]), "")
    except (ValueError, KeyError) as error:
        raise DemoError(f"compare.py: exit {done.returncode}: {done.stderr or done.stdout}") from error


def plot(inside: Path, outside: Path, target: Path) -> Path:
    """Both jet-pT spectra as a PNG."""
    run([CHECKOUT / ".venv" / "bin" / "python", JETS / "plot.py", inside, outside, target], timeout_s=120)
    return target
