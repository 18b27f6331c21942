"""`lrms-vm report`: a picture of where a job's time went, or a node's."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from lrms_vm import config as configuration
from lrms_vm import record, store, teardown
from lrms_vm.errors import LrmsVmError, NodeError, RequestError, UsageError
from lrms_vm.paths import Places
from lrms_vm.report import Job, of_job, of_node

NEWEST = 40


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "report",
        description="Draw the phases of a job, its newest run on this node, or the node's newest jobs. Root's.",
        epilog="examples:\n  lrms-vm report 4711 --output job.svg\n  lrms-vm report --node --output node.svg",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("job", nargs="?", help="a job id or key, running or ended")
    parser.add_argument("--node", action="store_true", help=f"the newest {NEWEST} jobs of this node instead")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.svg", help="replaced at once")
    parser.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> int:
    if (args.job is None) != args.node:
        raise UsageError("report: of what?", hint="name a job, or say --node", code="option-unreadable")
    config = configuration.load(args.config or configuration.DEFAULT_PATH, must_be_root_owned=False)
    known = jobs_of(config.places)
    if args.node:
        name = known[0].key.partition(".")[2] if known else "this node"
        picture = of_node(name, known[:NEWEST])
    else:
        found = [job for job in known if args.job in (job.key, _job_id(job.key))]
        if not found:
            raise RequestError(
                f"report: nothing is kept of job {args.job!r} on this node that you may see",
                hint=f"as root; the newest {teardown.KEEP_HISTORY} jobs are kept in {config.places.history}",
                code="job-unknown",
            )
        picture = of_job(found[0])
    try:
        store.write_durably(args.output, picture.encode(), 0o644)
    except OSError as error:
        raise NodeError(f"{args.output}: cannot write: {error.strerror}", code="report-unwritable") from error
    print(args.output)
    return 0


def jobs_of(places: Places) -> list[Job]:
    """Those that ended and those that run, as far as we may read; the newest first."""
    found = {path.stem: teardown.read_history(places, path.stem) for path in _listed(places.history, "*.json")}
    jobs = [_job(key, words, lasted_s=teardown.lasted_s(words)) for key, words in found.items() if words]
    for path in _listed(places.jobs, "*"):
        try:
            noted = record.read(places.job(path.name).record)
        except LrmsVmError:
            continue
        if noted.steps:
            words = {**noted.steps.get("begin", {}), **noted.steps.get("verified", {}), "phases_ms": noted.phases_ms}
            jobs.append(_job(path.name, words, lasted_s=noted.lasted_s(time.monotonic())))
    return sorted(jobs, key=lambda job: -job.started_at)


def _job(key: str, words: dict[str, Any], *, lasted_s: float | None) -> Job:
    """Where the job began is as the clock said then; how long it took is not by that clock, where that is known."""
    image, phases = words.get("image"), words.get("phases_ms")
    ended_at = _number(words.get("ended_at")) or time.time()
    started_at = _number(words.get("started_at")) or ended_at
    return Job(
        key=key,
        user=str(words.get("user", "")),
        image=str(image.get("name", "")) if isinstance(image, dict) else "",
        started_at=started_at,
        ended_at=ended_at if lasted_s is None else started_at + lasted_s,
        phases_ms={str(name): _number(ms) for name, ms in phases.items()} if isinstance(phases, dict) else {},
    )


def _job_id(key: str) -> str:
    """Of `Allocation.key`, as `status` reads it."""
    return key.partition("-")[2].split(".")[0]


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e12 else 0.0


def _listed(directory: Path, pattern: str) -> list[Path]:
    try:
        return [path for path in directory.glob(pattern) if not path.name.startswith(".")]
    except OSError:
        return []
