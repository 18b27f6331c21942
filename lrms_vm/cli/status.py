"""`lrms-vm status`: the guests on this node: whose, which image, which phase, how long, the end of the console."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from lrms_vm import config as configuration
from lrms_vm import provenance, record
from lrms_vm.errors import LrmsVmError, RequestError
from lrms_vm.paths import Places
from lrms_vm.verdict import READY, Verdict, read_verdict

CONSOLE_TAIL_BYTES = 2000


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "status",
        description="The guests of this node that you may see: root sees all, a user their own.",
        epilog="examples:\n  lrms-vm status\n  lrms-vm status 4711 --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("job", nargs="?", help="a job id: only this job, with the end of its guest's console")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=_status)


def _status(args: argparse.Namespace) -> int:
    config = configuration.load(args.config or configuration.DEFAULT_PATH, must_be_root_owned=False)
    rows = [row for row in rows_of(config.places) if args.job in (None, row["job_id"], row["key"])]
    if args.job is not None and not rows:
        raise RequestError(
            f"status: no guest of job {args.job!r} on this node that you may see",
            hint=f"looked in {config.run_dir}; is it running here?",
            code="job-unknown",
        )
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    if not rows:
        print("no guests on this node")
    for row in rows:
        whose = row["user"] or str(row["uid"])
        print(f"{row['key']:<28} {row['phase']:<14} {row['seconds']:>6.0f} s  {whose:<10} {row['image']}")
        if row["message"]:
            print(f"    {row['message']}")
        if args.job is not None:
            if row["provenance"]:
                print(f"    {row['provenance']}")
            print("".join(f"    | {line}\n" for line in row["console"].splitlines()[-12:]), end="")
    return 0


def rows_of(places: Places) -> list[dict[str, Any]]:
    """One row per job directory or verdict we may read, sorted by key."""
    keys = {path.name for path in _listed(places.jobs)} | {
        path.name.removesuffix(".json") for path in _listed(places.verdicts) if not path.name.startswith(".")
    }
    return [row for key in sorted(keys) if (row := _row(places, key)) is not None]


def _row(places: Places, key: str) -> dict[str, Any] | None:
    verdict = _verdict(places.verdict(key))
    job = places.job(key)
    try:
        noted = record.read(job.record)
    except LrmsVmError:
        noted = record.Noted()  # root's file; a user goes by the verdict
    if verdict is None and not noted.steps:
        return None
    begin = noted.steps.get("begin", {})
    started_at = verdict.started_at if verdict and verdict.started_at else begin.get("started_at", time.time())
    return {
        "key": key,
        "job_id": key.partition("-")[2].rpartition(".")[0].split(".")[0],
        "uid": verdict.uid if verdict else begin.get("uid"),
        "user": verdict.user_name if verdict else begin.get("user", ""),
        "phase": _phase(verdict, noted, job.user.ready, job.user.failed),
        "seconds": round(time.time() - started_at, 1),
        "image": verdict.image.get("name", "") if verdict else "",
        "digest": verdict.image.get("digest", "") if verdict else "",
        "signer": verdict.image.get("signer", "") if verdict else "",
        "rule": verdict.image.get("rule", "") if verdict else "",
        "provenance": provenance.line(key, verdict.user_name, verdict.image) if verdict and verdict.image else "",
        "message": verdict.message if verdict else "",
        "phases_ms": noted.phases_ms,
        "console": _tail(job.console),
    }


def _phase(verdict: Verdict | None, noted: record.Noted, ready: Path, failed: Path) -> str:
    if verdict is not None and verdict.state != READY:
        return "refused"
    if verdict is None:
        return f"prologue: {list(noted.steps)[-1]}"
    if _there(failed):
        return "guest lost"
    return "guest up" if _there(ready) else "booting"


def _there(path: Path) -> bool:
    try:
        path.lstat()
    except OSError:
        return False
    return True


def _verdict(path: Path) -> Verdict | None:
    try:
        return read_verdict(path.read_bytes(), source=str(path))
    except (OSError, LrmsVmError):
        return None  # another user's, or just gone


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - CONSOLE_TAIL_BYTES))
            text = file.read(CONSOLE_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    return "".join(letter for letter in text if letter.isprintable() or letter == "\n")


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []
