"""The commands of Torque and OpenPBS: descriptions in, words out; what `qstat -f` prints in, states out. Pure.

Exit_status (qstat(1B), pbs_job_attributes(7B)): below 0 the job never ran its payload, from 256 a signal ended it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lrms_vm.errors import SiteError
from lrms_vm.submit.carry import Carried
from lrms_vm.submit.description import JobDescription
from lrms_vm.submit.result import JobState, JobStatus, ended
from lrms_vm.submit.words import clock, merged, option_words, path

_ID = re.compile(r"[0-9]{1,12}(\[[0-9]*\])?(\.[A-Za-z0-9._-]+)?", re.ASCII)
_RECORD = re.compile(r"^Job Id: (\S+) *$", re.MULTILINE)
_FIELD = re.compile(r"^ {4}([A-Za-z_]+) = (.*)$")
_NUMBER = re.compile(r"-?[0-9]{1,6}", re.ASCII)

# qstat(1B). C and F: ended; X: an ended task of an array (OpenPBS); E: its epilogue runs.
STATES = {
    "Q": JobState.QUEUED,
    "T": JobState.QUEUED,
    "W": JobState.QUEUED,
    "M": JobState.QUEUED,
    "H": JobState.HELD,
    "R": JobState.ACTIVE,
    "B": JobState.ACTIVE,
    "E": JobState.ACTIVE,
    "S": JobState.SUSPENDED,
    "U": JobState.SUSPENDED,
}
ENDED = ("C", "F", "X")

CONTROLS: Mapping[str, tuple[str, ...]] = {
    "terminate": ("qdel",),
    "hold": ("qhold", "-h", "u"),
    "release": ("qrls", "-h", "u"),
    "suspend": ("qsig", "-s", "suspend"),
    "resume": ("qsig", "-s", "resume"),
}


def submit_argv(qsub: str, carried: Carried, count: int | None, *, openpbs: bool) -> list[str]:
    """qsub(1B); the script comes on its stdin. Raises `UsageError`."""
    options = merged(submit_options(carried.description, openpbs=openpbs), carried.options)
    if count:
        options.append(("J" if openpbs else "t", f"1-{count}"))
    if carried.variables:
        options.append(("v", variable_list(carried)))
    return [qsub, "-S", "/bin/sh", *option_words(options)]


def variable_list(carried: Carried) -> str:
    return ",".join(f"{name}={value}" for name, value in carried.variables)


def submit_options(job: JobDescription, *, openpbs: bool) -> list[tuple[str, str]]:
    """The working directory and stdin are the script's affair: the two systems differ in how they are told."""
    marks = {"job": None, "index": "^array_index^" if openpbs else None}
    said = {
        "N": job.name,
        "o": job.stdout_path and path(job.stdout_path, "stdout_path", **marks),
        "e": job.stderr_path and path(job.stderr_path, "stderr_path", **marks),
    }
    options = [(name, text) for name, text in said.items() if text]
    return options + native_options(job, openpbs=openpbs) + [("h", "")] * job.held


def native_options(job: JobDescription, *, openpbs: bool) -> list[tuple[str, str]]:
    """What DRMAA has no attribute for, or pbs-drmaa not the one that python's drmaa sends."""
    joined = "oe" if job.stdout_path and not job.stderr_path else None
    options = [(name, text) for name, text in (("q", job.queue), ("A", job.account), ("j", joined)) if text]
    if job.duration:
        options.append(("l", f"walltime={clock(job.duration)}"))
    if places := _select(job) if openpbs else _nodes(job):
        options.append(("l", places))
    if openpbs and job.resources.exclusive_node_use:
        options.append(("l", "place=excl"))
    return options


def _per_node(job: JobDescription) -> tuple[int, int]:
    """Nodes, and processors on each."""
    wanted = job.resources
    nodes = wanted.node_count or 1
    processes = wanted.processes_per_node or -(-(wanted.process_count or 1) // nodes)
    return nodes, processes * (wanted.cpu_cores_per_process or 1)


def _nodes(job: JobDescription) -> str:
    nodes, processors = _per_node(job)
    wanted = job.resources
    parts = []
    if (nodes, processors) != (1, 1):
        parts.append(f"nodes={nodes}:ppn={processors}")
    if wanted.memory_mib:
        parts.append(f"mem={wanted.memory_mib * nodes}mb")
    if wanted.exclusive_node_use:
        parts.append("naccesspolicy=singlejob")
    return ",".join(parts)


def _select(job: JobDescription) -> str:
    nodes, processors = _per_node(job)
    memory = f":mem={job.resources.memory_mib}mb" if job.resources.memory_mib else ""
    return f"select={nodes}:ncpus={processors}{memory}" if (nodes, processors) != (1, 1) or memory else ""


def parse_submitted(text: str, count: int | None) -> list[str]:
    """The ids of what qsub submitted: "42.server", for an array "42[].server"."""
    job_id = text.strip().rpartition("\n")[2]
    if _ID.fullmatch(job_id) is None or ("[]" in job_id) != bool(count):
        raise SiteError(f"qsub: expected a job id, got {text[:80]!r}", code="submit-unreadable")
    return [job_id.replace("[]", f"[{index}]") for index in range(1, count + 1)] if count else [job_id]


def look_argv(qstat: str, job_ids: Sequence[str], *, openpbs: bool) -> list[str]:
    """qstat(1B): OpenPBS keeps ended jobs for -x, Torque as long as the queue's keep_completed says."""
    return [qstat, *(["-x"] if openpbs else []), "-f", *job_ids]


def list_argv(qstat: str, *, openpbs: bool) -> list[str]:
    return [qstat, "-f", "-t"]


def parse_look(text: str) -> dict[str, tuple[JobStatus, str]]:
    """Status and owner by job id. A field of which a job has two is believed in neither place: a variable's value
    may hold a newline and a made-up field. Raises `SiteError`."""
    starts = list(_RECORD.finditer(text))
    found = {}
    for at, start in enumerate(starts):
        end = starts[at + 1].start() if at + 1 < len(starts) else len(text)
        fields = _fields(text[start.end() : end])
        found[start[1]] = (_status(start[1], fields), _one(fields, "Job_Owner").partition("@")[0])
    return found


def _fields(record: str) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for line in record.splitlines():
        if match := _FIELD.fullmatch(line):
            fields.setdefault(match[1].lower(), []).append(match[2])
        elif line.startswith("\t") and fields:
            next(reversed(fields.values()))[-1] += line[1:]  # a long value goes on
    return fields


def _one(fields: Mapping[str, list[str]], name: str) -> str:
    values = fields.get(name.lower(), [])
    return values[0] if len(values) == 1 else ""


def _status(job_id: str, fields: Mapping[str, list[str]]) -> JobStatus:
    letter, code, comment = (_one(fields, name) for name in ("job_state", "exit_status", "comment"))
    if letter in ENDED:
        if "exit_status" not in fields:
            return ended(job_id, canceled=True, reason=comment)  # deleted before it ran
        if _NUMBER.fullmatch(code) is None:
            return ended(job_id, reason="exit_status cannot be read: a variable of the job looks like it")
        number = int(code)
        if number < 0:
            return ended(job_id, reason=comment or f"exit_status {number}: its payload never ran")
        return ended(job_id, exit_code=number) if number < 256 else ended(job_id, signal=number - 256)
    if not letter:
        return JobStatus(job_id, JobState.UNKNOWN, "job_state cannot be read: a variable of the job looks like it")
    if letter not in STATES:
        raise SiteError(f"qstat -f: job {job_id} in state {letter[:20]!r}", code="controller-unreadable")
    return JobStatus(job_id, STATES[letter], comment)


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None
