"""`lrms-vm exec`: the half of a job that runs as its user. Not for typing."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lrms_vm.errors import GuestLost
from lrms_vm.verdict import REFUSED
from lrms_vm.verdict_file import believe

STARTED_BY = ("slurm", "gridengine", "torque", "openpbs")
MEMORY_FILES = (
    *("memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control"),  # cgroup v1
    *("memory.max", "memory.peak", "memory.events"),  # v2
)
MAX_ENVIRONMENT_BYTES = 16 << 20
OUT_OF_MEMORY = "Out of memory: Killed process"  # mm/oom_kill.c, on the guest's console


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    payload = verbs.add_parser(
        "exec",
        description="Runs the payload in the job's guest: the batch system's plugin calls it in place of the payload.",
        epilog="example:\n  lrms-vm exec --verdict /run/lrms_vm/verdicts/slurm-7.n1.json -- /bin/hostname",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    payload.add_argument("--verdict", required=True, type=Path, help="the root-owned file of the prologue")
    payload.add_argument("--lrms", choices=STARTED_BY, default="slurm", help="the batch system that calls")
    payload.add_argument("--commands", metavar="DIR", help="where that one's own commands are")
    payload.add_argument("--script", action="store_true", help="the command is a script of this node: copy it in")
    payload.add_argument("--env-fd", type=int, metavar="N", help="read the job's environment (NUL-terminated) there")
    payload.add_argument("--timing", type=Path, metavar="FILE", help="write the payload's times, in ms, as JSON")
    payload.add_argument("command", nargs="+", metavar="-- COMMAND")
    payload.set_defaults(run=_exec)


def _exec(args: argparse.Namespace) -> int:
    from lrms_vm import cgroup_paths, environment, payload, starter  # nothing later: files may be replaced meanwhile
    from lrms_vm.paths import JobPlaces

    gc.enable()  # a payload may run for days (__main__.py switched it off for the hooks)
    _fill_standard_descriptors()
    verdict = believe(args.verdict)
    if verdict.state == REFUSED:
        print(f"lrms-vm: {verdict.message}{f' ({verdict.hint})' if verdict.hint else ''}", file=sys.stderr)
        return verdict.exit_code
    # As we were given it: Python's own start adds an LC_CTYPE (PEP 538)
    with open("/proc/self/environ" if args.env_fd is None else args.env_fd, "rb") as file:
        job_environment = environment.parse(file.read(MAX_ENVIRONMENT_BYTES))
    command = starter.command_of(args.lrms, args.command, os.environ, script=args.script)
    job = JobPlaces(run=Path(verdict.job_dir), disk=Path(verdict.job_dir))
    try:
        result = payload.run(
            verdict,
            command.words,
            user=job.user,
            job_environment=job_environment,
            lrms=args.lrms,
            commands=args.commands,
            script_at=command.script_at,
            booting_since=verdict.handed_over or time.monotonic(),
            timing=args.timing,
        )
    except GuestLost:
        if why := cgroup_paths.lost_to_memory(cgroup_paths.usage(memory_texts(verdict.memory_cgroup))):
            hint = "ask for more memory (--mem), or use less in the job"
            raise GuestLost(why, hint=hint, code="guest-memory") from None
        print("lrms-vm: the end of the guest's console:", file=sys.stderr)
        for line in payload.console_tail(job.console):
            print(f"  | {line}", file=sys.stderr)
        raise
    if result.signal == signal.SIGKILL or result.exit_code == 128 + signal.SIGKILL:
        _tell_of_memory(payload.console_tail(job.console))
    if result.signal is not None:
        payload.die_by(result.signal)
    return result.exit_code if result.exit_code is not None else GuestLost.exit_code


def _tell_of_memory(console: Sequence[str]) -> None:
    """To the user, where the guest's kernel says on its console that it killed for lack of memory."""
    said = [line[line.index(OUT_OF_MEMORY) :] for line in console if OUT_OF_MEMORY in line]
    if said:
        told = f"lrms-vm: killed; the guest's kernel had no memory left (ask for more, or use less): {said[-1]}"
        print(told, file=sys.stderr, flush=True)


def memory_texts(cgroup: str) -> dict[str, str]:
    """What the kernel says of the guest's memory, by file name; empty where its group is gone, or it had none."""
    texts = {}
    for name in MEMORY_FILES:
        try:
            texts[name] = (Path(cgroup) / name).read_text() if cgroup else ""
        except OSError:
            continue
    return texts


def _fill_standard_descriptors() -> None:
    """Whoever started us with one of 0, 1, 2 closed meant nothing: not the next file that we happen to open."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
