"""What became of a job: one meaning, whichever library or command tells it.

What they tell, measured (slurm-drmaa 1.2, pbs-drmaa 1.0.19 with Torque 6.1 and OpenPBS 23.06, Grid Engine 8.1.9):

    what happened            Grid Engine's lib   pbs-drmaa            slurm-drmaa          here
    payload's exit 0         exited 0            exited 0             exited 0             COMPLETED, exit_code 0
    exit 1 to 125            exited n            exited n             exited n             FAILED, exit_code n
    exit 126 to 255          exited n            aborted, status n    exited n             FAILED, exit_code n
    ended by a signal        signaled            signaled             signaled             FAILED, signal n
    terminated by us         aborted, exit 0     signaled, aborted    exited 0             CANCELED
    canceled by others       aborted, exit 0     signaled             exited 0             CANCELED, or FAILED, signal n
    refused by the prologue  aborted, exit 0     aborted, 255         -                    FAILED and the reason
    unknown job              InvalidJob          aborted, 255         aborted, 255, core   RequestError "job-unknown"
    waited for twice         InvalidJob          the same again       the same again       the same again
    suspended by the user    said                said                 not said             what its command says

So: `COMPLETED` means that the payload itself ended with 0; a job that we terminated is `CANCELED`, whatever the
library makes of it; and a job that never ran its payload is `FAILED` without an exit code, with a reason. Who sent the
signal that ended a job only Slurm and Grid Engine's library tell: elsewhere one that others canceled is `FAILED`.
"""

from __future__ import annotations

import enum

from lrms_vm.errors import EXIT_GUEST_LOST
from lrms_vm.values import dataclass

_TERM = 15  # signal(7)


class JobState(enum.Enum):
    """PSI/J's states, and the two of DRMAA that it lacks."""

    QUEUED = "queued"
    HELD = "held"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    UNKNOWN = "unknown"  # the system does not know the job (any more)

    @property
    def ended(self) -> bool:
        return self in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELED)


@dataclass(frozen=True)
class JobResult:
    """How a job ended."""

    job_id: str
    state: JobState  # COMPLETED, FAILED or CANCELED
    exit_code: int | None = None  # the payload's own, 0 to 255; None: it has none
    signal: int | None = None  # that ended the payload
    reason: str = ""  # in the system's words

    def __post_init__(self) -> None:
        if not self.state.ended:
            raise ValueError(f"{self.state} is no end")
        if (self.state is JobState.COMPLETED) != (self.exit_code == 0 and self.state is not JobState.CANCELED):
            raise ValueError(f"{self.state} with exit code {self.exit_code}")

    @property
    def returncode(self) -> int:
        """For a shell: the exit code; 128 and the signal; 143 (TERM) for a canceled job, 70 where nobody knows.

        >>> JobResult("7", JobState.FAILED, signal=9).returncode
        137
        """
        if self.state is JobState.CANCELED:
            return self.exit_code or 128 + (self.signal or _TERM)
        if self.exit_code is not None:
            return self.exit_code
        return 128 + self.signal if self.signal else EXIT_GUEST_LOST


@dataclass(frozen=True)
class JobStatus:
    """A look at a job: its state and, when it has ended, how."""

    job_id: str
    state: JobState
    reason: str = ""
    result: JobResult | None = None


def ended(
    job_id: str, *, exit_code: int | None = None, signal: int | None = None, canceled: bool = False, reason: str = ""
) -> JobStatus:
    """The end of a job from what its system says of it.

    >>> ended("7", exit_code=0).state, ended("7", exit_code=0, canceled=True).state
    (<JobState.COMPLETED: 'completed'>, <JobState.CANCELED: 'canceled'>)
    """
    if canceled:
        state = JobState.CANCELED
        exit_code = exit_code or None  # its 0 says only that the library knows none
    else:
        state = JobState.COMPLETED if exit_code == 0 and not signal else JobState.FAILED
        exit_code = None if signal else exit_code
    return JobStatus(job_id, state, reason, JobResult(job_id, state, exit_code, signal, reason))
