"""No batch system: `lrms-vm run` gives the allocation itself."""

from __future__ import annotations

from lrms_vm.errors import UsageError
from lrms_vm.request import Allocation
from lrms_vm.units import parse_memory_mib

LRMS = "local"


def allocation(
    *, pid: int, node: str, uid: int, gid: int, user: str, work_dir: str, cpus: int, memory: str
) -> Allocation:
    """The allocation of a run. `pid` names it; `memory` is text such as "1G". Raises `UsageError`."""
    if not 1 <= cpus <= 1024:
        raise UsageError(f"--cpus: {cpus} is not between 1 and 1024", code="option-unreadable")
    return Allocation(
        lrms=LRMS,
        job_id=str(pid),
        node=node,
        uid=uid,
        gid=gid,
        user=user,
        work_dir=work_dir,
        cpus=cpus,
        memory_mib=parse_memory_mib(memory, bare="M", source="--memory"),
    )
