"""DRMAA's job template and job info as values: what is given to a library, and what its answers mean. Pure.

Only texts and flags ever reach a library: python drmaa sends an integer as that many NUL bytes, an empty text, so
that a limit of 60 s is no limit (measured on 0.7.9). Limits go into the native specification, in the system's words.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from lrms_vm.submit import gridengine, pbs
from lrms_vm.submit.carry import Carried
from lrms_vm.submit.job_script import program
from lrms_vm.submit.result import JobState, JobStatus, ended
from lrms_vm.submit.words import clock, merged, option_words, path

_UP_TO_A_MINUTE = timedelta(seconds=59)
INCREMENT = "$drmaa_incr_ph$"  # DRMAA 1.0, section 3.2.2

STATES = {
    "queued_active": JobState.QUEUED,
    "system_on_hold": JobState.HELD,
    "user_on_hold": JobState.HELD,
    "user_system_on_hold": JobState.HELD,
    "running": JobState.ACTIVE,
    "system_suspended": JobState.SUSPENDED,
    "user_suspended": JobState.SUSPENDED,
    "user_system_suspended": JobState.SUSPENDED,
    "undetermined": JobState.UNKNOWN,
    "done": JobState.ACTIVE,  # without job info: its end is not known yet
    "failed": JobState.FAILED,
}


def templates(
    carried: Carried, system: str, environment: Mapping[str, str], count: int | None, *, here: str | None = None
) -> list[dict[str, Any]]:
    """The job templates to run: one, or for pbs-drmaa, whose bulks are single jobs, one for each of the bulk.

    `here`: the submitter's directory, the job's too if it names none. Raises `UsageError`.
    """
    one_by_one = count is not None and system in ("torque", "openpbs")
    indices = range(1, count + 1) if one_by_one and count else (None,)
    bulk = count is not None
    return [_template(carried, system, environment, here=here, index=index, bulk=bulk) for index in indices]


def _template(
    carried: Carried, system: str, environment: Mapping[str, str], *, here: str | None, index: int | None, bulk: bool
) -> dict[str, Any]:
    job = carried.description
    directory = job.directory or here
    by_script = system in ("torque", "openpbs")  # pbs-drmaa writes these into its script without quotes
    line = program(
        (job.executable, *job.arguments),
        environment=environment,
        directory=directory if by_script else None,
        stdin=job.stdin_path if by_script else None,
        index=index,
        bulk=bulk and index is None,
        in_guest=carried.in_guest,
    )
    mark = str(index) if index is not None else INCREMENT if bulk else None
    beside = directory if by_script and directory else ""  # what qsub does; pbs-drmaa leaves it to the home directory

    def placed(text: str | None, where: str) -> str | None:
        return text and ":" + posixpath.join(beside, path(text, where, job=None, index=mark))

    said = {
        "remoteCommand": "/bin/sh",
        "args": ["-c", line],
        "jobName": job.name,
        "workingDirectory": None if by_script else directory,
        "inputPath": None if by_script else placed(job.stdin_path, "stdin_path"),
        "outputPath": placed(job.stdout_path, "stdout_path"),
        "errorPath": placed(job.stderr_path, "stderr_path"),
        "joinFiles": True if job.stdout_path and not job.stderr_path and not by_script else None,
        "jobEnvironment": dict(carried.variables) or None,
        "jobSubmissionState": "drmaa_hold" if job.held else None,
        "nativeSpecification": native(carried, system) or None,
    }
    return {name: value for name, value in said.items() if value}


def native(carried: Carried, system: str) -> str:
    """The native specification: what DRMAA has no attribute for. Raises `UsageError`."""
    job = carried.description
    if system == "gridengine":
        ours = [option for option in gridengine.submit_options(job) if option[0] in ("q", "A", "l")]
        if "w" not in dict(carried.options):
            ours.append(("w", "n"))  # as qsub does; the library's -w e refuses while no host is capable just now
        return gridengine.native(merged(ours, carried.options))
    if system != "slurm":
        ours = pbs.native_options(job, openpbs=system == "openpbs")
        return " ".join(option_words(merged(ours, carried.options)))
    wanted = job.resources
    # slurm_drmaa/util.c: these and no others; -t is HH:MM
    said: dict[str, str | None] = {
        "p": job.queue,
        "A": job.account,
        "t": clock(job.duration + _UP_TO_A_MINUTE).rpartition(":")[0] if job.duration else None,
        "N": _text(wanted.node_count),
        "n": _text(wanted.process_count),
        "ntasks-per-node": _text(wanted.processes_per_node),
        "c": _text(wanted.cpu_cores_per_process),
        "gres": f"gpu:{wanted.gpu_cores_per_process}" if wanted.gpu_cores_per_process else None,
        "mem": _text(wanted.memory_mib),
        "exclusive": "" if wanted.exclusive_node_use else None,
    }
    ours = [(name, value) for name, value in said.items() if value is not None]
    return " ".join(option_words(merged(ours, carried.options)))


def _text(number: int | None) -> str | None:
    return None if number is None else str(number)


def status(job_id: str, answer: Mapping[str, Any], system: str, *, terminated: bool) -> JobStatus:
    """What a library says of a job, by the table in `lrms_vm.submit.result`.

    `answer`: "state" as drmaa_job_ps has it; "info" of drmaa_wait, or None. `terminated`: by us, while it had not
    ended.
    """
    info = answer.get("info")
    if info is None:
        state = STATES.get(str(answer.get("state")), JobState.UNKNOWN)
        if state is JobState.FAILED:  # Grid Engine's error state; the others have an end to tell
            return ended(job_id, canceled=terminated, reason=str(answer.get("reason") or "in error state"))
        return JobStatus(job_id, state)
    code = int(info["exitStatus"])
    number = info.get("signal") if info["hasSignal"] else None
    if terminated:
        return ended(job_id, exit_code=code if info["hasExited"] else None, signal=number, canceled=True)
    if number is not None:
        return ended(job_id, signal=number)
    if info["hasSignal"]:
        return ended(job_id, reason="ended by a signal that the library does not name")
    if info["hasExited"]:
        return ended(job_id, exit_code=code & 0xFF)
    if system in ("torque", "openpbs") and 126 <= code <= 255:
        return ended(job_id, exit_code=code)
    return ended(job_id, canceled=bool(info["wasAborted"]) and system == "gridengine", reason="aborted")
