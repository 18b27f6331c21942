"""OpenPBS's hook: what its one hook file read of an event in, options, allocation and argument lists out.

The hook file runs in PBS's own Python and does no work: it hands the facts of an event to our isolated Python and does
with the job and the node what that prints (`instruction`). What the events are told (hooks guide; measured on 23.06.06,
docs/openpbs.md):

    outcome                  execjob_begin                                             execjob_end
    ready, or nothing asked  accept                                                    accept
    the request's fault      accept, and a refused verdict (a bad name: rejected by
                             queuejob): what stands in the payload's place says why
    the site's fault         rerun, reject, at most three times here; then held
    the site's settings      job held, rerun, reject
    the node's fault         node offline with our comment, rerun, reject, at most
                             three times here; then held as well
    leftovers                                                                          node offline, accept

PBS keeps a rejection's reason from the job's user: what the hook sets as its comment is lost, and the server's own
"Execution server rejected request" stands there (seen). So a user's fault ends the job with the reason in its output,
and what is held is for administrators. PBS itself holds a job after 21 starts. execjob_epilogue and execjob_end must
accept: a rejection would change the job's exit status.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from lrms_vm.errors import SiteError, UsageError
from lrms_vm.lrms import pbs_text, torque
from lrms_vm.lrms.base import EPILOGUE, MAX_RETRIES, PROLOGUE, Action, Call, Outcome, Told
from lrms_vm.lrms.command import Command
from lrms_vm.request import Allocation

NAME = "openpbs"
FACTS = "facts"  # the `files` of a Call: what the hook file wrote, JSON
MAX_FACTS = 16 << 20
RESOURCE = "vm_image"  # qsub -l vm_image=NAME
REJECT = 1

_BRACKET = re.compile(rb"\\([\[\]])")
_HELD = Told(REJECT, (Action.HOLD,))
_TOLD = {
    (PROLOGUE, Outcome.READY): Told(0),
    (PROLOGUE, Outcome.REQUEST): Told(0, (Action.VERDICT,)),
    (PROLOGUE, Outcome.SITE): Told(REJECT, (Action.COUNT,), otherwise=_HELD),
    (PROLOGUE, Outcome.CONFIG): _HELD,
    (PROLOGUE, Outcome.NODE): Told(REJECT, (Action.TAKE_OUT, Action.COUNT), otherwise=_HELD),
    (EPILOGUE, Outcome.READY): Told(0),
    (EPILOGUE, Outcome.LEFTOVERS): Told(0, (Action.TAKE_OUT,)),
}
_TIRED = {Outcome.SITE: _HELD, Outcome.NODE: Told(REJECT, (Action.TAKE_OUT, Action.HOLD))}

# What a fact is; anything else in its place is refused
_KINDS: Mapping[str, type] = {
    "id": str,
    "node": str,
    "euser": str,
    "queue": str,
    "exec_vnode": str,
    "vnodes": list,
    "resources": dict,
    "variables": dict,
    "run_count": int,
    "jobs": list,
}


def outcome(hook: str, outcome: Outcome, *, retries: int) -> Told:
    """The table above."""
    if hook == PROLOGUE and retries >= MAX_RETRIES and outcome in _TIRED:
        return _TIRED[outcome]
    return _TOLD[hook, outcome]


def instruction(action: Action, why: str) -> str:
    """A line for the hook file: what it shall do with the job or the node, and why."""
    return json.dumps({"do": action.value, "why": f"lrms_vm: {pbs_text.plain(why, torque.MAX_NOTE)}"}) + "\n"


def facts(call: Call) -> Mapping[str, object]:
    """Raises `SiteError` for anything but what our hook file writes."""
    try:
        read = json.loads(call.files.get(FACTS, b""))
    except (ValueError, RecursionError) as error:
        raise _not_facts(str(error)) from error
    if not isinstance(read, dict) or set(read) != set(_KINDS):
        raise _not_facts("other names than expected")
    for name, kind in _KINDS.items():
        value = read[name]
        if type(value) is not kind:
            raise _not_facts(f"{name} is not {kind.__name__}")
        texts = value if isinstance(value, list) else [*value, *value.values()] if isinstance(value, dict) else []
        if not all(isinstance(text, str) for text in texts):
            raise _not_facts(f"{name} holds something else than texts")
    return read


def parse_options(call: Call) -> tuple[dict[str, str], str]:
    """The option texts by their words, and the carrier of the image: the first that is there, in the order

        -l vm_image=NAME        a custom resource
        VM_IMAGE                in Variable_List; the other options are always there

    Hostile, unread. Raises `UsageError` where there is none, `SiteError` as `facts`.
    """
    known = facts(call)
    options = pbs_text.vm_variables(_texts(known, "variables"))
    if image := _texts(known, "resources").get(RESOURCE):
        return {**options, "vm-image": image}, "-l vm_image"
    if "vm-image" in options:
        return options, "VM_IMAGE"
    raise UsageError("the job asks for no VM", code="image-missing")


def identify(call: Call, *, uid: int, gid: int) -> Allocation:
    """Which job, and what it has on this node. `uid` and `gid` are those of `owner(call)`. Raises `SiteError`."""
    known = facts(call)
    node = _text(known, "node")
    vnodes = known["vnodes"]
    chunks = pbs_text.chunks_on(_text(known, "exec_vnode"), tuple(vnodes) if isinstance(vnodes, list) else ())
    cpus, memory_mib = chunks or (1, None)
    run_count = known["run_count"]
    return Allocation(
        lrms=NAME,
        job_id=pbs_text.parse_job_id(_text(known, "id")).name,
        node=torque.node_name(node),
        uid=uid,
        gid=gid,
        user=owner(call),
        work_dir=_texts(known, "variables").get("PBS_O_WORKDIR", ""),
        cpus=cpus,
        memory_mib=memory_mib,
        partition=_text(known, "queue"),
        restart_count=max(run_count - 1, 0) if isinstance(run_count, int) else 0,
    )


def owner(call: Call) -> str:
    """The job's user. Raises `SiteError`."""
    name = _text(facts(call), "euser")
    if not name or not name.isprintable() or "/" in name or name == "root":
        raise SiteError(f"euser: {name[:40]!r} is no user a job may belong to", code="hook-environment")
    return name


def jobs_here(call: Call) -> list[str]:
    """The jobs that pbs_mom has on the node, as the hook file saw them. Raises `SiteError`."""
    jobs = facts(call)["jobs"]
    return [str(job) for job in jobs] if isinstance(jobs, list) else []


def keys(jobs: Iterable[str], node: str) -> set[str]:
    """Raises `SiteError` for what is no job's id: a job overlooked here would lose its guest."""
    return {f"{NAME}-{pbs_text.parse_job_id(job).name}.{node}" for job in jobs}


def command(argv: Sequence[str], environ: Mapping[str, str], line: bytes | None) -> Command:
    """What the payload is: as Torque's job starter. PBS puts a backslash before brackets in a script's path (seen)."""
    return torque.command(argv, environ, None if line is None else _BRACKET.sub(rb"\1", line))


def _texts(known: Mapping[str, object], name: str) -> dict[str, str]:
    value = known[name]
    return value if isinstance(value, dict) else {}


def _text(known: Mapping[str, object], name: str) -> str:
    return str(known[name])


def _not_facts(why: str) -> SiteError:
    return SiteError(
        f"not what our hook in OpenPBS writes: {why}",
        hint="this verb is for the hook that `lrms-vm install --lrms=openpbs` prints",
        code="hook-environment",
    )
