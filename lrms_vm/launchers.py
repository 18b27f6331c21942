"""The launchers: the batch systems' own programs that start a job's tasks, which a guest may ask its host to run. Pure.

    slurm             srun      its tasks get the guest's environment, or what --export leaves of it
    torque, openpbs   pbsdsh    its tasks get the job's, and what Torque's -e and -E say of the guest's

What of the guest's environment goes along travels packed in one variable that only `exec` on the other side opens
(environment.py). The real launcher itself gets none of it: an LD_PRELOAD set in the guest stays in guests.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field

from lrms_vm import pbsdsh_options, srun_options
from lrms_vm.environment import TASK_VARIABLE, pack
from lrms_vm.launch_options import Grammar
from lrms_vm.lrms.base import LAUNCHER_NAMES
from lrms_vm.values import dataclass


@dataclass(frozen=True)
class Start:
    """How the real one is to be started."""

    options: tuple[str, ...]
    command: tuple[str, ...]
    variables: Mapping[bytes, bytes] = field(default_factory=dict)  # beside the job's


@dataclass(frozen=True)
class Launcher:
    """A row of the table above."""

    name: str  # as it is typed, in the guest too
    job_variable: bytes  # without it there is no job whose tasks it could start
    keeps: tuple[bytes, ...]  # beginnings of those of the job's variables that the real one gets
    takes_input: bool  # whether it reads its stdin
    read: Callable[[Sequence[str], Mapping[bytes, bytes], Callable[[str], bool]], Start]
    """Arguments, the guest's environment, and whether a directory is shared with the guest. Raises `UsageError`,
    `RequestError` for an environment too large to take along."""

    @property
    def socket_variable(self) -> str:
        """Where the guest's half is told its socket (guest/launch.c)."""
        return f"LRMS_VM_{self.name.upper()}"


def _srun(arguments: Sequence[str], guest: Mapping[bytes, bytes], may_change_to: Callable[[str], bool]) -> Start:
    step = srun_options.parse(arguments, may_change_to=may_change_to)
    wanted, export = _exported(guest, step.export)
    return Start((*step.options, *export), step.command, {TASK_VARIABLE: pack(wanted)})


def _exported(guest: Mapping[bytes, bytes], export: str | None) -> tuple[dict[bytes, bytes], list[str]]:
    """What of the guest's environment goes along, and the option for the real srun (srun(1), --export).

    Names and values of a list are the guest's: applied here, they never become variables of a program on the host.
    """
    if export is None:
        return dict(guest), []
    if export == "NONE":
        return {}, ["--export=NONE"]
    words = [os.fsencode(word) for word in export.split(",")]
    wanted = dict(guest) if b"ALL" in words else {}
    for word in words:
        name, equals, value = word.partition(b"=")
        if equals:
            wanted[name] = value
        elif name in guest:
            wanted[name] = guest[name]
    return wanted, ["--export=ALL"]


def _pbsdsh(grammar: Grammar) -> Callable[[Sequence[str], Mapping[bytes, bytes], Callable[[str], bool]], Start]:
    def read(arguments: Sequence[str], guest: Mapping[bytes, bytes], may_change_to: Callable[[str], bool]) -> Start:
        tasks = pbsdsh_options.parse(grammar, arguments, guest)
        if tasks.variables is None:
            return Start(tasks.options, tasks.command)
        own = (b"PBS_", b"TM_")  # say which task it is: the new one has its own
        wanted = {name: value for name, value in tasks.variables.items() if not name.startswith(own)}
        packed = f"{TASK_VARIABLE.decode()}={pack(wanted).decode()}"
        return Start((*tasks.options, "-e", packed), tasks.command)

    return read


SRUN = Launcher(LAUNCHER_NAMES["slurm"], b"SLURM_JOB_ID", keeps=(b"",), takes_input=True, read=_srun)
LAUNCHERS = {"slurm": SRUN} | {
    lrms: Launcher(LAUNCHER_NAMES[lrms], b"PBS_JOBCOOKIE", (b"PBS_",), takes_input=False, read=_pbsdsh(grammar))
    for lrms, grammar in (("torque", pbsdsh_options.TORQUE), ("openpbs", pbsdsh_options.OPENPBS))
}


def usable(lrms: str, job_environment: Mapping[bytes, bytes]) -> Launcher | None:
    """The one that a job of this batch system with this environment can use; None where there is none."""
    launcher = LAUNCHERS.get(lrms)
    return launcher if launcher is not None and launcher.job_variable in job_environment else None
