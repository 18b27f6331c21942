"""No batch system: what `lrms-vm run` gives its one command on this machine."""

from __future__ import annotations

import re

from lrms_vm.errors import UsageError
from lrms_vm.request import Allocation
from lrms_vm.units import parse_memory_mib


def allocation(
    *, pid: int, node: str, uid: int, gid: int, user: str, work_dir: str, cpus: int, memory: str
) -> Allocation:
    """The allocation that the command line states. The process id is the job's id. Raises `UsageError`."""
    if cpus < 1:
        raise UsageError(f"--cpus: {cpus} is not 1 or more", code="option-unreadable")
    return Allocation(
        lrms="local",
        job_id=str(pid),
        node=re.sub(r"[^A-Za-z0-9_.-]", "-", node, flags=re.ASCII) or "localhost",
        uid=uid,
        gid=gid,
        user=user,
        work_dir=work_dir,
        cpus=cpus,
        memory_mib=parse_memory_mib(memory, bare="M", source="--memory"),
    )
