"""What a way to a batch system does; `Session` knows nothing else of it. And calling the system's own commands."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from lrms_vm import command
from lrms_vm.errors import NodeError, RequestError, SiteError
from lrms_vm.submit.carry import Way
from lrms_vm.submit.description import JobDescription
from lrms_vm.submit.result import JobStatus
from lrms_vm.values import dataclass

TIMEOUT_S = 60.0
# Of the submitter's environment, what the batch systems' own programs read. The payload's is in its script.
_FOR_PROGRAMS = re.compile(
    r"HOME|USER|LOGNAME|SHELL|TZ|KRB5CCNAME|LD_LIBRARY_PATH|SLURM_CONF|SLURM_CLUSTERS|SLURM_JWT|MUNGE_\w+"
    r"|SBATCH_\w+|SGE_(?!TASK_|JOB_|O_|STD|BINARY|CWD|ACCOUNT)\w+|PBS_(?:CONF_FILE|SERVER|DEFAULT|EXEC|HOME)|PBSCLIENTROOT"
)
_NO_JOB = re.compile(
    r"Invalid job id|Unknown Job|(?:job id|tasks) \S+ not found|do(?:es)? not exist|has finished", re.IGNORECASE
)


class Backend(Protocol):
    """One way to one batch system. Job ids are the system's own texts, one a job of a bulk."""

    @property
    def system(self) -> str: ...

    @property
    def way(self) -> Way: ...

    @property
    def name(self) -> str:
        """For people: "Slurm, by sbatch: no DRMAA library"."""

    def submit(self, description: JobDescription, environment: Mapping[str, str], count: int | None) -> list[str]:
        """Submit one job, or a bulk of `count`. `environment`: the payload's. Raises `RequestError`, `SiteError`."""

    def look(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """The jobs that the system knows. One that it does not know any more is left out."""

    def control(self, job_id: str, action: str) -> None:
        """`action`: a word of `ACTIONS`. Raises `RequestError`, `SiteError`."""

    def mine(self) -> list[JobStatus]:
        """The caller's jobs that have not ended."""

    def close(self) -> None: ...


ACTIONS = ("terminate", "hold", "release", "suspend", "resume")


@dataclass(frozen=True)
class Programs:
    """The system's commands, by name, each by its absolute path; and what they are run with."""

    paths: Mapping[str, str]
    environment: Mapping[str, str]

    @classmethod
    def find(cls, names: Sequence[str], environ: Mapping[str, str]) -> Programs:
        """Look along the submitter's PATH."""
        along = environ.get("PATH", command.PATH)
        found = {name: path for name in names if (path := shutil.which(name, path=along)) and path.startswith("/")}
        kept = {name: value for name, value in environ.items() if _FOR_PROGRAMS.fullmatch(name)}
        return cls(found, {**command.ENVIRONMENT, "PATH": along, **kept})

    def path(self, name: str) -> str:
        """Raises `SiteError` where it is not there."""
        try:
            return self.paths[name]
        except KeyError as error:
            raise SiteError(
                f"{name} is not on PATH", hint="set PATH as your site says", code="command-missing"
            ) from error

    def call(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        cwd: str = "/",
        more: Mapping[str, str] | None = None,
    ) -> str:
        """Run one; return what it prints. Raises `RequestError` when it refuses, `SiteError` when it cannot be run."""
        try:
            out = command.run(
                argv,
                timeout_s=TIMEOUT_S,
                environment={**self.environment, **(more or {})},
                stdin=stdin,
                cwd=cwd,
                umask=_umask(),
            )
        except NodeError as error:
            if error.code != "command-failed":
                raise SiteError(error.message, code=error.code) from error
            said = error.message.partition(": ")[2] if ": " in error.message else error.message
            name = argv[0].rpartition("/")[2]
            raise RequestError(f"{name}: {_without_argv(said, argv)}", code="system-refused") from error
        return out.decode("utf-8", "replace")

    def ask(self, argv: Sequence[str]) -> str | None:
        """The same for a question about a job. None: there is no such job (any more). Raises `SiteError`."""
        try:
            return self.call(argv)
        except RequestError as error:
            if _NO_JOB.search(error.message):
                return None
            raise SiteError(error.message, code="controller-unreachable") from error


def _without_argv(said: str, argv: Sequence[str]) -> str:
    import shlex

    return said.removeprefix(f"{shlex.join(argv)}: ").strip() or "it refused, and did not say why"


def _umask() -> int:
    """Ours, for sbatch keeps it for the job. proc(5): the only way to read it without setting it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022


def user_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
