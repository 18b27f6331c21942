"""Grid Engine's part of `install`: which files, and what the site's own settings must say.

    <prefix>/libexec/gridengine.prolog, .epilog           for the queue's prolog and epilog, as root@
    <prefix>/libexec/gridengine.starter, .terminate       for its starter_method and terminate_method
    <prefix>/libexec/gridengine.sensor                    for the host's load_sensor
    <prefix>/libexec/lrms-vm-exec, lrms-vm-guest          what the starter runs, and our half in the guest

Grid Engine's own configuration is never touched: its lines are printed.
"""

from __future__ import annotations

from pathlib import Path

from lrms_vm.install import EXEC, Planned, check_plain, hook
from lrms_vm.values import dataclass

SOURCES = {
    "gridengine.prolog": "prologue/gridengine.prolog",
    "gridengine.epilog": "epilogue/gridengine.epilog",
    "gridengine.starter": "prologue/gridengine.starter",
    "gridengine.terminate": "epilogue/gridengine.terminate",
    "gridengine.sensor": "prologue/gridengine.sensor",
}


@dataclass(frozen=True)
class Cell:
    """Which Grid Engine: what qmod must find in its environment. Empty ports: those of services(5)."""

    root: str
    name: str = "default"
    qmaster_port: str = ""
    execd_port: str = ""


@dataclass(frozen=True)
class GridEngineTargets:
    """Where everything goes."""

    prefix: Path

    @property
    def libexec(self) -> Path:
        return self.prefix / "libexec"

    @property
    def exec(self) -> Path:
        return self.libexec / "lrms-vm-exec"

    @property
    def guest(self) -> Path:
        return self.libexec / "lrms-vm-guest"

    @property
    def all(self) -> tuple[Path, ...]:
        return (*(self.libexec / name for name in SOURCES), self.exec, self.guest)


def plan(
    targets: GridEngineTargets, *, python: str, config: Path, run_dir: Path, cell: Cell, guest: bytes
) -> tuple[Planned, ...]:
    """Every file of a node. Raises `UsageError` for a path that its reader would cut in two."""
    check_plain(python, config, run_dir, cell.root, *targets.all)
    names = {
        "PYTHON": python,
        "CONFIG": str(config),
        "RUN_DIR": str(run_dir),
        "EXEC": str(targets.exec),
        "SGE_ROOT": cell.root,
        "SGE_CELL": cell.name,
        "SGE_QMASTER_PORT": cell.qmaster_port,
        "SGE_EXECD_PORT": cell.execd_port,
    }
    return (
        *(Planned(targets.libexec / name, hook(source, names)) for name, source in SOURCES.items()),
        Planned(targets.exec, EXEC.format(python=python).encode()),
        Planned(targets.guest, guest),
    )


def queue_settings(targets: GridEngineTargets) -> dict[str, str]:
    """queue_conf(5), for `qconf -mattr queue NAME VALUE QUEUE`."""
    return {
        "prolog": f"root@{targets.libexec}/gridengine.prolog",
        "epilog": f"root@{targets.libexec}/gridengine.epilog",
        "starter_method": f"{targets.libexec}/gridengine.starter",
        "terminate_method": f"{targets.libexec}/gridengine.terminate $job_pid $job_id $ja_task_id",
    }


COMPLEX = "vm_capable vmc BOOL == YES NO FALSE 0"  # complex(5), for `qconf -mc`


def load_sensor(targets: GridEngineTargets) -> str:
    """sge_conf(5), for `qconf -mconf HOST`."""
    return f"{targets.libexec}/gridengine.sensor"


def instructions(targets: GridEngineTargets) -> tuple[str, ...]:
    """What the administrator does, once, by hand."""
    return (
        "The queue whose hosts run VMs must say (QUEUE: its name):",
        *(f"    qconf -mattr queue {name} '{value}' QUEUE" for name, value in queue_settings(targets).items()),
        "So that jobs find such a host by `qsub -l vm_capable=TRUE`, a line of `qconf -mc`:",
        f"    {COMPLEX}",
        "and of `qconf -mconf HOST` on each of them (sge_execd asks it from its next start on):",
        f"    load_sensor {load_sensor(targets)}",
        "sge_execd must not hand its own environment on (`qconf -mconf`):",
        "    execd_params INHERIT_ENV=false",
    )


def node_settings(targets: GridEngineTargets) -> tuple[str, ...]:
    """What the node's lrms_vm.toml must say."""
    return (f'guest_program = "{targets.guest}"',)
