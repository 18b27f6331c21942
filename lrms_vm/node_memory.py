"""Xen's free memory, asked before a guest is started: what is missing is this node's fault; nothing was made yet."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lrms_vm import overhead
from lrms_vm.errors import NodeError

if TYPE_CHECKING:
    from lrms_vm.domain import Domain
    from lrms_vm.guest import Hypervisor

SETTLE_S = 10.0  # a domain's pages come back after its end, when dom0's device model has let go of the last of them
PAUSE_S = 0.2


def require_free(hypervisor: Hypervisor, domain: Domain, *, deadline: float, settle_s: float = SETTLE_S) -> None:
    """Raises `NodeError` where Xen has too little for the guest and its overhead, also after `settle_s`."""
    need_mib = domain.memory_mib + overhead.overhead_mib(
        domain.memory_mib, domain.hypervisor, vcpus=domain.vcpus, kernel_bytes=0
    )
    until = min(time.monotonic() + settle_s, deadline)
    while (free_mib := hypervisor.xen_machine(deadline=deadline).free_mib) < need_mib:
        if time.monotonic() >= until:
            raise NodeError(
                f"Xen has {free_mib} MiB free, the guest needs {need_mib} MiB ({domain.memory_mib} and its overhead)",
                hint="`lrms-vm doctor --slurm-conf` says what the batch system must be told of this node",
                code="hypervisor-memory",
            )
        time.sleep(PAUSE_S)
