"""A session with a batch system: submit, wait, look, control. What users of the Python API hold in their hands."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType

from lrms_vm.environment import HOST_NAMES, HOST_PREFIXES
from lrms_vm.errors import RequestError, SiteError, UsageError
from lrms_vm.submit import pyslurm_look
from lrms_vm.submit.backend import ACTIONS, Backend, Programs
from lrms_vm.submit.by_commands import ByCommands
from lrms_vm.submit.by_library import ByLibrary, find_library
from lrms_vm.submit.description import MAX_BULK, SHELLS_OWN, JobDescription, vm_options
from lrms_vm.submit.result import JobResult, JobState, JobStatus, ended
from lrms_vm.submit.systems import PROGRAMS, detect

LIBRARIES = ("auto", "drmaa", "commands")
FIRST_LOOK_S, LONGEST_PAUSE_S = 0.2, 5.0
# How long a job may be in no list before its end counts as lost: Grid Engine writes it up to 15 s later.
LOST_S = 45.0
_OURS = ("vm_capable", "vm_image")  # resources that `lrms-vm install` makes known to the batch system
_OF_A_JOB = ("SLURM_", "SLURMD_", "SBATCH_", "SGE_", "PBS_", "LRMS_VM_", "VM_", "BASH_FUNC_", "DRMAA_")


class Session:
    """Jobs on this host's batch system.

        with Session() as session:
            job = session.submit(JobDescription("./simulate", ("-n", "100"), image="hep-jets"))
            print(session.wait(job).returncode)

    `lrms`: the system's name where it cannot be detected. `library`: "drmaa", "commands", or "auto": the DRMAA
    library if there is one. `backend_name` says which it is and why. Jobs go on when the session ends.

    Every method raises `RequestError` where the job or the call must change, `SiteError` where the system does not
    answer.
    """

    def __init__(
        self,
        *,
        lrms: str | None = None,
        library: str = "auto",
        backend: Backend | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._backend = backend or choose(lrms=lrms, library=library, environ=os.environ)
        self._results: dict[str, JobResult] = {}
        self._terminated: set[str] = set()
        self._submitted: dict[str, None] = {}  # in their order
        self._clock, self._sleep = clock, sleep

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._backend.close()

    @property
    def backend_name(self) -> str:
        return self._backend.name

    @property
    def system(self) -> str:
        return self._backend.system

    @property
    def jobs(self) -> tuple[str, ...]:
        """What this session submitted."""
        return tuple(self._submitted)

    def submit(self, description: JobDescription) -> str:
        """Submit; return the job's id, as the system writes it."""
        return self._submit(description, None)[0]

    def submit_bulk(self, description: JobDescription, count: int) -> list[str]:
        """Submit `count` jobs at once; each has its BULK_INDEX, 1 to `count`. Returns their ids in that order."""
        if not 1 <= count <= MAX_BULK:
            raise UsageError(f"bulk: {count} jobs, expected 1 to {MAX_BULK}", code="description-unreadable")
        return self._submit(description, count)

    def _submit(self, description: JobDescription, count: int | None) -> list[str]:
        try:
            job_ids = self._backend.submit(description, environment(description, os.environ), count)
        except RequestError as error:
            if vm_options(description) and not error.hint and any(word in error.message for word in _OURS):
                error.hint = f"is lrms_vm installed for {self.system} here? lrms-vm install --lrms={self.system}"
            raise
        self._submitted |= dict.fromkeys(job_ids)
        return job_ids

    def status(self, job_id: str) -> JobStatus:
        """A look at one job, whoever submitted it."""
        return self.statuses([job_id])[job_id]

    def statuses(self, job_ids: Iterable[str]) -> dict[str, JobStatus]:
        """A look at several at once. A job that the system does not know is `UNKNOWN`."""
        wanted = list(dict.fromkeys(job_ids))
        known = {id_: self._told(self._results[id_]) for id_ in wanted if id_ in self._results}
        asked = [job_id for job_id in wanted if job_id not in known]
        found = {id_: self._meant(look) for id_, look in (self._backend.look(asked) if asked else {}).items()}
        self._results |= {job_id: look.result for job_id, look in found.items() if look.result is not None}
        return {id_: known.get(id_) or found.get(id_) or JobStatus(id_, JobState.UNKNOWN) for id_ in wanted}

    def wait(self, job_id: str, *, timeout: float | None = None) -> JobResult | None:
        """Wait until the job has ended; None when `timeout`, in seconds, is over before. Twice: the same result."""
        return self._wait((job_id,), timeout)

    def wait_any(self, job_ids: Sequence[str] | None = None, *, timeout: float | None = None) -> JobResult | None:
        """Wait until one of them has ended: of all of this session that were not waited for, if none are named."""
        jobs = tuple(job_ids if job_ids is not None else (id_ for id_ in self._submitted if id_ not in self._results))
        if not jobs:
            raise UsageError("wait_any: there is no job to wait for", code="job-unknown")
        return self._wait(jobs, timeout)

    def wait_all(
        self, job_ids: Sequence[str], *, on_look: Callable[[Mapping[str, JobStatus]], None] | None = None
    ) -> list[JobResult]:
        """Wait for all of them; results in their order. `on_look` sees each look, for progress."""
        left = list(dict.fromkeys(job_ids))
        while left:
            self._wait(left, None, on_look)
            left = [job_id for job_id in left if job_id not in self._results]
        return [self._results[job_id] for job_id in job_ids]

    def control(self, job_id: str, action: str) -> None:
        """terminate, hold, release, suspend or resume a job. One that we terminate ends as `CANCELED`; one that had
        ended before keeps its result."""
        if action not in ACTIONS:
            raise UsageError(f"control: {action[:40]!r} is not one of {', '.join(ACTIONS)}", code="action-unknown")
        if action == "terminate" and self.status(job_id).state.ended:
            return
        self._backend.control(job_id, action)
        if action == "terminate":
            self._terminated.add(job_id)

    def list(self) -> list[JobStatus]:
        """The caller's jobs that have not ended, of all sessions."""
        return self._backend.mine()

    # -- inside

    def _wait(
        self,
        job_ids: Sequence[str],
        timeout: float | None,
        on_look: Callable[[Mapping[str, JobStatus]], None] | None = None,
    ) -> JobResult | None:
        began = self._clock()
        missing_since: dict[str, float] = {}
        pause_s = FIRST_LOOK_S
        while True:
            looks = self.statuses(job_ids)
            now = self._clock()
            for job_id, look in looks.items():
                if look.state is not JobState.UNKNOWN:
                    missing_since.pop(job_id, None)
                elif now - missing_since.setdefault(job_id, now) >= self._patience_s(job_id):
                    self._lost(job_id)
                    looks[job_id] = self._told(self._results[job_id])
            if on_look is not None:
                on_look(looks)
            for look in looks.values():
                if look.result is not None:
                    return look.result
            left_s = None if timeout is None else timeout - (now - began)
            if left_s is not None and left_s <= 0:
                return None
            self._sleep(pause_s if left_s is None else min(pause_s, left_s))
            pause_s = min(pause_s * 1.3, LONGEST_PAUSE_S)

    def _patience_s(self, job_id: str) -> float:
        """A job that never was need not be waited for; one that we deleted before it ran leaves no trace."""
        if job_id in self._terminated:
            return LOST_S / 15
        return LOST_S if job_id in self._submitted or self.system == "gridengine" else 0

    def _lost(self, job_id: str) -> None:
        if job_id in self._terminated:
            self._results[job_id] = JobResult(job_id, JobState.CANCELED)
        elif job_id not in self._submitted:
            raise RequestError(f"{self.system} knows no job {job_id[:40]!r}", code="job-unknown")
        else:
            raise SiteError(
                f"{self.system} has forgotten job {job_id}: how it ended is not known",
                hint="Slurm keeps a job for MinJobAge, Torque for keep_completed, OpenPBS with job history",
                code="result-lost",
            )

    def _meant(self, look: JobStatus) -> JobStatus:
        """A job that we terminated is canceled, whatever its library makes of it."""
        result = look.result
        if result is None or look.job_id not in self._terminated or result.state is JobState.CANCELED:
            return look
        return ended(look.job_id, exit_code=result.exit_code, signal=result.signal, canceled=True, reason=result.reason)

    def _told(self, result: JobResult) -> JobStatus:
        return JobStatus(result.job_id, result.state, result.reason, result)


def environment(description: JobDescription, environ: Mapping[str, str]) -> dict[str, str]:
    """What the payload's script sets: what the description says, and where it wants it, the submitter's own.

    In a guest without what describes the host (`lrms_vm.environment`).
    """
    if not description.inherit_environment:
        return dict(description.environment)
    host = {name.decode() for name in HOST_NAMES} if vm_options(description) else set()
    prefixes = tuple(prefix.decode() for prefix in HOST_PREFIXES) if host else ()
    kept = {
        name: value
        for name, value in environ.items()
        if name.isidentifier()
        and name.isascii()
        and name not in SHELLS_OWN | host
        and not name.startswith((*_OF_A_JOB, *prefixes))
    }
    return kept | dict(description.environment)


def choose(*, lrms: str | None, library: str, environ: Mapping[str, str]) -> Backend:
    """The way to this host's batch system. Raises `UsageError`, `SiteError`."""
    if library not in LIBRARIES:
        raise UsageError(f"--library: {library[:40]!r} is not one of {', '.join(LIBRARIES)}", code="library-unknown")
    programs = Programs.find(PROGRAMS, environ)
    detected = detect(programs.paths, environ, asked=lrms)
    path, why = (None, "asked for") if library == "commands" else find_library(detected.system, environ)
    commands = ByCommands(detected.system, f"{why}; {detected.why}", programs)
    if detected.system == "slurm" and "sbatch" in programs.paths:
        version = programs.call([programs.path("sbatch"), "--version"]).split()
        commands.pyslurm = pyslurm_look.find(version[1] if len(version) > 1 else "")
    if path is None:
        if library == "drmaa":
            raise SiteError(f"--library=drmaa: {why}", code="library-missing")
        return commands
    by_library = ByLibrary(detected.system, f"{why}; {detected.why}", path, commands)
    try:
        by_library.open()
    except (RequestError, SiteError) as error:
        if library == "drmaa":
            raise
        commands.why = f"{error}; {detected.why}"
        return commands
    return by_library
