"""`prologue`, `epilogue` and `reap`: what the batch system's hooks call, as root.

Each error's blame decides what the batch system is told, by the table of its adapter (docs/exit-codes.md). The same
for all of them: a job that asked for a VM and did not get one never runs on the host, and only what is the node's own
fault takes it out of service.
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
from lrms_vm.batch_system import BatchSystem
from lrms_vm.config import Config
from lrms_vm.errors import LrmsVmError, NodeError, UsageError
from lrms_vm.lrms.base import EPILOGUE, PROLOGUE, Action, Call, Outcome, Told, outcome_of
from lrms_vm.request import Allocation, parse_request

REAP_TIMEOUT_S = 20.0
SYSTEMS = ("slurm", "gridengine", "torque", "torque-sister", "openpbs")


def system(name: str) -> BatchSystem:
    """The node's half of an adapter; only the one that is asked for is imported."""
    if name == "gridengine":
        from lrms_vm import gridengine_node

        return gridengine_node
    if name in ("torque", "torque-sister"):
        from lrms_vm import torque_node

        return torque_node.MOTHER if name == "torque" else torque_node.SISTER
    if name == "openpbs":
        from lrms_vm import openpbs_node

        return openpbs_node
    from lrms_vm import slurm_node

    return slurm_node


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for verb, line, run in (
        (PROLOGUE, "make this job's guest; called by the batch system's hook, as root", _prologue),
        (EPILOGUE, "remove this job's guest; called by the batch system's hook, as root", _epilogue),
        ("reap", "remove what jobs that no longer exist left on this node", _reap),
    ):
        parser = verbs.add_parser(
            verb,
            description=line,
            epilog=f"example:\n  lrms-vm {verb} --lrms slurm",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--lrms", choices=SYSTEMS, required=True, help="the batch system that calls")
        parser.add_argument("--node", help="this node's name in the batch system (default: as the hook says)")
        parser.add_argument("words", nargs="*", metavar="-- ARGUMENT", help="the hook's own arguments")
        parser.set_defaults(run=run)


def _prologue(args: argparse.Namespace) -> int:
    started_at, start = time.time(), time.monotonic()
    batch = system(args.lrms)
    try:
        call = batch.call(args.words)
        job = batch.identify(call)
        config = configuration.load(args.config or configuration.DEFAULT_PATH)
    except LrmsVmError as error:
        return _unready(batch, PROLOGUE, error)
    from lrms_vm import retries, teardown

    limit_s = min(config.prologue_timeout_s, batch.prologue_limit_s(call))
    deadline = start + limit_s
    call.patience.at_most(limit_s)
    try:
        with teardown.locked(config.places, job.key, deadline=deadline):
            failure = _failure(lambda: _start_guest(batch, call, job, config, started_at, deadline), job)
            if failure is None:
                journal.write("info", "started", {"job": job.key, "seconds": round(time.monotonic() - start, 2)})
                retries.forget(config.places, job.key)
                return batch.outcome(PROLOGUE, Outcome.READY, retries=0).exit_code
            _clear(job, config)
            if isinstance(failure, NodeError):
                raise failure
            return _tell(batch, PROLOGUE, outcome_of(failure), failure, job, call, config)
    except NodeError as error:
        return _tell(batch, PROLOGUE, _sick(batch, config) or Outcome.NODE, error, job, call, config)


def _sick(batch: BatchSystem, config: Config) -> Outcome | None:
    """Where the site would rather lose the node's VM capability than the node; Slurm alone has one to lose."""
    return Outcome.SICK if config.sick_node == "no-vm" and batch.NAME == "slurm" else None


def _unready(batch: BatchSystem, hook: str, error: LrmsVmError) -> int:
    journal.write("error", hook, {"blame": error.blame, "code": error.code, "text": error})
    print(f"lrms_vm: {error}", file=sys.stderr)
    return batch.unready(hook, error)


def _start_guest(
    batch: BatchSystem, call: Call, job: Allocation, config: Config, started_at: float, deadline: float
) -> None:
    from lrms_vm import lifecycle, node

    batch.require_way_in(call, config)  # first: whatever we refuse relies on it to stay off the host
    _clear(job, config)
    options, source = batch.parse_options(call)
    request = parse_request(options, source=source)
    allocation = batch.allocation(call, config)  # asks before the reaping does: patience is this job's first
    _reap_others(batch, call, job, config)
    actors = node.actors(config)
    lifecycle.prologue(request, allocation, config=config, actors=actors, started_at=started_at, deadline=deadline)
    batch.started(allocation, call, config)


def _failure(action: Callable[[], None], job: Allocation) -> LrmsVmError | None:
    """Do it; return what went wrong. A bug of ours must neither run a job on the host nor take nodes out one by one."""
    try:
        action()
    except LrmsVmError as error:
        journal.write("error", "failed", {"job": job.key, "blame": error.blame, "code": error.code, "text": error})
        print(f"lrms_vm: {job.key}: {error}", file=sys.stderr)
        return error
    except Exception as bug:
        journal.write("error", "failed", {"job": job.key, "code": "internal", "text": traceback.format_exc()})
        traceback.print_exc()
        return LrmsVmError(f"internal error: {type(bug).__name__}: {bug}", code="internal")
    return None


def _tell(
    batch: BatchSystem, hook: str, outcome: Outcome, error: LrmsVmError, job: Allocation, call: Call, config: Config
) -> int:
    """Do what the adapter's table says of this outcome; return the hook's exit code.

    Raises `NodeError` only where not even the verdict of a refusal can be written.
    """
    from lrms_vm import retries

    told = batch.outcome(hook, outcome, retries=retries.count(config.places, job.key))
    if hook == PROLOGUE and Action.COUNT not in told.actions:
        retries.forget(config.places, job.key)
    while not _done(batch, told, error, job, call, config):
        match told.otherwise:
            case None:
                break
            case int() as exit_code:
                told = Told(exit_code)
                break
            case instead:
                told = instead
    if hook == PROLOGUE:
        from lrms_vm import counters

        sent_back = not {Action.COUNT, Action.SEND_BACK, Action.TAKE_OUT}.isdisjoint(told.actions)
        counters.refused(config.places, error.blame, error.code, sent_back=sent_back)
    return told.exit_code


def _done(batch: BatchSystem, told: Told, error: LrmsVmError, job: Allocation, call: Call, config: Config) -> bool:
    """Do all of the actions; say whether each could be done. Raises `NodeError` as `_tell`."""
    from lrms_vm import lifecycle, retries

    done = True
    for action in told.actions:
        try:
            if action is Action.VERDICT:
                lifecycle.refuse(error, job, places=config.places)
            elif action is Action.COUNT:
                retries.add(config.places, job.key)
            else:
                batch.act(action, f"{error.code}: {error.message}", job, call, config)
        except LrmsVmError as undone:
            if action is Action.VERDICT:
                raise
            journal.say("error", job.key, f"cannot {action.value}: {undone}")
            done = False
    return done


def _clear(job: Allocation, config: Config) -> None:
    """Undo what an earlier prologue of this job left. Raises `NodeError` when something stays."""
    from lrms_vm import node, teardown

    places = config.places.job(job.key)
    if not (places.run.exists() or places.disk.exists() or config.places.verdict(job.key).exists()):
        return
    left = teardown.teardown(
        job.key,
        places=config.places,
        hypervisor=node.hypervisor(config),
        deadline=time.monotonic() + config.epilogue_timeout_s,
    )
    if left:
        raise NodeError("left behind: " + "; ".join(map(str, left)), code="leftovers")


def _epilogue(args: argparse.Namespace) -> int:
    batch = system(args.lrms)
    try:
        call = batch.call(args.words)
        job = batch.identify(call)
        config = configuration.load(args.config or configuration.DEFAULT_PATH)
    except LrmsVmError as error:
        return _unready(batch, EPILOGUE, error)
    from lrms_vm import counters, node, teardown

    deadline = time.monotonic() + config.epilogue_timeout_s
    call.patience.at_most(config.epilogue_timeout_s)
    left: list[teardown.Leftover] = []
    try:
        with teardown.locked(config.places, job.key, deadline=deadline):
            left = teardown.teardown(
                job.key, places=config.places, hypervisor=node.hypervisor(config), deadline=deadline
            )
        why = "; ".join(map(str, left))
    except LrmsVmError as error:
        why = str(error)
    counters.left(config.places, job.key, len(left) or bool(why))
    if why:
        journal.write("error", "leftovers", {"job": job.key, "text": why})
        print(f"lrms_vm: {job.key}: left behind: {why}", file=sys.stderr)
        found = NodeError(f"job {job.job_id}: {why}", code="leftovers")
        return _tell(batch, EPILOGUE, _sick(batch, config) or Outcome.LEFTOVERS, found, job, call, config)
    journal.write("info", "removed", {"job": job.key})
    return batch.outcome(EPILOGUE, Outcome.READY, retries=0).exit_code


def _reap(args: argparse.Namespace) -> int:
    """Tear down what belongs to jobs the batch system no longer has on this node."""
    config = configuration.load(args.config or configuration.DEFAULT_PATH)
    batch = system(args.lrms)
    call = Call(argv=tuple(args.words), environ=os.environ)
    name = args.node or batch.node_name(call)
    if not name:
        raise UsageError("reap: which node is this?", hint="--node NAME", code="node-unknown")
    from lrms_vm import cache, retries

    for what in cache.clean(config.places):
        print(f"cache: removed {what}")
    retries.forget_old(config.places, now=time.time())
    left = reap(name, batch, config, call)
    for line in left:
        print(f"lrms-vm: left behind: {line}", file=sys.stderr)
    return NodeError.exit_code if left else 0


def reap(name: str, batch: BatchSystem, config: Config, call: Call | None = None) -> list[str]:
    """What jobs left on the node that the batch system no longer has there; what could not be removed of it."""
    from lrms_vm import node, teardown

    found = teardown.keys_on(
        name,
        places=config.places,
        hypervisor=node.hypervisor(config),
        deadline=time.monotonic() + REAP_TIMEOUT_S,
    )
    return _reap_ended(found, name, batch, call or Call(environ=os.environ), config)


def _reap_ended(found: set[str], node_name: str, batch: BatchSystem, call: Call, config: Config) -> list[str]:
    """Tear down those of `found` whose jobs the batch system no longer has on this node, or still has although a reboot
    took their guests; return what is left of them.

    Raises `SiteError` when it does not answer: then nobody's guest is touched.
    """
    from lrms_vm import node, teardown

    found = {key for key in found if key.startswith(f"{batch.NAME}-")}
    if not found:
        return []
    from lrms_vm import counters

    active = batch.active_keys(node_name, call, config)
    deadline = time.monotonic() + REAP_TIMEOUT_S
    leftovers: list[str] = []
    hypervisor = node.hypervisor(config)

    def to_do(key: str) -> bool:
        return key not in active or teardown.lost_in_reboot(
            key, places=config.places, hypervisor=hypervisor, deadline=deadline
        )

    for key in filter(to_do, sorted(found)):
        with teardown.locked(config.places, key, deadline=deadline):
            if not to_do(key):
                continue  # its next prologue was quicker
            if key in active:
                batch.lost(key, call, config)
            left = teardown.teardown(key, places=config.places, hypervisor=hypervisor, deadline=deadline)
        counters.left(config.places, key, len(left))
        leftovers += [f"{key}: {item}" for item in left]
        what = {"job": key, **({"leftovers": "; ".join(map(str, left))} if left else {})}
        journal.write("error" if left else "warning", "reaped", what)
    return leftovers


def _reap_others(batch: BatchSystem, call: Call, job: Allocation, config: Config) -> None:
    """Before a prologue: what jobs that are gone left here. Asks the batch system only when there is somebody's.

    What cannot be reaped now is said in the log; it must not cost this job its guest.
    """
    from lrms_vm import retries, teardown

    retries.forget_old(config.places, now=time.time())
    try:
        found = teardown.keys_in_directories(job.node, places=config.places) - {job.key}
        for line in _reap_ended(found, job.node, batch, call, config):
            journal.write("error", "leftovers", {"job": job.key, "text": line})
    except LrmsVmError as error:
        journal.say("warning", job.key, f"not reaped: {error}")
