"""The batch systems by their own commands."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import field

from lrms_vm.errors import RequestError
from lrms_vm.submit import gridengine, pbs, slurm
from lrms_vm.submit.backend import Programs, user_name
from lrms_vm.submit.carry import Carried, Way, carry
from lrms_vm.submit.description import JobDescription
from lrms_vm.submit.job_script import program, script
from lrms_vm.submit.pyslurm_look import Pyslurm
from lrms_vm.submit.result import JobStatus, ended
from lrms_vm.values import dataclass

AT_ONCE = 400  # job ids on one command line


@dataclass
class ByCommands:
    """See `backend.Backend`."""

    system: str
    why: str
    programs: Programs
    pyslurm: Pyslurm | None = None  # looks instead of squeue
    _plugin: bool | None = field(default=None, repr=False)

    @property
    def way(self) -> Way:
        """Whether sbatch has our plugin shows in its help; 20 ms, once."""
        if self.system != "slurm":
            return Way.COMMANDS
        if self._plugin is None:
            self._plugin = "--vm-image" in self.programs.call([self.programs.path("sbatch"), "--help"])
        return Way.PLUGIN if self._plugin else Way.COMMANDS

    @property
    def name(self) -> str:
        looks = ", looking through pyslurm" if self.pyslurm else ""
        return f"{self.system} by its commands{looks}: {self.why}"

    def submit(self, description: JobDescription, environment: Mapping[str, str], count: int | None) -> list[str]:
        carried = carry(description, self.system, self.way)
        by_script = self.system in ("torque", "openpbs")
        line = program(
            (description.executable, *description.arguments),
            environment=environment,
            directory=(description.directory or os.getcwd()) if by_script else None,
            stdin=description.stdin_path if by_script else None,
            bulk=count is not None,
            in_guest=carried.in_guest,
        )
        out = self.programs.call(
            self._submit_argv(carried, count),
            stdin=script(line),
            cwd=description.directory or os.getcwd(),
            more=dict(carried.variables) if self.system == "gridengine" else None,
        )
        parse = {"slurm": slurm.parse_submitted, "gridengine": gridengine.parse_submitted}
        return parse.get(self.system, pbs.parse_submitted)(out, count)

    def _submit_argv(self, carried: Carried, count: int | None) -> list[str]:
        if self.system == "slurm":
            return slurm.submit_argv(self.programs.path("sbatch"), carried, count)
        qsub = self.programs.path("qsub")
        if self.system == "gridengine":
            return [*gridengine.submit_argv(qsub, carried, count), *([] if carried.description.directory else ["-cwd"])]
        return pbs.submit_argv(qsub, carried, count, openpbs=self.system == "openpbs")

    def look(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        found: dict[str, JobStatus] = {}
        for at in range(0, len(job_ids), AT_ONCE):
            found |= self._look(job_ids[at : at + AT_ONCE])
        return {job_id: found[job_id] for job_id in job_ids if job_id in found}

    def _look(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        if self.system == "gridengine":
            return self._look_gridengine(job_ids)
        if self.pyslurm is not None:
            return self.pyslurm.look(job_ids)
        if self.system == "slurm":
            text = self.programs.ask(slurm.look_argv(self.programs.path("squeue"), job_ids))
            return slurm.parse_look(text or "")
        openpbs, qstat = self.system == "openpbs", self.programs.path("qstat")
        text = self.programs.ask(pbs.look_argv(qstat, job_ids, openpbs=openpbs))
        if text is None and len(job_ids) > 1:  # one of them is gone: qstat's exit code says so, and no more
            texts = (self.programs.ask(pbs.look_argv(qstat, [job_id], openpbs=openpbs)) for job_id in job_ids)
            text = "".join(part for part in texts if part)
        return {job_id: status for job_id, (status, _) in pbs.parse_look(text or "").items()}

    def _look_gridengine(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        there = gridengine.parse_list(
            self.programs.call(gridengine.list_argv(self.programs.path("qstat"), user_name()))
        )
        found = {}
        for job_id in job_ids:
            status = there.get(job_id)
            if status is None:
                text = self.programs.ask(gridengine.ended_argv(self.programs.path("qacct"), job_id))
                status = gridengine.parse_ended(text or "", job_id)
            elif status.state.ended:
                status = self._in_error(job_id, status)
            if status is not None:
                found[job_id] = status
        return found

    def _in_error(self, job_id: str, status: JobStatus) -> JobStatus:
        """Grid Engine's error state, with the reason that it keeps."""
        text = self.programs.ask(gridengine.reason_argv(self.programs.path("qstat"), job_id)) or ""
        reason = gridengine.parse_reason(text, job_id) or status.reason
        return ended(job_id, reason=f"{reason}; it stays in Grid Engine's error state: qdel {job_id} removes it")

    def control(self, job_id: str, action: str) -> None:
        table = {"slurm": slurm.CONTROLS, "gridengine": gridengine.CONTROLS}.get(self.system, pbs.CONTROLS)
        is_id = {"slurm": slurm.is_id, "gridengine": gridengine.is_id}.get(self.system, pbs.is_id)
        if not is_id(job_id):
            raise RequestError(f"{job_id[:40]!r} is no job id of {self.system}", code="job-unknown")
        name, *words = table[action]
        self.programs.call([self.programs.path(name), *words, job_id])

    def mine(self) -> list[JobStatus]:
        if self.system == "slurm":
            text = self.programs.call(slurm.list_argv(self.programs.path("squeue"), user_name()))
            return list(slurm.parse_look(text).values())
        qstat = self.programs.path("qstat")
        if self.system == "gridengine":
            return list(gridengine.parse_list(self.programs.call(gridengine.list_argv(qstat, user_name()))).values())
        looks = pbs.parse_look(self.programs.call(pbs.list_argv(qstat, openpbs=self.system == "openpbs")))
        return [status for status, owner in looks.values() if owner == user_name() and not status.state.ended]

    def close(self) -> None:
        pass
