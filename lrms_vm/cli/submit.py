"""`lrms-vm submit`: a command to the batch system, into a VM image or not. See lrms_vm/submit/."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

from lrms_vm.errors import UsageError
from lrms_vm.request import OPTIONS
from lrms_vm.submit import JobDescription, JobResult, JobState, JobStatus, Resources, Session, Vm
from lrms_vm.submit.description import SYSTEMS
from lrms_vm.submit.session import LIBRARIES
from lrms_vm.units import parse_duration_s, parse_memory_mib

DESCRIPTION = """\
Submits COMMAND to this host's batch system: Slurm, Grid Engine, Torque or OpenPBS, through its DRMAA library where
there is one and through its own commands where not. The words are the same for all of them. With --vm-image the
command runs in a guest booted from that image. Arguments reach it byte for byte: quote them for your own shell only.
Prints the job's id, or one id a line.
"""
EXAMPLES = """\
examples:
  lrms-vm submit --vm-image=hep-jets -- ./simulate --events 1000      prints the job's id
  lrms-vm submit --vm-image=hep-jets --wait -- ./simulate             ends as the job does
  lrms-vm submit --vm-image=hep-jets --bulk 8 --output 'out.{index}' --wait -- ./simulate.sh     its BULK_INDEX: 1 to 8
  lrms-vm submit --duration=2h --memory=2G --env SEED=7 --env HOME -- ./on-the-host
  lrms-vm submit --vm-image=hep-jets --attribute slurm.constraint=vm --attribute slurm.comment=run7 -- ./simulate

where the answer goes:
  stdout  the job ids, or with --json one object; all else is on stderr
  {job} and {index} in --output, --error and --input stand for the job's id and the index in a bulk

exit codes: 0 submitted. With --wait those of the job: its own, 128 and the signal that ended it, 143 for a canceled
job, 70 for one that ended without a code (the reason is printed); of a bulk the first that is not 0.
64 the command line or the description, 77 refused by the batch system, 75 the batch system does not answer.
"""


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "submit", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    vm = parser.add_argument_group("the guest")
    for word in OPTIONS:
        vm.add_argument(f"--{word}", metavar="REF" if word == "vm-image" else "VALUE", help=_VM_HELP[word])
    job = parser.add_argument_group("the job")
    job.add_argument("--name", help="the job's name")
    job.add_argument("--queue", help="the queue; Slurm: the partition")
    job.add_argument("--account", help="whom it is accounted to")
    job.add_argument("--duration", metavar="TIME", help="wall clock limit: 90s, 30m, 2h, 1d")
    job.add_argument("--directory", metavar="DIR", help="working directory (default: this one)")
    job.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="set a variable for the command; without a value: as it is here. May be repeated",
    )
    job.add_argument(
        "--env-all", action="store_true", help="all variables as they are here, but what describes the host"
    )
    job.add_argument("--input", metavar="FILE", help="the command's stdin (default: /dev/null)")
    job.add_argument("--output", metavar="FILE", help="its stdout; its stderr too, if --error is not given")
    job.add_argument("--error", metavar="FILE", help="its stderr")
    job.add_argument("--nodes", type=int, metavar="N", help="number of nodes")
    job.add_argument("--processes", type=int, metavar="N", help="number of processes (Slurm: tasks)")
    job.add_argument("--cpus", type=int, metavar="N", help="cpus of each process")
    job.add_argument("--memory", metavar="SIZE", help="memory on each node, e.g. 2G")
    job.add_argument("--hold", action="store_true", help="submit it held")
    job.add_argument(
        "--attribute",
        action="append",
        default=[],
        metavar="SYSTEM.OPTION=VALUE",
        help=f"an option of the system's own; others ignore it. SYSTEM: {', '.join(SYSTEMS)}",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--bulk", type=int, metavar="N", help="N jobs at once; each finds its number in BULK_INDEX")
    how.add_argument(
        "--wait", action="store_true", help="wait for the end and end like the job; Ctrl-C leaves it running"
    )
    how.add_argument("--json", action="store_true", help="for machines")
    how.add_argument("--lrms", metavar="SYSTEM", help="the batch system, where there are several")
    how.add_argument(
        "--library", choices=LIBRARIES, default="auto", help="DRMAA or the system's commands (default: auto)"
    )
    how.add_argument("-v", "--verbose", action="store_true", help="say which library or commands are used, and why")
    parser.add_argument("command", nargs="+", metavar="-- COMMAND", help="what to run, after `--`")
    parser.set_defaults(run=_submit)


_VM_HELP = {
    "vm-image": "run in a guest of this image",
    "vm-memory": "the guest's memory, if less than the job's",
    "vm-cpus": "the guest's cpus, if fewer than the job's",
    "vm-network": "none, nat or bridge:NAME",
    "vm-share": "more host directories, separated by commas",
    "vm-kernel": "one of the site's kernels",
    "vm-env": "variables the payload gets although they describe the host",
}


def _submit(args: argparse.Namespace) -> int:
    description = describe(args, os.environ)
    with Session(lrms=args.lrms, library=args.library) as session:
        if args.verbose:
            print(f"lrms-vm: {session.backend_name}", file=sys.stderr)
        one = args.bulk is None
        job_ids = [session.submit(description)] if one else session.submit_bulk(description, args.bulk)
        if not args.json:
            print("\n".join(job_ids), flush=True)
        results: list[JobResult] = []
        if args.wait:
            results = _wait(session, job_ids)
        if args.json:
            print(json.dumps(_report(session, job_ids, results), indent=1))
    for result in results:
        if result.state is not JobState.COMPLETED and not args.json:
            print(f"lrms-vm: job {result.job_id}: {_end_text(result)}", file=sys.stderr)
    return next((result.returncode for result in results if result.returncode), 0)


def describe(args: argparse.Namespace, environ: Mapping[str, str]) -> JobDescription:
    """The command line as a description. Raises `UsageError`."""
    executable, *arguments = args.command
    return JobDescription(
        executable=executable,
        arguments=tuple(arguments),
        directory=os.path.abspath(args.directory) if args.directory else None,
        environment=_environment(args.env, environ),
        inherit_environment=args.env_all,
        stdin_path=args.input,
        stdout_path=args.output,
        stderr_path=args.error,
        duration=timedelta(seconds=parse_duration_s(args.duration, source="--duration")) if args.duration else None,
        queue=args.queue,
        account=args.account,
        name=args.name,
        held=args.hold,
        resources=Resources(
            node_count=args.nodes,
            process_count=args.processes,
            cpu_cores_per_process=args.cpus,
            memory_mib=parse_memory_mib(args.memory, bare="M", source="--memory") if args.memory else None,
        ),
        custom_attributes=dict(_pair(text, "--attribute") for text in args.attribute),
        image=args.vm_image,
        vm=Vm(**{word.removeprefix("vm-"): getattr(args, word.replace("-", "_")) for word in OPTIONS[1:]}),
    )


def _environment(texts: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals and name not in environ:
            raise UsageError(
                f"--env: {name[:60]!r} is not set here", hint="NAME=VALUE sets it", code="option-unreadable"
            )
        values[name] = value if equals else environ[name]
    return values


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"{option}: {text[:60]!r} is not NAME=VALUE", code="option-unreadable")
    return name, value


def _wait(session: Session, job_ids: Sequence[str]) -> list[JobResult]:
    shown = _Shown()
    try:
        return session.wait_all(job_ids, on_look=shown)
    except KeyboardInterrupt:
        jobs = job_ids[0] if len(job_ids) == 1 else f"{job_ids[0]} to {job_ids[-1]}"
        print(f"\nlrms-vm: no longer waiting; job {jobs} goes on", file=sys.stderr)
        raise
    finally:
        shown.clear()


class _Shown:
    """One line on the terminal that is written over; nothing where there is no terminal."""

    def __init__(self) -> None:
        self._began, self._width, self._ended = time.monotonic(), 0, 0

    def __call__(self, looks: Mapping[str, JobStatus]) -> None:
        if not sys.stderr.isatty():
            return
        states: dict[str, int] = {}
        for look in looks.values():
            states[look.state.value] = states.get(look.state.value, 0) + 1
        counts = ", ".join(f"{count} {word}" if len(looks) > 1 else word for word, count in sorted(states.items()))
        text = f"lrms-vm: {counts}, {time.monotonic() - self._began:.0f} s"
        self.clear()
        self._width = len(text)
        sys.stderr.write(text)
        sys.stderr.flush()

    def clear(self) -> None:
        if self._width:
            sys.stderr.write(f"\r{'':<{self._width}}\r")
            sys.stderr.flush()
            self._width = 0


def _end_text(result: JobResult) -> str:
    how = (
        f"exit code {result.exit_code}"
        if result.exit_code is not None
        else f"signal {result.signal}"
        if result.signal
        else ""
    )
    return ", ".join(filter(None, (result.state.value, how, result.reason)))


def _report(session: Session, job_ids: Sequence[str], results: Sequence[JobResult]) -> dict[str, object]:
    ends = {result.job_id: result for result in results}
    return {
        "lrms": session.system,
        "backend": session.backend_name,
        "jobs": [
            {"id": job_id}
            if job_id not in ends
            else {
                "id": job_id,
                "state": ends[job_id].state.value,
                "exit_code": ends[job_id].exit_code,
                "signal": ends[job_id].signal,
                "returncode": ends[job_id].returncode,
                "reason": ends[job_id].reason,
            }
            for job_id in job_ids
        ],
    }
