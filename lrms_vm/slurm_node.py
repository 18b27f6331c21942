"""What the Slurm adapter must do on a node: ask the controller, look at slurmd, take the node out of service.

The texts are read and the argument lists made in lrms/slurm.py, which is pure.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from lrms_vm import command
from lrms_vm.errors import LrmsVmError, NodeError, SiteError

SCONTROL_TIMEOUT_S = 20.0


def ask(argv: list[str], environ: Mapping[str, str], *, timeout_s: float = SCONTROL_TIMEOUT_S) -> str:
    """Run a Slurm command against the hook's own cluster. Raises `SiteError`: no node is to blame."""
    environment = dict(command.ENVIRONMENT)
    if "SLURM_CONF" in environ:
        environment["SLURM_CONF"] = environ["SLURM_CONF"]
    try:
        return command.run(argv, timeout_s=timeout_s, environment=environment).decode("utf-8", "replace")
    except LrmsVmError as error:
        raise SiteError(
            f"the Slurm controller does not answer: {error.message}", hint="is slurmctld up?", code="controller-down"
        ) from error


def annotate(argv: list[str], environ: Mapping[str, str], *, log: Path) -> None:
    """Start a Slurm command and do not wait for it: what it does is worth no job's time. Raises `NodeError`."""
    environment = dict(command.ENVIRONMENT)
    if "SLURM_CONF" in environ:
        environment["SLURM_CONF"] = environ["SLURM_CONF"]
    command.spawn_detached(argv, identity=None, log=log, environment=environment)


def require_plugin(plugin: str, *, slurmd_pid: int | None = None) -> None:
    """Make sure that the slurmd that called us has the SPANK plugin loaded. Raises `NodeError`.

    Without the plugin the job's script would run on the host although its guest was booted
    (reference/slurm-measured.md 8). The kernel's own list of what slurmd has mapped cannot be misconfigured.
    """
    pid = os.getppid() if slurmd_pid is None else slurmd_pid
    try:
        maps = Path(f"/proc/{pid}/maps").read_text()
        wanted = os.stat(plugin)
    except OSError as error:
        raise NodeError(
            f"{plugin}: cannot be checked in slurmd ({pid}): {error.strerror}", code="plugin-missing"
        ) from error
    inodes = {fields[4] for line in maps.splitlines() if len(fields := line.split(None, 5)) == 6}
    if str(wanted.st_ino) not in inodes:
        raise NodeError(
            f"slurmd ({pid}) has not loaded {plugin}: the job would run on the host",
            hint="run `lrms-vm install --lrms=slurm`, then restart slurmd",
            code="plugin-missing",
        )


def has_plugin(*, slurmd_pid: int | None = None) -> bool:
    """Whether the slurmd that called us has some lrms_vm.so loaded; for when no configuration says which."""
    pid = os.getppid() if slurmd_pid is None else slurmd_pid
    try:
        return "/lrms_vm.so\n" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False
