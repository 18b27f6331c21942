"""Slurm's hooks and texts: environment and scontrol's output in, options, allocation and argument lists out.

What the hook tells slurmd (Slurm prolog and epilog guide; measured on 22.05, docs/slurm.md):

    outcome                  prolog                                  epilog
    ready, or nothing asked  0                                       0
    the request's fault      0, verdict "refused": the step prints the message and ends with its code
    the site's fault         0, verdict "refused" with "try again", 75 (Slurm cannot requeue and keep the node)
    the node's fault         drain with our reason, then 1: requeued, runs elsewhere (nohold_on_prolog_fail)
    leftovers                the same as the node's fault            drain with our reason, then 1

Where the site says sick_node = "no-vm", and no process of the job is left, the last two are instead:

    the node's fault         the node's VM features off, 0, verdict "refused", requeued at most three times
    leftovers                the same                                the node's VM features off, 0
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from lrms_vm.errors import RequestError, SiteError, UsageError
from lrms_vm.lrms.base import EPILOGUE, MAX_RETRIES, PROLOGUE, Action, Outcome, Told
from lrms_vm.lrms.slurm_notation import first_host, hostlist_has, range_size
from lrms_vm.request import OPTIONS, Allocation
from lrms_vm.values import dataclass

# spank_job_control_setenv(VM_IMAGE) in the plugin is SPANK_VM_IMAGE in the hooks (spank(8), ENVIRONMENT).
VARIABLES = {word: "SPANK_" + word.upper().replace("-", "_") for word in OPTIONS}
CARRIER = "lrms_vm:"
MAX_REASON = 200
MAX_COMMENT = 1000
MAX_TEXT = 1 << 22

# A word of the comment. The hook file and the plugin split at the same characters.
_CARRIED = re.compile(r"(?:^|[ \t\n,;])lrms_vm:([^ \t\n,;]*)", re.ASCII)
# The other options beside an image there: "lrms_vm-memory:2G". One that is a list of values says each by a word.
_CARRIED_TOO = re.compile(r"(?:^|[ \t\n,;])lrms_(vm-[a-z]+):([^ \t\n,;]*)", re.ASCII)
_LISTS = ("vm-share", "vm-env")
_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)
_GROUP = re.compile(r"Nodes=(\S+) CPU_IDs=(\S*) Mem=([0-9]{1,12}) GRES=\S*", re.ASCII)
_IDENTITY = re.compile(r" UserId=([^()\s]+)\(([0-9]{1,10})\) GroupId=([^()\s]+)\(([0-9]{1,10})\) ", re.ASCII)

# slurm.conf(5), JOB STATE CODES of squeue(1): in these a prolog may still be needed
_ALIVE = ("RUNNING", "CONFIGURING", "PENDING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT")

_DRAIN = Told(1, (Action.TAKE_OUT,))
_TOLD = {
    (PROLOGUE, Outcome.READY): Told(0),
    (PROLOGUE, Outcome.REQUEST): Told(0, (Action.VERDICT,)),
    (PROLOGUE, Outcome.SITE): Told(0, (Action.VERDICT,)),
    (PROLOGUE, Outcome.CONFIG): Told(0, (Action.VERDICT,)),
    (PROLOGUE, Outcome.NODE): Told(1, (Action.TAKE_OUT,)),
    (EPILOGUE, Outcome.READY): Told(0),
    (EPILOGUE, Outcome.LEFTOVERS): Told(1, (Action.TAKE_OUT,)),
    (PROLOGUE, Outcome.SICK): Told(0, (Action.NO_VM, Action.VERDICT, Action.COUNT, Action.SEND_BACK), _DRAIN),
    (EPILOGUE, Outcome.SICK): Told(0, (Action.NO_VM,), _DRAIN),
}


def outcome(hook: str, outcome: Outcome, *, retries: int) -> Told:
    """The table above. A node that requeues a job is out of service, so only one that is not needs our counter."""
    told = _TOLD[hook, outcome]
    if Action.SEND_BACK in told.actions and retries >= MAX_RETRIES:
        return Told(0, (Action.NO_VM, Action.VERDICT), _DRAIN)
    return told


def wants_vm(environ: Mapping[str, str]) -> bool:
    """Whether the job asked for a VM by either carrier."""
    return any(name in environ for name in VARIABLES.values()) or bool(_carried(environ))


def parse_options(environ: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """The option texts by their words and which carrier brought the image; the job control variable wins.

    Hostile text, to be read by `parse_request`. Raises `UsageError` where the job asks for nothing (the hook should
    have left) and for a comment that names two images.
    """
    options = {word: environ[name] for word, name in VARIABLES.items() if name in environ}
    names = _carried(environ)
    if "vm-image" in options or (options and not names):
        return options, "--vm-image"
    if not names:
        raise UsageError("the job asks for no VM", code="image-missing")
    if len(set(names)) > 1:
        raise UsageError(f"job comment: {len(names)} images are named, expected one", code="reference-unreadable")
    return {**_carried_too(environ), **options, "vm-image": names[0]}, "job comment"


def _carried_too(environ: Mapping[str, str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for word, text in _CARRIED_TOO.findall(environ.get("SLURM_JOB_COMMENT", "")):
        before = options.setdefault(word, text)
        if word in _LISTS and text not in before.split(","):
            options[word] = f"{before},{text}"
        elif word not in _LISTS and before != text:
            raise UsageError(f"job comment: two values for --{word[:40]}, expected one", code="option-unreadable")
    return options


def _carried(environ: Mapping[str, str]) -> list[str]:
    return _CARRIED.findall(environ.get("SLURM_JOB_COMMENT", ""))


def identify(environ: Mapping[str, str]) -> Allocation:
    """Which job, user and node slurmd's hook was called for. All of these variables are slurmd's own words.

    cpus is 1 and memory_mib None until `parse_job` says more. Raises `SiteError`.
    """
    return Allocation(
        lrms="slurm",
        job_id=str(_number(environ, "SLURM_JOB_ID")),
        node=_text(environ, "SLURMD_NODENAME"),
        uid=_number(environ, "SLURM_JOB_UID"),
        gid=_number(environ, "SLURM_JOB_GID"),
        user=_text(environ, "SLURM_JOB_USER"),
        work_dir=environ.get("SLURM_JOB_WORK_DIR", ""),  # Slurm 22.05 says it; `parse_job` asks elsewhere
        cpus=1,
        memory_mib=None,
        partition=environ.get("SLURM_JOB_PARTITION", ""),
        restart_count=_number(environ, "SLURM_JOB_RESTART_COUNT") if "SLURM_JOB_RESTART_COUNT" in environ else 0,
    )


def show_job_argv(scontrol: str, job_id: str) -> list[str]:
    """scontrol(1): -d adds what the job has on each node, -o keeps a job on a line."""
    return [scontrol, "-d", "-o", "show", "job", job_id]


def parse_job(text: str, environ: Mapping[str, str]) -> Allocation:
    """The job's allocation on this node from what `show_job_argv` printed.

    Job names, comments, accounts and paths in that text are the user's, unquoted, and may hold newlines and whole
    made-up fields. So a field of which there are two is believed in neither place, and what slurmd's environment
    says is not taken from the text at all but compared with it.

    Raises `RequestError` for a text its user has muddled or a job that has ended, `SiteError` for one we cannot read.
    """
    hook = identify(environ)
    record = _record(text, hook.job_id)
    identity = _between(record, " JobName=", " MCS_label=")
    found = list(_IDENTITY.finditer(identity + " "))
    if len(found) != 1 or record.count(" UserId=") != 1:
        raise _muddled("UserId")
    _, uid, _, gid = found[0].groups()
    if (int(uid), int(gid)) != (hook.uid, hook.gid):
        raise SiteError(
            f"scontrol show job {hook.job_id}: belongs to {uid}:{gid}, but slurmd says {hook.uid}:{hook.gid}",
            code="job-not-ours",
        )
    state = _between(record, " JobState=", " ").partition("+")[0]
    if state not in _ALIVE:
        raise RequestError(f"job {hook.job_id} is {state[:40]!r}: there is nothing to prepare", code="job-ended")
    account = _between(record, " Account=", " QOS=")
    cpus, memory_mib = _here(_between(record, " JOB_GRES=", " MinCPUsNode="), hook)
    return Allocation(
        lrms="slurm",
        job_id=hook.job_id,
        node=hook.node,
        uid=hook.uid,
        gid=hook.gid,
        user=hook.user,
        work_dir=hook.work_dir or _between(record, " WorkDir=", " StdErr="),
        cpus=cpus,
        memory_mib=memory_mib,
        partition=hook.partition,
        account="" if account == "(null)" else account,
        restart_count=hook.restart_count,
    )


def _record(text: str, job_id: str) -> str:
    """The one line of this job; for the first task of an array scontrol prints all its tasks."""
    if len(text) > MAX_TEXT:
        raise SiteError(f"scontrol show job {job_id}: more than {MAX_TEXT} bytes", code="controller-unreadable")
    starts = list(re.finditer(r"^JobId=([0-9]+) ", text, re.ASCII | re.MULTILINE))
    ours = [index for index, start in enumerate(starts) if start[1] == job_id]
    if len(ours) > 1:
        raise _muddled("JobId")
    if not ours:
        raise SiteError(
            f"scontrol show job {job_id}: no such job in the answer: {text[:80]!r}", code="controller-unreadable"
        )
    after = ours[0] + 1
    return text[starts[ours[0]].start() : starts[after].start() if after < len(starts) else len(text)]


def _between(record: str, before: str, after: str) -> str:
    """What stands between a field's name and the next's; each name must be there once."""
    if record.count(before) > 1:
        raise _muddled(before.strip(" ="))
    _, there, rest = record.partition(before)
    value, ended, _ = rest.partition(after)
    if not there or not ended:
        raise SiteError(
            f"scontrol show job: there is no{before}... up to{after.rstrip()} in the answer",
            hint="does `scontrol -d -o show job` of this Slurm look different?",
            code="controller-unreadable",
        )
    return value


def _muddled(field: str) -> RequestError:
    return RequestError(
        f"the job's name, comment, account or path looks like Slurm's own field {field}=, so that the job's "
        "allocation cannot be read",
        hint="choose plain words for them",
        code="job-text-muddled",
    )


def _here(section: str, hook: Allocation) -> tuple[int, int | None]:
    """Number of cpus and MiB on this node: "Nodes=n[1-2] CPU_IDs=0-1 Mem=600 GRES=", one group after the other."""
    mine = [group for group in _GROUP.finditer(section) if hostlist_has(group[1], hook.node)]
    if len(mine) != 1:
        raise SiteError(
            f"scontrol show job {hook.job_id}: expected one group of nodes with {hook.node}, "
            f"found {len(mine)} in {section[:200]!r}",
            code="controller-unreadable",
        )
    cpus = range_size(mine[0][2])
    if cpus is None:
        raise SiteError(
            f"scontrol show job {hook.job_id}: CPU_IDs={mine[0][2][:80]!r} is no list of cpus",
            code="controller-unreadable",
        )
    return cpus, int(mine[0][3]) or None  # Mem=0: memory is not counted (slurm.conf(5), SelectTypeParameters)


def drain_argv(scontrol: str, node: str, reason: str) -> list[str]:
    """scontrol(1) update: the reason is one line that says it is ours."""
    words = " ".join("".join(char if char.isprintable() else " " for char in reason).split())
    return [scontrol, "update", f"nodename={node}", "state=drain", f"reason=lrms_vm: {words[:MAX_REASON]}"]


def requeue_argv(scontrol: str, job_id: str) -> list[str]:
    """scontrol(1): only of batch jobs, unless they said --no-requeue."""
    return [scontrol, "requeue", job_id]


def running_argv(scontrol: str, job_id: str) -> list[str]:
    """squeue(1): the job's id, if it runs: one that ends, or has ended, would be requeued as well."""
    return [f"{scontrol.rpartition('/')[0]}/squeue", "-h", "-j", job_id, "-t", "R", "-o", "%A"]


@dataclass(frozen=True)
class Node:
    """What the controller knows of a node and a VM job may ask for."""

    name: str
    available: tuple[str, ...]  # features
    active: tuple[str, ...]
    guests: int | None  # gres/vm; None: guests are not counted
    cpus: int
    memory_mib: int
    state: str
    comment: str


def show_node_argv(scontrol: str, node: str) -> list[str]:
    return [scontrol, "-o", "show", "node", node]


def parse_node(text: str, node: str) -> Node:
    """From `show_node_argv`; what stands there is the administrators' own. Raises `SiteError`."""

    def field(name: str) -> str:
        found = re.search(rf"(?:^| ){name}=(\S*)", text, re.ASCII)
        if found is None:
            raise SiteError(f"scontrol show node {node}: no {name}= in {text[:80]!r}", code="controller-unreadable")
        return "" if found[1] == "(null)" else found[1]

    if field("NodeName") != node:
        raise SiteError(f"scontrol show node {node}: says {text[:80]!r}", code="controller-unreadable")
    gres = re.search(r"(?:^|,)vm(?::[a-z_]+)?:([0-9]{1,6})(?=[,(]|$)", field("Gres"), re.ASCII)
    comment = re.search(r" Comment=(.*?)(?= [A-Z][A-Za-z]*=|$)", text.replace("\n", " "), re.ASCII)
    return Node(
        name=node,
        available=tuple(filter(None, field("AvailableFeatures").split(","))),
        active=tuple(filter(None, field("ActiveFeatures").split(","))),
        guests=int(gres[1]) if gres else None,
        cpus=int(field("CPUTot")),
        memory_mib=int(field("RealMemory")),
        state=field("State"),
        comment=comment[1].strip() if comment else "",
    )


def vm_features(hypervisor: str) -> tuple[str, str]:
    """What a node that can run VMs is called: any, and by which hypervisor."""
    return "vm", f"vm_{hypervisor}"


def without_vm(node: Node, hypervisor: str) -> tuple[str, ...] | None:
    """The active features of a node whose hypervisor is sick; None: it has none of ours to lose."""
    ours = vm_features(hypervisor)
    if not set(ours) & set(node.available):
        return None
    return tuple(word for word in node.active if word not in ours)


def with_vm(node: Node, hypervisor: str) -> tuple[str, ...]:
    """The active features of a healthy node: ours as far as the administrators gave them to it."""
    ours = [word for word in vm_features(hypervisor) if word in node.available]
    return (*node.active, *(word for word in ours if word not in node.active))


def features_argv(scontrol: str, node: Node, active: tuple[str, ...], why: str) -> list[str]:
    """scontrol(1) update. Not remembered by a restarted slurmctld: the health check says it again. `why` goes where
    the administrators look, unless a comment of their own stands there; "" takes ours away."""
    argv = [scontrol, "update", f"nodename={node.name}", f"activefeatures={','.join(active)}"]
    words = " ".join("".join(char if char.isprintable() else " " for char in why).split())
    if not node.comment or node.comment.startswith("lrms_vm: "):
        argv.append(f"comment=lrms_vm: no VMs: {words[:MAX_REASON]}" if words else "comment=")
    return argv


def comment_argv(scontrol: str, job_id: str, text: str) -> list[str]:
    """scontrol(1) update: only operators and root may set a job's AdminComment, which accounting keeps."""
    words = "".join(char if char.isprintable() else " " for char in text)
    return [scontrol, "update", f"jobid={job_id}", f"admincomment={words[:MAX_COMMENT]}"]


def is_first_node(environ: Mapping[str, str]) -> bool:
    """Whether this is the node that speaks for the job: the first of its list. False where Slurm does not say."""
    return first_host(environ.get("SLURM_NODELIST", "")) == environ.get("SLURMD_NODENAME", "?")


def active_jobs_argv(scontrol: str, node: str) -> list[str]:
    """squeue(1), which stands beside scontrol: %A is each array task's own job id."""
    return [f"{scontrol.rpartition('/')[0]}/squeue", "-h", "-w", node, "-t", "R,S,ST,CF,CG,SI,SO,RS", "-o", "%A"]


def parse_active_jobs(text: str) -> set[str]:
    """The ids of the jobs that are on the node. Raises `SiteError`: a job overlooked here would lose its guest."""
    words = text.split()
    if wrong := [word for word in words if _NUMBER.fullmatch(word) is None]:
        raise SiteError(f"squeue: expected job ids, got {wrong[0][:40]!r}", code="controller-unreadable")
    return set(words)


def _text(environ: Mapping[str, str], name: str) -> str:
    try:
        return environ[name]
    except KeyError as error:
        raise SiteError(
            f"{name} is not in the environment",
            hint="this verb is for the hooks that `lrms-vm install --lrms=slurm` puts in place",
            code="hook-environment",
        ) from error


def _number(environ: Mapping[str, str], name: str) -> int:
    text = _text(environ, name)
    if _NUMBER.fullmatch(text) is None:
        raise SiteError(f"{name}: {text[:40]!r} is not a number", code="hook-environment")
    return int(text)
