"""`prologue`, `epilogue` and `reap`: what the batch system's hooks call, as root.

Each error's blame decides what the batch system is told (docs/exit-codes.md): the request's and the site's leave a
refused verdict and a healthy node; only the node's own fault takes it out of service.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable

from lrms_vm import config as configuration
from lrms_vm import journal
from lrms_vm.config import Config
from lrms_vm.errors import LrmsVmError, NodeError, UsageError
from lrms_vm.lrms import slurm
from lrms_vm.request import Allocation, parse_request

REAP_TIMEOUT_S = 20.0


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for verb, line, run in (
        ("prologue", "make this job's guest; called by the batch system's hook, as root", _prologue),
        ("epilogue", "remove this job's guest; called by the batch system's hook, as root", _epilogue),
        ("reap", "remove what jobs that no longer exist left on this node", _reap),
    ):
        parser = verbs.add_parser(
            verb,
            description=line,
            epilog=f"example:\n  lrms-vm {verb} --lrms slurm",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--lrms", choices=["slurm"], required=True, help="the batch system that calls")
        parser.add_argument("--node", help="this node's name in the batch system (default: as the hook says)")
        parser.set_defaults(run=run)


def _prologue(args: argparse.Namespace) -> int:
    started_at, start = time.time(), time.monotonic()
    from lrms_vm import slurm_node

    try:
        hook = slurm.identify(os.environ)
        config = configuration.load(args.config or configuration.DEFAULT_PATH)
    except LrmsVmError as unready:
        # The site's fault, so the node stays; with no verdict the plugin ends the job. Without the plugin it would not.
        journal.say("error", "prologue", f"{unready.blame}: {unready.code}: {unready}")
        print(f"lrms_vm: {unready}", file=sys.stderr)
        return 0 if slurm_node.has_plugin() else 1
    from lrms_vm import lifecycle, teardown

    deadline = start + config.prologue_timeout_s
    try:
        with teardown.locked(config.places, hook.key, deadline=deadline):
            error = _failure(lambda: _start_guest(hook, config, started_at=started_at, deadline=deadline), hook)
            if error is None:
                journal.say("info", hook.key, f"guest started in {time.monotonic() - start:.2f} s")
                return 0
            _clear(hook, config)
            if isinstance(error, NodeError):
                raise error
            lifecycle.refuse(error, hook, places=config.places)
            return 0
    except NodeError as error:
        return _take_out(f"{error.code}: {error.message}", hook, config)


def _start_guest(hook: Allocation, config: Config, *, started_at: float, deadline: float) -> None:
    from lrms_vm import lifecycle, node, slurm_node

    if config.spank_plugin:  # first: every refusal relies on the plugin to keep the job off the host
        slurm_node.require_plugin(config.spank_plugin)
    _clear(hook, config)
    _reap_others(hook, config)
    options, source = slurm.parse_options(os.environ)
    request = parse_request(options, source=source)
    text = slurm_node.ask(slurm.show_job_argv(config.scontrol, hook.job_id), os.environ)
    allocation = slurm.parse_job(text, os.environ)
    actors = node.actors(config)
    lifecycle.prologue(request, allocation, config=config, actors=actors, started_at=started_at, deadline=deadline)
    if config.slurm_admin_comment and slurm.is_first_node(os.environ):
        _annotate(allocation, config)


def _annotate(allocation: Allocation, config: Config) -> None:
    """Leave the provenance on the job. Only accounting misses it where that fails; the log has it anyway."""
    from lrms_vm import provenance, slurm_node
    from lrms_vm.verdict import read_verdict

    path = config.places.verdict(allocation.key)
    try:
        image = read_verdict(path.read_bytes(), source=str(path)).image
        text = provenance.line(allocation.key, allocation.user, image)
        argv = slurm.comment_argv(config.scontrol, allocation.job_id, text)
        slurm_node.annotate(argv, os.environ, log=config.places.job(allocation.key).run / "scontrol.log")
    except (LrmsVmError, OSError) as error:
        journal.say("warning", allocation.key, f"AdminComment not set: {error}")


def _failure(action: Callable[[], None], hook: Allocation) -> LrmsVmError | None:
    """Do it; return what went wrong. A bug of ours must neither run a job on the host nor take nodes out one by one."""
    try:
        action()
    except LrmsVmError as error:
        journal.say("error", hook.key, f"{error.blame}: {error.code}: {error}")
        print(f"lrms_vm: {hook.key}: {error}", file=sys.stderr)
        return error
    except Exception as bug:
        journal.say("error", hook.key, traceback.format_exc())
        traceback.print_exc()
        return LrmsVmError(f"internal error: {type(bug).__name__}: {bug}", code="internal")
    return None


def _take_out(why: str, hook: Allocation, config: Config) -> int:
    """Drain this node with our reason; slurmd sees 1 and requeues the job, which runs elsewhere."""
    from lrms_vm import slurm_node

    try:
        slurm_node.ask(slurm.drain_argv(config.scontrol, hook.node, why), os.environ)
    except LrmsVmError as error:  # slurmd drains it for our exit code, with its own reason
        journal.say("error", hook.key, f"cannot drain: {error}")
    return 1


def _clear(hook: Allocation, config: Config) -> None:
    """Undo what an earlier prologue of this job left. Raises `NodeError` when something stays."""
    from lrms_vm import node, teardown

    job = config.places.job(hook.key)
    if not (job.run.exists() or job.disk.exists() or config.places.verdict(hook.key).exists()):
        return
    left = teardown.teardown(
        hook.key,
        places=config.places,
        hypervisor=node.hypervisor(config),
        deadline=time.monotonic() + config.epilogue_timeout_s,
    )
    if left:
        raise NodeError("left behind: " + "; ".join(map(str, left)), code="leftovers")


def _epilogue(args: argparse.Namespace) -> int:
    hook = slurm.identify(os.environ)
    config = configuration.load(args.config or configuration.DEFAULT_PATH)
    from lrms_vm import node, teardown

    deadline = time.monotonic() + config.epilogue_timeout_s
    try:
        with teardown.locked(config.places, hook.key, deadline=deadline):
            left = teardown.teardown(
                hook.key, places=config.places, hypervisor=node.hypervisor(config), deadline=deadline
            )
        why = "; ".join(map(str, left))
    except LrmsVmError as error:
        why = str(error)
    if why:
        journal.say("error", hook.key, f"left behind: {why}")
        print(f"lrms_vm: {hook.key}: left behind: {why}", file=sys.stderr)
        return _take_out(f"leftovers of job {hook.job_id}: {why}", hook, config)
    journal.say("info", hook.key, "guest removed, nothing left")
    return 0


def _reap(args: argparse.Namespace) -> int:
    """Tear down what belongs to jobs the batch system no longer has on this node."""
    config = configuration.load(args.config or configuration.DEFAULT_PATH)
    name = args.node or os.environ.get("SLURMD_NODENAME")
    if not name:
        raise UsageError("reap: which node is this?", hint="--node NAME", code="node-unknown")
    from lrms_vm import cache, node, teardown

    for what in cache.clean(config.places):
        print(f"cache: removed {what}")
    hypervisor = node.hypervisor(config)
    found = teardown.keys_on(
        name, places=config.places, hypervisor=hypervisor, deadline=time.monotonic() + REAP_TIMEOUT_S
    )
    left = _reap_ended(found, name, config)
    for line in left:
        print(f"lrms-vm: left behind: {line}", file=sys.stderr)
    return NodeError.exit_code if left else 0


def _reap_ended(found: set[str], node_name: str, config: Config) -> list[str]:
    """Tear down those of `found` whose jobs the controller no longer has on this node; return what is left of them.

    Raises `SiteError` when the controller does not answer: then nobody's guest is touched.
    """
    from lrms_vm import node, slurm_node, teardown

    found = {key for key in found if key.startswith("slurm-")}
    if not found:
        return []
    listing = slurm_node.ask(slurm.active_jobs_argv(config.scontrol, node_name), os.environ)
    active = {f"slurm-{job_id}.{node_name}" for job_id in slurm.parse_active_jobs(listing)}
    deadline = time.monotonic() + REAP_TIMEOUT_S
    leftovers: list[str] = []
    for key in sorted(found - active):
        with teardown.locked(config.places, key, deadline=deadline):
            left = teardown.teardown(key, places=config.places, hypervisor=node.hypervisor(config), deadline=deadline)
        leftovers += [f"{key}: {item}" for item in left]
        journal.say("error" if left else "warning", key, "reaped" + "".join(f"; left behind: {item}" for item in left))
    return leftovers


def _reap_others(hook: Allocation, config: Config) -> None:
    """Before a prologue: what jobs that are gone left here. Asks the controller only when there is somebody's.

    What cannot be reaped now is said in the log; it must not cost this job its guest.
    """
    from lrms_vm import teardown

    try:
        found = teardown.keys_in_directories(hook.node, places=config.places) - {hook.key}
        for line in _reap_ended(found, hook.node, config):
            journal.say("error", hook.key, f"left behind: {line}")
    except LrmsVmError as error:
        journal.say("warning", hook.key, f"not reaped: {error}")
