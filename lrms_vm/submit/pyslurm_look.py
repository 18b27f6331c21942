"""Status of Slurm jobs through pyslurm, where one that fits the installed Slurm can be imported. Its only importer.

pyslurm is built for one release of Slurm and refuses, or crashes in, another; so it is asked for its release before it
is asked for a job. It is optional: squeue tells the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lrms_vm.submit import slurm
from lrms_vm.submit.result import JobStatus
from lrms_vm.values import dataclass


@dataclass(frozen=True)
class Pyslurm:
    """See `backend.Backend.look`."""

    module: Any

    def look(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        found: dict[str, JobStatus] = {}
        for array in {job_id.partition("_")[0] for job_id in job_ids}:
            try:
                rows = self.module.job().find_id(array)
            except ValueError:  # "Invalid job id specified"
                continue
            found |= dict(_status(row) for row in rows)
        return {job_id: found[job_id] for job_id in job_ids if job_id in found}


def _status(row: dict[str, Any]) -> tuple[str, JobStatus]:
    array, task = row.get("array_job_id"), row.get("array_task_id")
    job_id = f"{array}_{task}" if array and task is not None else str(row["job_id"])
    return job_id, slurm.status(job_id, row["job_state"], str(row["exit_code"]), str(row.get("state_reason") or "None"))


def find(slurm_version: str) -> Pyslurm | None:
    """pyslurm, if it can be imported and is of this release ("22.05.8" as sbatch --version says it)."""
    try:
        import pyslurm
    except Exception:  # an ImportError, or whatever a library of another release raises when it is loaded
        return None
    theirs = re.match(r"([0-9]+)\.0*([0-9]+)", str(getattr(pyslurm, "__version__", "")))
    ours = re.match(r"([0-9]+)\.0*([0-9]+)", slurm_version)
    if theirs is None or ours is None or theirs.groups() != ours.groups() or not hasattr(pyslurm, "job"):
        return None
    return Pyslurm(pyslurm)
