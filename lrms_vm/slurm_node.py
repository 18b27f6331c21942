"""What the Slurm adapter must do on a node: ask the controller, look at slurmd, take the node out of service.

The texts are read and the argument lists made in lrms/slurm.py, which is pure. This is a `batch_system.BatchSystem`.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lrms_vm import command, journal, provenance, teardown
from lrms_vm.config import Config
from lrms_vm.domain import NAME_PREFIX
from lrms_vm.errors import LrmsVmError, NodeError, SiteError
from lrms_vm.lrms import slurm
from lrms_vm.lrms.base import PROLOGUE, Action, Call, Outcome, Told
from lrms_vm.request import Allocation
from lrms_vm.verdict import read_verdict

NAME = "slurm"


def call(words: Sequence[str]) -> Call:
    return Call(argv=tuple(words), environ=os.environ)


def identify(call: Call) -> Allocation:
    return slurm.identify(call.environ)


def unready(hook: str, error: LrmsVmError) -> int:
    """The site's fault, so the node stays; with no verdict the plugin ends the job. Without the plugin it would not."""
    if hook == PROLOGUE:
        return 0 if has_plugin() else 1
    return error.exit_code


def prologue_limit_s(call: Call) -> float:
    return math.inf


def require_way_in(call: Call, config: Config) -> None:
    if config.spank_plugin:
        require_plugin(config.spank_plugin)


def parse_options(call: Call) -> tuple[dict[str, str], str]:
    return slurm.parse_options(call.environ)


def allocation(call: Call, config: Config) -> Allocation:
    job_id = slurm.identify(call.environ).job_id
    return slurm.parse_job(ask(slurm.show_job_argv(config.scontrol, job_id), call), call.environ)


def outcome(hook: str, outcome: Outcome, *, retries: int) -> Told:
    return slurm.outcome(hook, outcome, retries=retries)


def act(action: Action, why: str, job: Allocation, call: Call, config: Config) -> None:
    """`TAKE_OUT`: where it fails slurmd drains the node for our exit code, with its own reason. `NO_VM`: fails where
    something of the job still runs, for that would take memory that other jobs are given. `SEND_BACK`: does not fail;
    a job that cannot be requeued (srun, --no-requeue) prints its verdict instead."""
    if action is Action.NO_VM:
        if running := processes(job.key):
            raise NodeError(f"{job.key}: processes {sorted(running)[:5]} still run", code="leftovers")
        set_vm(job.node, why, call, config)
    elif action is Action.SEND_BACK:
        try:
            ask(slurm.requeue_argv(config.scontrol, job.job_id), call)
        except SiteError as error:
            journal.say("warning", job.key, f"not requeued: {error.message}")
    else:
        ask(slurm.drain_argv(config.scontrol, job.node, why), call)


def processes(key: str) -> set[int]:
    """What of a job runs on this node: its hypervisor, and what connects it. Asks no libvirtd, which may be dead."""
    mark = f"guest={NAME_PREFIX}{key},".encode()
    found = teardown.attach_processes(key)
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if any(word.startswith(mark) for word in Path(entry.path, "cmdline").read_bytes().split(b"\0")):
                    found.add(int(entry.name))
    return found


def look_at_node(node: str, call: Call, config: Config) -> slurm.Node:
    """Raises `SiteError`."""
    return slurm.parse_node(ask(slurm.show_node_argv(config.scontrol, node), call), node)


def set_vm(node: str, wrong: str, call: Call, config: Config) -> bool:
    """The node's VM features off because of `wrong`, or on again where it is ""; whether that changed anything.

    Raises `SiteError`: the controller cannot be asked, or has given the node none of our features.
    """
    known = look_at_node(node, call, config)
    active = slurm.without_vm(known, config.hypervisor) if wrong else slurm.with_vm(known, config.hypervisor)
    if active is None:
        raise SiteError(
            f"node {node} has none of the features {', '.join(slurm.vm_features(config.hypervisor))} to lose",
            hint="`lrms-vm install --lrms=slurm` prints what slurm.conf must say",
            code="features-missing",
        )
    if active == known.active:
        return False
    ask(slurm.features_argv(config.scontrol, known, active, wrong), call)
    return True


def drain(node: str, why: str, call: Call, config: Config) -> bool:
    """For the health check: whether it had to be done. Raises `SiteError`."""
    if "DRAIN" in look_at_node(node, call, config).state:
        return False
    ask(slurm.drain_argv(config.scontrol, node, why), call)
    return True


def started(allocation: Allocation, call: Call, config: Config) -> None:
    """Leave the provenance on the job. Only accounting misses it where that fails; the log has it anyway.

    What the guest took cannot be added in the epilogue: Slurm refuses to change a job that has finished.
    """
    if not config.slurm_admin_comment or not slurm.is_first_node(call.environ):
        return
    path = config.places.verdict(allocation.key)
    try:
        image = read_verdict(path.read_bytes(), source=str(path)).image
        text = provenance.line(allocation.key, allocation.user, image)
        argv = slurm.comment_argv(config.scontrol, allocation.job_id, text)
        annotate(argv, call.environ, log=config.places.job(allocation.key).run / "scontrol.log")
    except (LrmsVmError, OSError) as error:
        journal.say("warning", allocation.key, f"AdminComment not set: {error}")


def lost(key: str, call: Call, config: Config) -> None:
    """Slurm itself sees to it when the node was away for SlurmdTimeout. After a quicker reboot, with ReturnToService=2,
    it takes the job for running until BatchStartTimeout is over, and that is long (docs/slurm.md).

    A job that cannot be requeued (srun, --no-requeue) waits for that."""
    job_id = key.partition("-")[2].partition(".")[0]
    try:
        if job_id in ask(slurm.running_argv(config.scontrol, job_id), call).split():
            ask(slurm.requeue_argv(config.scontrol, job_id), call)
            journal.say("warning", key, "its guest was lost in a reboot: requeued")
    except SiteError as error:
        journal.say("warning", key, f"its guest was lost in a reboot; not requeued: {error.message}")


def node_name(call: Call) -> str | None:
    return call.environ.get("SLURMD_NODENAME")


def active_keys(node: str, call: Call, config: Config) -> set[str]:
    listing = ask(slurm.active_jobs_argv(config.scontrol, node), call)
    return {f"{NAME}-{job_id}.{node}" for job_id in slurm.parse_active_jobs(listing)}


def ask(argv: list[str], call: Call) -> str:
    """Run a Slurm command against the hook's own cluster, for as long as this call has patience.

    Raises `SiteError`: no node is to blame.
    """
    environment = dict(command.ENVIRONMENT)
    if "SLURM_CONF" in call.environ:
        environment["SLURM_CONF"] = call.environ["SLURM_CONF"]
    start, timeout_s = time.monotonic(), call.patience.next_s
    if not timeout_s:
        raise _no_answer(f"waited {call.patience.spent_s:.0f} s for it already, not asked: {shlex.join(argv)}")
    try:
        return command.run(argv, timeout_s=timeout_s, environment=environment).decode("utf-8", "replace")
    except LrmsVmError as error:
        raise _no_answer(error.message) from error
    finally:
        call.patience.spend(time.monotonic() - start)


def _no_answer(why: str) -> SiteError:
    return SiteError(f"the Slurm controller does not answer: {why}", hint="is slurmctld up?", code="controller-down")


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
    if str(wanted.st_ino) in inodes:
        return
    if f" {os.path.realpath(plugin)} (deleted)\n" in maps:  # proc(5)
        raise NodeError(
            f"slurmd ({pid}) still has the {plugin} that was there before it was replaced",
            hint="restart slurmd",
            code="plugin-missing",
        )
    raise NodeError(
        f"slurmd ({pid}) has not loaded {plugin}: the job would run on the host",
        hint="restart slurmd; where that changes nothing, `lrms-vm install --lrms=slurm`, then restart it again",
        code="plugin-missing",
    )


def has_plugin(*, slurmd_pid: int | None = None) -> bool:
    """Whether the slurmd that called us has some lrms_vm.so loaded; for when no configuration says which."""
    pid = os.getppid() if slurmd_pid is None else slurmd_pid
    try:
        return "/lrms_vm.so\n" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False
