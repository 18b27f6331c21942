"""`lrms-vm status`: the guests on this node: whose, which image, which phase, how long, the end of the console."""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

from lrms_vm import config as configuration
from lrms_vm import provenance, record
from lrms_vm.errors import LrmsVmError, RequestError
from lrms_vm.paths import Places
from lrms_vm.teardown import MAX_USER_FILE_BYTES, lasted_s, read_history
from lrms_vm.verdict import READY, Verdict, read_verdict

CONSOLE_TAIL_BYTES = 2000
WATCH_S = 2.0
ENDED = "ended"
_OF_IMAGE = ("image", "digest", "signer", "rule")


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "status",
        description="The guests of this node that you may see: root sees all, a user their own.",
        epilog="examples:\n  lrms-vm status\n  lrms-vm status 4711 --watch",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("job", nargs="?", help="a job id: only this job, with the end of its guest's console")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument(
        "--watch", action="store_true", help=f"again every {WATCH_S:g} s; of one job until it is gone from this node"
    )
    parser.set_defaults(run=_status)


def _status(args: argparse.Namespace) -> int:
    config = configuration.load(args.config or configuration.DEFAULT_PATH, must_be_root_owned=False)
    rows = _wanted(config.places, args.job)
    while True:
        print(json.dumps(rows, indent=1) if args.json else _text(rows, in_full=args.job is not None), flush=True)
        if not args.watch or (rows and all(row["phase"] == ENDED for row in rows)):
            return 0
        time.sleep(WATCH_S)
        try:
            rows = _wanted(config.places, args.job)
        except RequestError:
            return 0  # it was here, and is gone
        if sys.stdout.isatty() and not args.json:
            print("\x1b[H\x1b[2J", end="")


def _wanted(places: Places, job: str | None) -> list[dict[str, Any]]:
    """What is to be shown. Raises `RequestError` where a job is named and there is nothing of it."""
    rows = [row for row in rows_of(places) if job in (None, row["job_id"], row["key"])]
    if job is not None and not rows:
        rows = _ended(places, job)
    if job is not None and not rows:
        raise RequestError(
            f"status: no guest of job {job!r} on this node that you may see",
            hint=f"looked in {places.run_dir}; is it running here?",
            code="job-unknown",
        )
    return rows


def _text(rows: list[dict[str, Any]], *, in_full: bool) -> str:
    lines = [] if rows else ["no guests on this node that you may see"]
    for row in rows:
        whose = str(row["user"] or row["uid"])
        lines.append(f"{row['key']:<28} {row['phase']:<14} {row['seconds']:>6.0f} s  {whose:<10} {row['image']}")
        lines += [f"    {row['message']}"] if row["message"] else []
        if in_full:
            lines += [f"    {row['provenance']}"] if row["provenance"] else []
            lines += [f"    {name}: {ms:.0f} ms" for name, ms in row["phases_ms"].items()]
            lines += [f"    | {line}" for line in row["console"].splitlines()[-12:]]
    return "\n".join(map(_printable, lines))


def rows_of(places: Places) -> list[dict[str, Any]]:
    """One row per job of this node, sorted by key: root sees all, others their own."""
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
    if os.geteuid() != 0 and verdict is not None and verdict.uid != os.geteuid():
        return None  # the job's group may read the verdict, and a group is not a user
    begin = noted.steps.get("begin", {})
    return {
        "key": key,
        "job_id": _job_id(key),
        "uid": verdict.uid if verdict else begin.get("uid"),
        "user": verdict.user_name if verdict else begin.get("user", ""),
        "phase": _phase(verdict, noted, job.user.ready, job.user.failed),
        "seconds": _seconds(verdict, noted),
        "image": verdict.image.get("name", "") if verdict else "",
        "digest": verdict.image.get("digest", "") if verdict else "",
        "signer": verdict.image.get("signer", "") if verdict else "",
        "rule": verdict.image.get("rule", "") if verdict else "",
        "provenance": provenance.line(key, verdict.user_name, verdict.image) if verdict and verdict.image else "",
        "message": (verdict.message if verdict else "") or _why_lost(job.user.failed, verdict),
        "phases_ms": noted.phases_ms,
        "console": _tail(job.console),
    }


def _seconds(verdict: Verdict | None, noted: record.Noted) -> float:
    """Since the prologue's start; of a refusal, or what an older version began, by the clock that may have been set."""
    if verdict is not None and verdict.handed_over:
        return max(0.0, round(verdict.since_start_ms(time.monotonic()) / 1e3, 1))
    if (lasted := noted.lasted_s(time.monotonic())) is not None:
        return round(lasted, 1)
    noted_at = noted.steps.get("begin", {}).get("started_at", time.time())
    began_at = verdict.started_at if verdict and verdict.started_at else noted_at
    return max(0.0, round(time.time() - began_at, 1))


def _phase(verdict: Verdict | None, noted: record.Noted, ready: Path, failed: Path) -> str:
    if verdict is not None and verdict.state != READY:
        return "refused"
    if verdict is None:
        return f"prologue: {list(noted.steps)[-1]}"
    if _there(failed):
        return "guest lost"
    return "guest up" if _there(ready) else "booting"


def _ended(places: Places, job: str) -> list[dict[str, Any]]:
    """The same rows of a job that is over, from what was kept of it: root's."""
    found = []
    for path in _listed(places.history):
        key = path.name.removesuffix(".json")
        kept = read_history(places, key) if not key.startswith(".") and job in (key, _job_id(key)) else {}
        image = kept.get("image") or {}
        if kept:
            found.append(
                {
                    "key": key,
                    "job_id": _job_id(key),
                    "uid": kept.get("uid"),
                    "user": kept.get("user", ""),
                    "phase": ENDED,
                    "seconds": round(lasted_s(kept), 1),
                    **{word: image.get(word if word != "image" else "name", "") for word in _OF_IMAGE},
                    "provenance": provenance.line(key, kept.get("user", ""), image, used=kept.get("used"))
                    if image
                    else "",
                    "message": "",
                    "phases_ms": kept.get("phases_ms", {}),
                    "console": "",
                }
            )
    return found


def _job_id(key: str) -> str:
    """Of `Allocation.key`, without what a server adds to it."""
    return key.partition("-")[2].rpartition(".")[0].split(".")[0]


def _why_lost(path: Path, verdict: Verdict | None) -> str:
    """What attach says of a guest that never came up. The user's own file: shown, never believed."""
    if verdict is None:
        return ""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != verdict.uid:
            return ""
        try:
            words = json.loads(file.read(MAX_USER_FILE_BYTES))
        except (ValueError, RecursionError):
            return ""
    return _printable(str(words.get("message", "")))[:1000] if isinstance(words, dict) else ""


def _printable(text: str) -> str:
    """Nothing of it moves a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


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
