"""The batch systems through DRMAA: a worker process has loaded the library; what it cannot say is asked otherwise."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from lrms_vm.errors import RequestError, SiteError
from lrms_vm.submit import drmaa_words
from lrms_vm.submit.by_commands import ByCommands
from lrms_vm.submit.carry import Way, carry
from lrms_vm.submit.description import JobDescription
from lrms_vm.submit.result import JobState, JobStatus, ended
from lrms_vm.values import dataclass

OPEN_S = 30.0  # slurm-drmaa tries for 60 s to reach a Slurm that is not there
ANSWER_S = 120.0
DOUBT_S = 30.0  # Grid Engine writes qacct's file up to 15 s after a job's end
# Where packages and their own `make install` put them.
_PLACES = {
    "slurm": ("/usr/lib/slurm-drmaa/lib", "/opt/slurm-drmaa/lib", "/usr/local/slurm-drmaa/lib"),
    "gridengine": ("/usr/lib/gridengine-drmaa/lib",),
    "torque": ("/usr/lib/pbs-drmaa/lib", "/opt/pbs-drmaa/lib", "/usr/local/pbs-drmaa/lib"),
    "openpbs": ("/usr/lib/pbs-drmaa/lib", "/opt/pbs-drmaa/lib", "/usr/local/pbs-drmaa/lib"),
}
_NAMES = ("libdrmaa.so", "libdrmaa.so.1", "libdrmaa.so.1.0")
# What drmaa_get_DRM_system says: for the library of another system would take the job, and lose its image.
_TELLS = {"slurm": ("slurm",), "gridengine": ("ge", "sge", "uge"), "torque": ("pbs", "torque"), "openpbs": ("pbs",)}
_REFUSALS = """
    DeniedByDrmException InvalidAttributeValueException InvalidAttributeFormatException InvalidArgumentException
    ConflictingAttributeValuesException InvalidJobException HoldInconsistentStateException
    ReleaseInconsistentStateException SuspendInconsistentStateException ResumeInconsistentStateException
"""


def find_library(system: str, environ: Mapping[str, str]) -> tuple[str | None, str]:
    """The library for this system, and where it was found or why there is none."""
    if importlib.util.find_spec("drmaa") is None:
        return None, "python's drmaa is not installed (pip install 'lrms_vm[drmaa]')"
    if said := environ.get("DRMAA_LIBRARY_PATH"):
        return said, "DRMAA_LIBRARY_PATH"
    for path in _candidates(system, environ):
        if path.exists():
            return str(path), str(path)
    return None, f"no libdrmaa for {system} (DRMAA_LIBRARY_PATH names one)"


def _candidates(system: str, environ: Mapping[str, str]) -> Iterator[Path]:
    directories = [Path(place) for place in _PLACES[system]]
    root = environ.get("SGE_ROOT")
    if system == "gridengine" and root:
        directories += sorted(Path(root).glob("lib/lx*"))
    for directory in directories:
        yield from (directory / name for name in _NAMES)


@dataclass
class ByLibrary:
    """See `backend.Backend`. `commands`: asked what the library cannot say."""

    system: str
    why: str
    library: str
    commands: ByCommands
    _worker: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _says: str = ""
    _submitted: set[str] = field(default_factory=set, repr=False)
    _terminated: set[str] = field(default_factory=set, repr=False)
    _doubted: dict[str, tuple[float, JobStatus]] = field(default_factory=dict, repr=False)  # since when, by job

    @property
    def way(self) -> Way:
        return Way.LIBRARY

    @property
    def name(self) -> str:
        return f"{self.system} by {self._says or self.library}: {self.why}"

    def submit(self, description: JobDescription, environment: Mapping[str, str], count: int | None) -> list[str]:
        carried = carry(description, self.system, Way.LIBRARY)
        templates = drmaa_words.templates(carried, self.system, environment, count, here=os.getcwd())
        job_ids = [str(job_id) for job_id in self._ask({"do": "run", "templates": templates, "count": count})]
        self._submitted |= set(job_ids)
        return job_ids

    def look(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        ours = [job_id for job_id in job_ids if job_id in self._submitted and job_id not in self._doubted]
        answers = self._ask({"do": "look", "jobs": ours}) if ours else {}
        found: dict[str, JobStatus] = {}
        for job_id, answer in answers.items():
            status = drmaa_words.status(job_id, answer, self.system, terminated=job_id in self._terminated)
            if self._doubtful(status):
                self._doubted[job_id] = (time.monotonic(), status)
            elif status.state is not JobState.UNKNOWN:
                found[job_id] = status
        found |= self._settled([job_id for job_id in job_ids if job_id in self._doubted])
        if self._has_squeue:
            found |= self._suspended([job_id for job_id, status in found.items() if status.state is JobState.ACTIVE])
        others = [job_id for job_id in job_ids if job_id not in self._submitted]
        return found | (self.commands.look(others) if others else {})  # no library knows the jobs of another session

    @property
    def _has_squeue(self) -> bool:
        return self.system == "slurm" and "squeue" in self.commands.programs.paths

    def _doubtful(self, status: JobStatus) -> bool:
        """An end that the library does not tell from another. Grid Engine: deleted, refused by the prolog, ended with
        100 are all "aborted". Slurm: a job that somebody canceled has exited with 0. pbs-drmaa: refused by the
        prologue is a payload's exit 255."""
        if status.result is None or status.job_id in self._terminated:
            return False
        if self.system == "gridengine":
            return status.result.reason != ""
        if self.system in ("torque", "openpbs"):
            return status.result.exit_code == 255 and "qstat" in self.commands.programs.paths
        return self._has_squeue and status.state is JobState.COMPLETED

    def _settled(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """What the system's commands say of doubtful ends."""
        there = self.commands.look(job_ids) if job_ids else {}
        found = {}
        for job_id in job_ids:
            since, status = self._doubted[job_id]
            known = there.get(job_id, JobStatus(job_id, JobState.UNKNOWN))
            patience_s = DOUBT_S if self.system == "gridengine" else 0
            if known.result is not None and known.result.signal is not None and not known.result.reason:
                found[job_id] = ended(job_id, signal=known.result.signal, canceled=True)  # it was deleted: killed
            elif known.state.ended:
                found[job_id] = known
            elif known.state is JobState.UNKNOWN and time.monotonic() - since >= patience_s:
                found[job_id] = status
            else:
                found[job_id] = JobStatus(job_id, JobState.ACTIVE)
        return found

    def _suspended(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """Those of the jobs that are: slurm-drmaa does not say."""
        there = self.commands.look(job_ids) if job_ids else {}
        return {job_id: status for job_id, status in there.items() if status.state is JobState.SUSPENDED}

    def control(self, job_id: str, action: str) -> None:
        if job_id not in self._submitted:
            self.commands.control(job_id, action)
            return
        if self.system == "slurm" and action in ("suspend", "resume"):
            self.commands.control(job_id, action)  # slurm-drmaa says that it did, and does nothing
            return
        self._ask({"do": "control", "job": job_id, "action": action})
        if action == "terminate":
            self._terminated.add(job_id)

    def mine(self) -> list[JobStatus]:
        return self.commands.mine()  # DRMAA 1.0 has no way to ask

    # -- the worker

    def open(self) -> None:
        """Load the library and open its session. Raises `SiteError`."""
        self._worker = subprocess.Popen(
            [sys.executable, "-P", "-X", "utf8", "-m", "lrms_vm.submit.drmaa_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**self.commands.programs.environment, **_preloads(self.system), **_python_path()},
            close_fds=True,
        )
        try:
            self._says = str(self._ask({"do": "open", "library": self.library}, timeout_s=OPEN_S))
        except (RequestError, SiteError):
            self.close()
            raise
        said = self._says.lower().replace("/", " ").split()
        if not any(word.startswith(tell) for word in said for tell in _TELLS[self.system]):
            self.close()
            raise SiteError(
                f"{self.library}: is for {self._says[:80]!r}, not for {self.system}",
                hint="set DRMAA_LIBRARY_PATH, or say --library=commands",
                code="library-unfit",
            )

    def _ask(self, request: dict[str, Any], *, timeout_s: float = ANSWER_S) -> Any:
        if self._worker is None:
            self.open()
        worker = self._worker
        assert worker is not None and worker.stdin is not None and worker.stdout is not None
        try:
            worker.stdin.write(json.dumps(request).encode() + b"\n")
            worker.stdin.flush()
        except BrokenPipeError:
            pass  # its end shows below
        line = _line(worker.stdout.fileno(), time.monotonic() + timeout_s)
        if not line:
            ending = None
            with contextlib.suppress(subprocess.TimeoutExpired):  # its pipe may be closed before it is gone
                ending = worker.wait(timeout=1)
            self.close()
            raise SiteError(
                f"{self.library}: " + (f"its process ended ({ending})" if ending else "no answer"),
                hint="--library=commands does without it",
                code="library-broken",
            )
        answer = json.loads(line)
        if "error" in answer:
            kind = RequestError if answer["error"] in _REFUSALS.split() else SiteError
            raise kind(f"{answer['error']}: {answer['text'][:400]}", code="system-refused")
        return answer["answer"]

    def close(self) -> None:
        """End the library's session; jobs go on."""
        worker, self._worker = self._worker, None
        if worker is None or worker.stdin is None or worker.stdout is None:
            return
        worker.stdin.close()
        try:
            worker.wait(timeout=10)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        worker.stdout.close()


def _line(fd: int, deadline: float) -> bytes:
    """One line from the worker; empty when it ended or the time did."""
    read = b""
    while not read.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            return b""
        part = os.read(fd, 1 << 16)
        if not part:
            return b""
        read += part
    return read


def _preloads(system: str) -> dict[str, str]:
    """Debian's libdrmaa of Grid Engine needs jemalloc, which wants more static TLS than a running Python has left."""
    return {"GLIBC_TUNABLES": "glibc.rtld.optional_static_tls=4096"} if system == "gridengine" else {}


def _python_path() -> dict[str, str]:
    """The worker imports from where we did. Grid Engine's and slurm-drmaa's jobs would inherit it: see `_open`."""
    return {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
