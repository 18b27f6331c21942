"""Slurm's own commands: descriptions in, words out; what squeue prints in, states out. Pure.

Not `squeue --json`: 22.05 ignores -t with it; not `sacct --json`: it says SUCCESS of failed jobs (docs/submit.md).
`squeue -O` prints columns of the width we ask for, none of them with a text that a user chose.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lrms_vm.errors import SiteError
from lrms_vm.submit.carry import Carried
from lrms_vm.submit.description import JobDescription
from lrms_vm.submit.result import JobState, JobStatus, ended
from lrms_vm.submit.words import clock, merged, option_words, path

COLUMNS = "ArrayJobID:20,ArrayTaskID:20,State:24,exit_code:16,Reason:64"
_ID = re.compile(r"[0-9]{1,10}(_[0-9]{1,7})?", re.ASCII)
_PARSABLE = re.compile(r"([0-9]{1,10})(?:;[A-Za-z0-9._-]+)?\s*", re.ASCII)
_ROW = re.compile(r"([0-9]+) +(\S+) +([A-Z_]+) +([0-9]+(?::[0-9]+)?) +(.*?) *", re.ASCII)

# squeue(1), JOB STATE CODES. COMPLETING: its payload ended, its epilogue runs.
STATES = {
    "PENDING": JobState.QUEUED,
    "REQUEUED": JobState.QUEUED,
    "REQUEUE_FED": JobState.QUEUED,
    "REQUEUE_HOLD": JobState.HELD,
    "RESV_DEL_HOLD": JobState.HELD,
    "SPECIAL_EXIT": JobState.HELD,
    "CONFIGURING": JobState.ACTIVE,
    "RUNNING": JobState.ACTIVE,
    "COMPLETING": JobState.ACTIVE,
    "RESIZING": JobState.ACTIVE,
    "SIGNALING": JobState.ACTIVE,
    "STAGE_OUT": JobState.ACTIVE,
    "SUSPENDED": JobState.SUSPENDED,
    "STOPPED": JobState.SUSPENDED,
    "COMPLETED": JobState.COMPLETED,
    "CANCELLED": JobState.CANCELED,
    "FAILED": JobState.FAILED,
    "BOOT_FAIL": JobState.FAILED,
    "DEADLINE": JobState.FAILED,
    "NODE_FAIL": JobState.FAILED,
    "OUT_OF_MEMORY": JobState.FAILED,
    "PREEMPTED": JobState.FAILED,
    "REVOKED": JobState.FAILED,
    "TIMEOUT": JobState.FAILED,
}
_HELD = ("JobHeldUser", "JobHeldAdmin", "launch failed requeued held", "job requeued in held state")


def submit_argv(sbatch: str, carried: Carried, count: int | None) -> list[str]:
    """sbatch(1); the script comes on its stdin. Raises `UsageError`."""
    options = merged(_options(carried.description, count), carried.options)
    return [sbatch, "--parsable", "--export=ALL", *option_words(options)]


def _options(job: JobDescription, count: int | None) -> list[tuple[str, str]]:
    marks = {"job": "%A" if count else "%j", "index": "%a" if count else None}
    wanted = job.resources
    said = {
        "job-name": job.name,
        "partition": job.queue,
        "account": job.account,
        "chdir": job.directory,
        "input": job.stdin_path and path(job.stdin_path, "stdin_path", **marks),
        "output": job.stdout_path and path(job.stdout_path, "stdout_path", **marks),
        "error": job.stderr_path and path(job.stderr_path, "stderr_path", **marks),
        "time": job.duration and clock(job.duration),
        "nodes": wanted.node_count,
        "ntasks": wanted.process_count,
        "ntasks-per-node": wanted.processes_per_node,
        "cpus-per-task": wanted.cpu_cores_per_process,
        "gpus-per-task": wanted.gpu_cores_per_process,
        "mem": wanted.memory_mib and f"{wanted.memory_mib}M",
        "array": count and f"1-{count}",
    }
    flags = [("exclusive", "")] * wanted.exclusive_node_use + [("hold", "")] * job.held
    return [(name, str(value)) for name, value in said.items() if value] + flags


def parse_submitted(text: str, count: int | None) -> list[str]:
    """The ids of what `sbatch --parsable` submitted."""
    match = _PARSABLE.fullmatch(text)
    if match is None:
        raise SiteError(f"sbatch --parsable: expected a job id, got {text[:80]!r}", code="submit-unreadable")
    return [f"{match[1]}_{index}" for index in range(1, count + 1)] if count else [match[1]]


def look_argv(squeue: str, job_ids: Sequence[str]) -> list[str]:
    """squeue(1): -r a row for each task, -t all the ended ones too."""
    return [squeue, "-r", "-h", "-t", "all", "-j", ",".join(job_ids), "-O", COLUMNS]


def list_argv(squeue: str, user: str) -> list[str]:
    return [squeue, "-r", "-h", "-u", user, "-O", COLUMNS]


def parse_look(text: str) -> dict[str, JobStatus]:
    """By job id. Raises `SiteError` for a row that cannot be read."""
    found = {}
    for line in text.splitlines():
        match = _ROW.fullmatch(line)
        if match is None or match[3] not in STATES:
            raise SiteError(f"squeue: cannot read {line[:120]!r}", code="controller-unreadable")
        job, task, state, exit_code, reason = match.groups()
        job_id = job if task == "N/A" else f"{job}_{task}"
        found[job_id] = status(job_id, state, exit_code, reason)
    return found


def status(job_id: str, word: str, exit_code: str, reason: str) -> JobStatus:
    """One job from Slurm's words. `exit_code` is a wait status (22.05), or CODE:SIGNAL (scontrol, later releases).

    >>> status("7", "FAILED", "33280", "NonZeroExitCode").result.exit_code
    130
    """
    state = STATES[word]
    if not state.ended:
        if state is JobState.QUEUED and reason in _HELD:
            state = JobState.HELD
        return JobStatus(job_id, state, "" if reason == "None" else reason)
    code, signal = _exit(exit_code)
    why = (
        word
        if word not in ("FAILED", "COMPLETED", "CANCELLED")
        else ""
        if reason in ("None", "NonZeroExitCode")
        else reason
    )
    if state is JobState.FAILED and not code and not signal:
        return ended(job_id, reason=why or word)  # TIMEOUT, NODE_FAIL ...: 0:0 there is not the payload's
    return ended(
        job_id,
        exit_code=code,
        signal=signal or None,
        canceled=state is JobState.CANCELED,
        reason=why if code or signal else "",
    )


def _exit(text: str) -> tuple[int, int]:
    """The payload's exit code and the signal that ended it."""
    if ":" in text:
        code, _, signal = text.partition(":")
        return int(code) & 0xFF, int(signal) & 0x7F
    return int(text) >> 8 & 0xFF, int(text) & 0x7F


CONTROLS: Mapping[str, tuple[str, ...]] = {
    "terminate": ("scancel",),
    "hold": ("scontrol", "hold"),
    "release": ("scontrol", "release"),
    "suspend": ("scontrol", "suspend"),
    "resume": ("scontrol", "resume"),
}


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None
