"""Which options `srun` inside a guest may give to the real one on the host: the table, and srun's own rules. Pure.

srun(1), Slurm 22.05 to 24.11. What is not in the table is refused by name (launch_options.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lrms_vm.launch_options import Grammar
from lrms_vm.values import dataclass

LONG: dict[str, str] = {
    "ntasks": "=",
    "nodes": "=",
    "cpus-per-task": "=",
    "ntasks-per-node": "=",
    "ntasks-per-core": "=",
    "ntasks-per-socket": "=",
    "ntasks-per-gpu": "=",
    "tasks-per-node": "=",
    "nodelist": "=",
    "exclude": "=",
    "relative": "=",
    "mem": "=",
    "mem-per-cpu": "=",
    "mem-per-gpu": "=",
    "mem-bind": "=",
    "cpu-bind": "=",
    "cpus-per-gpu": "=",
    "gpus": "=",
    "gpus-per-node": "=",
    "gpus-per-task": "=",
    "gpu-bind": "=",
    "gres": "=",
    "cores-per-socket": "=",
    "sockets-per-node": "=",
    "threads-per-core": "=",
    "hint": "=",
    "distribution": "=",
    "exact": "",
    "whole": "",
    "overlap": "",
    "exclusive": "?",
    "overcommit": "",
    "contiguous": "",
    "spread-job": "",
    "time": "=",
    "wait": "=",
    "kill-on-bad-exit": "?",
    "no-kill": "?",
    "immediate": "?",
    "label": "",
    "unbuffered": "",
    "quiet": "",
    "verbose": "",
    "job-name": "=",
    "chdir": "=",
    "mpi": "=",
    "resv-ports": "?",
    "export": "=",
    "disable-status": "",
    "quit-on-interrupt": "",
    "signal": "=",
    "cpu-freq": "=",
    "help": "",
    "version": "",
    "usage": "",
}
SHORT: dict[str, str] = {
    "n": "ntasks",
    "N": "nodes",
    "c": "cpus-per-task",
    "w": "nodelist",
    "x": "exclude",
    "r": "relative",
    "m": "distribution",
    "t": "time",
    "W": "wait",
    "K": "kill-on-bad-exit",
    "k": "no-kill",
    "I": "immediate",
    "l": "label",
    "u": "unbuffered",
    "Q": "quiet",
    "v": "verbose",
    "J": "job-name",
    "D": "chdir",
    "O": "overcommit",
    "s": "oversubscribe",
    "X": "disable-status",
    "q": "quit-on-interrupt",
    "G": "gpus",
    "h": "help",
    "V": "version",
}
LONG["oversubscribe"] = ""
_SHORT_REFUSED = {
    "i": "input", "o": "output", "e": "error", "Z": "no-allocate", "A": "account", "p": "partition", "b": "begin",
    "B": "extra-node-info", "C": "constraint", "d": "dependency", "E": "preserve-env", "F": "nodefile", "g": "group",
    "H": "hold", "L": "licenses", "M": "clusters", "P": "dependency", "S": "core-spec", "T": "threads",
    "y": "reservation",
}  # fmt: skip
HINTS = {
    "input": "redirect in the script: srun ... < FILE",
    "output": "redirect in the script: srun ... > FILE",
    "error": "redirect in the script: srun ... 2> FILE",
    "pty": "start it from outside the guest",
    "jobid": "a guest's srun starts steps of its own job only",
    "multi-prog": "start one srun per program, or let a script choose by SLURM_PROCID",
    "het-group": "steps over several components of a job are started from outside the guest",
    "vm-image": "a job's guests all run the image the job was started with",
}
GRAMMAR = Grammar("srun", LONG, SHORT, _SHORT_REFUSED, HINTS)


@dataclass(frozen=True)
class Step:
    """What the shim may ask of the real srun."""

    options: tuple[str, ...]  # as to be given, in their order
    export: str | None  # of --export, taken out of `options`
    command: tuple[str, ...]


def parse(arguments: Sequence[str], *, may_change_to: Callable[[str], bool]) -> Step:
    """Read srun's command line as srun does.

    `may_change_to` says whether a directory is one that host and guest share (for --chdir).
    Raises `UsageError` (64) naming the option that is refused or cannot be read.
    """
    options: list[str] = []
    export: str | None = None
    found, command = GRAMMAR.read(arguments)
    for name, value in found:
        if name == "export":
            export = value
            continue
        if name == "chdir" and (value is None or not may_change_to(value)):
            hint = "use the working directory or a --vm-share"
            raise GRAMMAR.refusal(f"--chdir={value}: not in a directory that the guest shares with the host", hint)
        if name in ("nodelist", "exclude") and value is not None and "/" in value:
            raise GRAMMAR.refusal(f"--{name}={value}: srun would read a file of the host", "write the node names")
        options.append(f"--{name}" if value is None else f"--{name}={value}")
    if ":" in command:  # srun(1), heterogeneous jobs: what follows is another component, with options of its own
        raise GRAMMAR.refusal("a ':' between components is not possible from inside a guest", HINTS["het-group"])
    step = Step(tuple(options), export, command)
    if not step.command and not {"--help", "--version", "--usage"} & set(options):
        raise GRAMMAR.usage("no command to run", "srun [options] COMMAND [arguments]")
    return step
