"""Which options `srun` inside a guest may give to the real one on the host. Pure.

An allow-list (srun(1), Slurm 22.05 to 24.11): where and how a step's tasks run may be said; nothing that would run or
write something on the host, reach another job, or bypass the guest. What is not in the table is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lrms_vm.errors import UsageError

# Long options. "=": takes an argument; "?": may take one, only as --name=value; "": takes none.
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
    "vm-image": "a job's guests all run the image the job was started with",
}


@dataclass(frozen=True)
class Step:
    """What the shim may ask of the real srun."""

    options: tuple[str, ...]  # as to be given, in their order
    export: str | None  # of --export, taken out of `options`
    command: tuple[str, ...]


def parse(arguments: Sequence[str], *, may_change_to: Callable[[str], bool]) -> Step:
    """Read srun's command line as srun does (getopt_long: bundles, abbreviations, up to the first operand).

    `may_change_to` says whether a directory is one that host and guest share (for --chdir).
    Raises `UsageError` (64) naming the option that is refused or cannot be read.
    """
    options: list[str] = []
    export: str | None = None
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        found = _long(word, rest) if word.startswith("--") else _bundle(word, rest)
        for name, value in found:
            if name == "export":
                export = value
                continue
            if name == "chdir" and (value is None or not may_change_to(value)):
                raise UsageError(
                    f"srun: --chdir={value}: not in a directory that the guest shares with the host",
                    hint="use the working directory or a --vm-share",
                    code="srun-refused",
                )
            if name in ("nodelist", "exclude") and value is not None and "/" in value:
                raise UsageError(
                    f"srun: --{name}={value}: srun would read a file of the host",
                    hint="write the node names",
                    code="srun-refused",
                )
            options.append(f"--{name}" if value is None else f"--{name}={value}")
    step = Step(tuple(options), export, tuple(rest))
    if not step.command and not {"--help", "--version", "--usage"} & set(options):
        raise UsageError("srun: no command to run", hint="srun [options] COMMAND [arguments]", code="srun-usage")
    return step


def _long(word: str, rest: list[str]) -> list[tuple[str, str | None]]:
    written, equals, value = word[2:].partition("=")
    name = _full(written)
    takes = LONG[name]
    if takes == "" and equals:
        raise _unreadable(f"--{name} takes no value")
    if takes == "=" and not equals:
        if not rest:
            raise _unreadable(f"--{name} needs a value")
        return [(name, rest.pop(0))]
    return [(name, value if equals else None)]


def _full(written: str) -> str:
    """The option meant; exact, or an abbreviation of only one that srun or we know (getopt_long(3))."""
    if written in LONG:
        return written
    known = [*LONG, *HINTS, *_SHORT_REFUSED.values()]
    meant = sorted({name for name in known if written and name.startswith(written)})
    if len(meant) == 1 and meant[0] in LONG:
        return meant[0]
    raise _refused(meant[0] if len(meant) == 1 else written)


def _bundle(word: str, rest: list[str]) -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = []
    letters = word[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter not in SHORT:
            raise _refused(_SHORT_REFUSED.get(letter, ""), f"-{letter}")
        name = SHORT[letter]
        takes = LONG[name]
        if takes == "":
            found.append((name, None))
        elif letters or takes == "?":  # -n2; an optional argument only stands in the same word
            found.append((name, letters or None))
            letters = ""
        elif rest:
            found.append((name, rest.pop(0)))
        else:
            raise _unreadable(f"-{letter} needs a value")
    return found


def _refused(name: str, letter: str = "") -> UsageError:
    shown = " ".join(
        word for word in (letter, f"(--{name})" if letter and name else f"--{name}" if name else "") if word
    )
    return UsageError(
        f"srun: option {shown!r:.80} is not possible from inside a guest",
        hint=HINTS.get(name, "steps started from a guest may only say where and how their tasks run"),
        code="srun-refused",
    )


def _unreadable(what: str) -> UsageError:
    return UsageError(f"srun: {what}", hint="see srun(1)", code="srun-usage")
