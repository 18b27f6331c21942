"""`make figure3`: boot each configuration, twice; write build/figure3/results.json and figure3.png, print the table.

Each boot is kept by what went into it, so a run that was cut short goes on where it stopped. `--again` throws the
boots away that are kept. What the numbers mean: docs/figure3.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from demo.layout import CHECKOUT
from demo.programs import DemoError, run
from demo.progress import say
from figure3 import boots, image, machine, results
from figure3.boots import BOOTS, Boot, Files
from figure3.results import ResultError, Run
from lrms_vm.errors import LrmsVmError

OUTPUT = CHECKOUT / "build" / "figure3"
DEFAULT_PLACE = Path("/var/lib/lrms_vm-figure3")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make figure3", description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=2, help="boots of each configuration (2)")
    parser.add_argument("--at-once", type=int, default=min(2, os.cpu_count() or 1), help="machines side by side (2)")
    parser.add_argument("--only", choices=sorted(BOOTS), action="append", help="boot these only, and make no table")
    parser.add_argument("--again", action="store_true", help="boot also what was booted before")
    args = parser.parse_args()
    try:
        files = image.make(Path(os.environ.get("LRMS_VM_FIGURE3_DIR") or DEFAULT_PLACE))
        runs = _runs(args.only or list(BOOTS), files, times=args.times, at_once=args.at_once, again=args.again)
        if args.only:
            return 0
        _write(runs, files)
    except (DemoError, LrmsVmError, ResultError) as error:
        print(f"figure3: {error}", file=sys.stderr)
        return 1
    return 0


def _runs(names: list[str], files: dict[str, Files], *, times: int, at_once: int, again: bool) -> list[Run]:
    """Every boot, from its file or by making it. One after the other per processor: they do not disturb each other,
    their time is not the host's."""
    wanted = [(BOOTS[name], number) for number in range(1, times + 1) for name in names]
    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(_kept, boot, files[boot.name], number, again=again) for boot, number in wanted]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _kept(boot: Boot, files: Files, number: int, *, again: bool) -> Run:
    console = OUTPUT / "runs" / f"{boot.name}-{number}.console"
    kept = console.with_suffix(".json")
    inputs = _inputs(boot, files)
    if kept.exists() and not again:
        said = json.loads(kept.read_text())
        if said["inputs"] == inputs:
            say(f"         {boot.name}, boot {number}: as kept in {kept}")
            return results.from_json(said["run"])
    made = machine.run(boot, files, console, label=f"{boot.name}, boot {number}")
    fresh = kept.with_suffix(".new")
    fresh.write_text(json.dumps({"inputs": inputs, "run": results.to_json(made)}, indent=1) + "\n")
    fresh.replace(kept)
    return made


def _inputs(boot: Boot, files: Files) -> str:
    """A digest of all that a boot depends on; the emulator is a part of it."""
    named = Files(Path("kernel"), Path("xen"), Path("initrd"), files.held_mib)  # wherever they are
    argv = boots.qemu_argv(boot, named, console=Path("console"))
    parts = [_qemu(), *argv, *(image.digest_of(path) for path in (files.kernel, files.xen, files.initrd))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _qemu() -> str:
    return run(["qemu-system-x86_64", "--version"]).partition("\n")[0]


def _write(runs: list[Run], files: dict[str, Files]) -> None:
    found = results.cells(runs)
    said: dict[str, Any] = {
        "unit": f"ns of the emulated machine; an instruction takes {1 << boots.SHIFT}",
        "relative": "native time / time, 1 is native",
        "machine": boots.qemu_argv(BOOTS["xen"], files["xen"], console=Path("console")),
        "emulator": _qemu(),
        "software": json.loads((files["xen"].kernel.parent / "boot.json").read_text()),
        "clock_error": results.clock_error(runs),
        "cells": [asdict(cell) for cell in found],
        "runs": [results.to_json(run) for run in runs],
    }
    OUTPUT.mkdir(parents=True, exist_ok=True)
    target = OUTPUT / "results.json"
    target.write_text(json.dumps(said, indent=1) + "\n")
    say("\n" + results.table(found, list(BOOTS)))
    say(f"\n{len(runs)} boots; jets the same in all, bit for bit; clocks within {results.clock_error(runs):.1e}")
    run([CHECKOUT / ".venv" / "bin" / "python", "-m", "figure3.plot", target, OUTPUT / "figure3.png"], cwd=CHECKOUT)
    say(f"results: {target}\nplot:    {OUTPUT / 'figure3.png'}")


if __name__ == "__main__":
    sys.exit(main())
