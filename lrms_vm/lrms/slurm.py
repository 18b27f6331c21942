"""Slurm as the hooks meet it: its variables, its texts, its commands. Values in, values out.

The hook's environment is slurmd's own (Prolog and Epilog Guide, "Environment Variables"); only the values of options,
comment and working directory in it were chosen by the user. Measured on Slurm 22.05.8.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from lrms_vm.errors import NodeError, RequestError, SiteError, UsageError
from lrms_vm.request import OPTIONS, Allocation

LRMS = "slurm"
# spank_job_control_setenv(VM_IMAGE) arrives as SPANK_VM_IMAGE (spank(8)).
CARRIED = {word: "SPANK_" + word.upper().replace("-", "_") for word in OPTIONS}
# What a login node without the plugin, DRMAA and REST can send: sbatch --comment=lrms_vm:NAME
COMMENT_WORD = re.compile(r"(?:^|[\s,;])lrms_vm:([^\s,;]+)")
MAX_REASON = 200

# scontrol(1) "show job" with -d, one line. JobName, Command, WorkDir and Comment in it are the user's own text and may
# imitate the rest; each of these words stands in an honest line exactly once, and what we read stands between two.
_ANCHORS = (" UserId=", " JOB_GRES=", " MinCPUsNode=")
_JOB_ID = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)
_SHARE = re.compile(r"\bNodes=(\S+) CPU_IDs=(\S+) Mem=([0-9]+) GRES=", re.ASCII)
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", re.ASCII)
_HOST = re.compile(r"([A-Za-z0-9._-]*)(?:\[([0-9,-]+)\])?([A-Za-z0-9._-]*)", re.ASCII)
MAX_RANGE = 100_000


def identify(environ: Mapping[str, str]) -> Allocation:
    """Who the hook was called for, from slurmd's environment alone: no resources yet. Raises `SiteError`."""
    try:
        job_id = environ["SLURM_JOB_ID"]
        uid, gid = int(environ["SLURM_JOB_UID"]), int(environ.get("SLURM_JOB_GID", environ["SLURM_JOB_UID"]))
        node = environ["SLURMD_NODENAME"]
    except (KeyError, ValueError) as error:
        raise SiteError(
            f"not called by slurmd: {error} in the environment",
            hint="this verb is for the hooks that `lrms-vm install --lrms=slurm` puts in place",
            code="hook-environment",
        ) from error
    if _JOB_ID.fullmatch(job_id) is None or uid < 0 or gid < 0:
        raise SiteError(f"SLURM_JOB_ID {job_id[:40]!r}: not a job id", code="hook-environment")
    return Allocation(
        lrms=LRMS,
        job_id=job_id,
        node=node,
        uid=uid,
        gid=gid,
        user=environ.get("SLURM_JOB_USER", str(uid)),
        work_dir=environ.get("SLURM_JOB_WORK_DIR", "/"),
        cpus=1,
        memory_mib=None,
        partition=environ.get("SLURM_JOB_PARTITION", ""),
        restart_count=_count(environ.get("SLURM_JOB_RESTART_COUNT", "0")),
    )


def wants_vm(environ: Mapping[str, str]) -> bool:
    """Whether the job asks for a VM by any carrier."""
    return any(name in environ for name in CARRIED.values()) or bool(_comment_word(environ))


def parse_options(environ: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """The option texts by their words, and what carried them. The first carrier that is there wins; hostile text.

    Raises `UsageError` where the job asks for nothing: the hook should have left.
    """
    carried = {word: environ[name] for word, name in CARRIED.items() if name in environ}
    if "vm-image" in carried or (carried and not _comment_word(environ)):
        return carried, "--vm-image"
    if word := _comment_word(environ):
        return {**carried, "vm-image": word}, "job comment"
    raise UsageError("the job asks for no VM", code="image-missing")


def parse_job(text: str, environ: Mapping[str, str]) -> Allocation:
    """The allocation on this node: slurmd's environment, and cpus and memory from `scontrol -d -o show job`.

    Raises `RequestError` when the user's own text in the line imitates it, `SiteError` for one we cannot read,
    `NodeError` when the job is not on this node.
    """
    hook = identify(environ)
    line = text.strip()
    if not line.startswith(f"JobId={hook.job_id} "):
        raise SiteError(f"scontrol show job {hook.job_id}: unexpected answer {line[:80]!r}", code="controller-answer")
    for anchor in _ANCHORS:
        if line.count(anchor) > 1:
            raise RequestError(
                f"the job's name, paths or comment imitate scontrol's output ({anchor.strip()!r} stands there twice)",
                hint="choose another job name, comment or path",
                code="job-text-ambiguous",
            )
        if anchor not in line:
            raise SiteError(f"scontrol show job {hook.job_id}: no {anchor.strip()!r} in it", code="controller-answer")
    owner = re.match(r"\S*\(([0-9]+)\) ", line.partition(_ANCHORS[0])[2])
    if owner is None or int(owner[1]) != hook.uid:
        raise SiteError(f"scontrol and slurmd disagree whose job {hook.job_id} is", code="controller-answer")
    shares = _SHARE.findall(line.partition(_ANCHORS[1])[2].partition(_ANCHORS[2])[0])
    for nodes, cpu_ids, memory_mib in shares:
        if hook.node in expand_hosts(nodes):
            values = {**vars(hook), "cpus": _cpus(cpu_ids), "memory_mib": int(memory_mib) or None}
            return Allocation(**values)
    raise NodeError(f"job {hook.job_id} has nothing allocated on {hook.node}", code="not-allocated")


def expand_hosts(text: str) -> set[str]:
    """The names of a hostlist such as `n[1-3,05],login` (scontrol(1) "hostlist"). Raises `SiteError`."""
    names: set[str] = set()
    for part in re.findall(r"[^,\[]+(?:\[[^\]]*\])?[^,\[]*", text):
        match = _HOST.fullmatch(part)
        if match is None:
            raise SiteError(f"hostlist {text[:80]!r}: cannot read {part[:40]!r}", code="controller-answer")
        prefix, ranges, suffix = match.groups()
        if ranges is None:
            names.add(prefix + suffix)
            continue
        for piece in ranges.split(","):
            low, high, width = _bounds(piece, text)
            names |= {f"{prefix}{number:0{width}}{suffix}" for number in range(low, high + 1)}
    return names


def show_job_argv(scontrol: str, job_id: str) -> list[str]:
    return [scontrol, "-d", "-o", "show", "job", job_id]


def drain_argv(scontrol: str, node: str, reason: str) -> list[str]:
    """scontrol(1) "update NodeName". The reason is one line, and ours."""
    line = "".join(letter if letter.isprintable() else "?" for letter in f"lrms_vm: {reason}")
    return [scontrol, "update", f"nodename={node}", "state=drain", f"reason={line[:MAX_REASON]}"]


def active_jobs_argv(scontrol: str, node: str) -> list[str]:
    """squeue(1) beside scontrol: jobs that may still have something on the node."""
    squeue = scontrol.rpartition("/")[0] + "/squeue"
    return [
        squeue,
        "-h",
        "-w",
        node,
        "-t",
        "CONFIGURING,RUNNING,COMPLETING,STOPPED,SUSPENDED,SIGNALING,STAGE_OUT",
        "-o",
        "%A",
    ]


def parse_active_jobs(text: str) -> set[str]:
    """Job ids, one a line. Raises `SiteError` for anything else: nobody's guest is reaped on a misread list."""
    job_ids = set(text.split())
    for job_id in job_ids:
        if _JOB_ID.fullmatch(job_id) is None:
            raise SiteError(f"squeue: unexpected answer {job_id[:80]!r}", code="controller-answer")
    return job_ids


def _comment_word(environ: Mapping[str, str]) -> str:
    match = COMMENT_WORD.search(environ.get("SLURM_JOB_COMMENT", ""))
    return match[1] if match else ""


def _cpus(ids: str) -> int:
    total = 0
    for piece in ids.split(","):
        low, high, _ = _bounds(piece, ids)
        total += high - low + 1
    return total


def _bounds(piece: str, text: str) -> tuple[int, int, int]:
    match = _RANGE.fullmatch(piece)
    if match is None:
        raise SiteError(f"cannot read {text[:80]!r} as a list of numbers", code="controller-answer")
    low, high = int(match[1]), int(match[2] or match[1])
    if not low <= high < low + MAX_RANGE:
        raise SiteError(f"cannot read {text[:80]!r} as a list of numbers", code="controller-answer")
    return low, high, len(match[1])


def _count(text: str) -> int:
    return int(text) if re.fullmatch("[0-9]{1,9}", text, re.ASCII) else 0
