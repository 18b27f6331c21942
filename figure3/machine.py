"""Run one boot to its end and read what the machine said on its serial line."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

from demo.programs import ENVIRONMENT, DemoError
from demo.progress import say
from figure3 import boots, results
from figure3.boots import Boot, Files
from figure3.results import Run

LIMIT_S = 1500
_TIMED = re.compile(r'"payload": "(\w+)", "turn": (\d+)')


def run(boot: Boot, files: Files, console: Path, *, label: str, limit_s: float = LIMIT_S) -> Run:
    """Raises `DemoError` with the end of the console when the machine fails or does not come to its end."""
    console.parent.mkdir(parents=True, exist_ok=True)
    console.unlink(missing_ok=True)
    # An emulator that outlives us would count on for minutes, with nobody to read it.
    argv = ["setpriv", "--pdeathsig", "KILL", *boots.qemu_argv(boot, files, console=console)]
    machine = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=dict(ENVIRONMENT)
    )
    start = time.monotonic()
    said = ""
    try:
        while machine.poll() is None:
            if time.monotonic() > start + limit_s:
                raise DemoError(f"{label}: no end within {limit_s:.0f} s; it said, in {console}:\n{_said(console)}")
            if (text := _progress(console)) != said:  # a line of its own: another machine may run beside
                say(f"{time.monotonic() - start:6.1f} s {label}: {text}")
                said = text
            time.sleep(0.5)
    finally:
        machine.kill()
        _, stderr = machine.communicate()
    if machine.returncode != 0:
        raise DemoError(f"{label}: qemu ended with {machine.returncode}: {stderr.decode('utf-8', 'replace')[-1000:]}")
    try:
        return results.parse(boot.name, console.read_text(errors="replace"))
    except results.ResultError as error:
        raise DemoError(f"{error}; it said, in {console}:\n{_said(console)}") from error


def _progress(console: Path) -> str:
    try:
        text = console.read_text(errors="replace")
    except FileNotFoundError:
        return "starting"
    done = _TIMED.findall(text)
    return f"{done[-1][0]} done, turn {done[-1][1]}" if done else "booting"


def _said(console: Path) -> str:
    try:
        return console.read_text(errors="replace")[-2000:]
    except FileNotFoundError:
        return "(nothing)"
