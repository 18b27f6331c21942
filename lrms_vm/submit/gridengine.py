"""Grid Engine's own commands: descriptions in, words out; what qstat and qacct print in, states out. Pure.

Seen on 8.1.9. A job leaves qstat when it ends and stands in qacct's file some seconds later; one that is deleted
before it ran never does. One that its prolog refused stays in qstat in the state Eqw, which is an end here; unless it
was submitted through DRMAA: that one ends, with exit status 0.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence

from lrms_vm.errors import SiteError, UsageError
from lrms_vm.submit.carry import Carried
from lrms_vm.submit.description import JobDescription
from lrms_vm.submit.result import JobState, JobStatus, ended
from lrms_vm.submit.words import merged, path, seconds

MAX_TEXT = 64 << 20
# sge_status(5): "assumedly after job", it ran and died by a signal; "application error returned", it ended with 100
AFTER_JOB, APPLICATION_ERROR = 100, 30
_ID = re.compile(r"[0-9]{1,10}(\.[0-9]{1,7})?", re.ASCII)
_TERSE = re.compile(r"([0-9]{1,10})(?:\.[0-9]+-[0-9]+:[0-9]+)?\s*", re.ASCII)
_FIELD = re.compile(r"^(failed|exit_status) +([0-9]+)(?: *: *(.*?))?(?: +\(.*\))? *$", re.MULTILINE)
_REASON = re.compile(r"^error reason +([0-9]+): +(?:[0-9/]+ [0-9:]+ )?(?:\[[0-9:]+\]: )?(.*?) *$", re.MULTILINE)

CONTROLS: Mapping[str, tuple[str, ...]] = {
    "terminate": ("qdel",),
    "hold": ("qhold",),
    "release": ("qrls",),
    "suspend": ("qmod", "-sj"),
    "resume": ("qmod", "-usj"),
}


def submit_argv(qsub: str, carried: Carried, count: int | None) -> list[str]:
    """qsub(1); the script comes on its stdin. Variables go by name: their values are in qsub's own environment, where
    a comma harms nothing. Raises `UsageError`."""
    options = merged(submit_options(carried.description), carried.options)
    if count:
        options.append(("t", f"1-{count}"))
    if carried.variables:
        options.append(("v", ",".join(name for name, _ in carried.variables)))
    return [qsub, "-terse", "-S", "/bin/sh", *_words(options)]


def submit_options(job: JobDescription) -> list[tuple[str, str]]:
    """What is said by options, on the command line as in DRMAA's nativeSpecification."""
    marks = {"job": "$JOB_ID", "index": "$TASK_ID"}
    _only_one_process(job)
    said = {
        "N": job.name,
        "q": job.queue,
        "A": job.account,
        "wd": job.directory,
        "i": job.stdin_path and path(job.stdin_path, "stdin_path", **marks),
        "o": job.stdout_path and path(job.stdout_path, "stdout_path", **marks),
        "e": job.stderr_path and path(job.stderr_path, "stderr_path", **marks),
        "j": "y" if job.stdout_path and not job.stderr_path else None,
    }
    wanted = {"h_rt": job.duration and seconds(job.duration)}
    wanted["mem_free"] = job.resources.memory_mib and f"{job.resources.memory_mib}M"  # type: ignore[assignment]
    listed = [("l", f"{name}={value}") for name, value in wanted.items() if value]
    exclusive = [("l", "exclusive=TRUE")] * job.resources.exclusive_node_use
    return [(name, text) for name, text in said.items() if text] + listed + exclusive + [("h", "")] * job.held


def _only_one_process(job: JobDescription) -> None:
    wanted = job.resources
    for name in ("node_count", "process_count", "processes_per_node", "cpu_cores_per_process", "gpu_cores_per_process"):
        if (getattr(wanted, name) or 1) > 1:
            raise UsageError(
                f"resources.{name}: Grid Engine's parallel environments have names of the site's own",
                hint='custom_attributes {"gridengine.pe": "NAME 4"}',
                code="carrier-unfit",
            )


def _words(options: Sequence[tuple[str, str]]) -> list[str]:
    """qsub's options have one dash, long ones too; `-pe NAME 4` is two words."""
    words = []
    for name, value in options:
        words += [f"-{name}", *(value.split() if name == "pe" else [value] if value else [])]
    return words


def native(options: Sequence[tuple[str, str]]) -> str:
    """The options as DRMAA's nativeSpecification."""
    return " ".join(_words(options))


def parse_submitted(text: str, count: int | None) -> list[str]:
    match = _TERSE.fullmatch(text.strip().rpartition("\n")[2])
    if match is None:
        raise SiteError(f"qsub -terse: expected a job id, got {text[:80]!r}", code="submit-unreadable")
    return [f"{match[1]}.{index}" for index in range(1, count + 1)] if count else [match[1]]


def list_argv(qstat: str, user: str) -> list[str]:
    """qstat(1): -g d a row for each task."""
    return [qstat, "-xml", "-g", "d", "-u", user]


def parse_list(text: str) -> dict[str, JobStatus]:
    """All of a user's jobs that have not ended, by id. A job's tasks without a row of their own stand as one.

    Raises `SiteError`.
    """
    if len(text) > MAX_TEXT:
        raise SiteError(f"qstat -xml: more than {MAX_TEXT} characters", code="controller-unreadable")
    try:
        rows = ElementTree.fromstring(text).iter("job_list")  # noqa: S314 - qmaster's answer, expat bounds entities
        found = [status(row) for row in rows]
    except ElementTree.ParseError as error:
        raise SiteError(f"qstat -xml: {error}", code="controller-unreadable") from error
    return {look.job_id: look for look in found}


def status(row: ElementTree.Element) -> JobStatus:
    number, task, letters = (row.findtext(name, "").strip() for name in ("JB_job_number", "tasks", "state"))
    if not number.isdecimal() or not letters.isalpha():
        raise SiteError(f"qstat -xml: a job {number[:20]!r} in state {letters[:20]!r}", code="controller-unreadable")
    job_id = f"{number}.{task}" if task.isdecimal() else number
    if "E" in letters:
        return ended(job_id, reason=f"in error state {letters}")
    for marks, state in (("sST", JobState.SUSPENDED), ("h", JobState.HELD), ("rtd", JobState.ACTIVE)):
        if any(letter in letters for letter in marks):
            return JobStatus(job_id, state)
    return JobStatus(job_id, JobState.QUEUED)


def reason_argv(qstat: str, job_id: str) -> list[str]:
    return [qstat, "-j", job_id.partition(".")[0]]


def parse_reason(text: str, job_id: str) -> str:
    """Why a job is in error: what `qstat -j` says of it or of its task."""
    reasons: dict[str, str] = dict(_REASON.findall(text))
    return reasons.get(job_id.partition(".")[2] or "1", next(iter(reasons.values()), ""))


def ended_argv(qacct: str, job_id: str) -> list[str]:
    job, _, task = job_id.partition(".")
    return [qacct, "-j", job, *(["-t", task] if task else [])]


def parse_ended(text: str, job_id: str) -> JobStatus | None:
    """How a job ended; the last record, when Grid Engine ran it more than once. None: not known (yet)."""
    fields: dict[str, tuple[str, str]] = {}
    for name, number, words in _FIELD.findall(text):
        fields[name] = (number, words)
    if len(fields) < 2:
        return None
    failed, code, reason = int(fields["failed"][0]), int(fields["exit_status"][0]), fields["failed"][1]
    if failed == 0:
        return ended(job_id, exit_code=code & 0xFF)
    if failed == APPLICATION_ERROR and code == 0:
        return ended(job_id, reason=f"{reason}: refused by its prolog, the job's stderr says why")
    if failed in (AFTER_JOB, APPLICATION_ERROR) and code <= 128:
        return ended(job_id, exit_code=code or None, reason=reason)  # 0: deleted before its payload ran
    return ended(job_id, signal=code - 128 if code > 128 else None, reason="" if failed == AFTER_JOB else reason)


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None
