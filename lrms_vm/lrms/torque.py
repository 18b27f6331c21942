"""Torque's hooks and texts: arguments, environment and files in, options, allocation and argument lists out.

What the hooks tell pbs_mom (administrator's guide, appendix G; measured on 6.1.3, docs/torque.md):

    outcome                  prologue                                       epilogue  prologue.parallel (always 0)
    ready, or nothing asked  0                                              0
    the request's fault      the reason on the job, then 1: aborted                   refused verdict: a task prints it
    the site's fault         2: started again, at most three times; then the           the same
                             job is held
    the site's settings      the job is held, then 2                                  the same
    the node's fault         node offline with our note, then 2 at most three          refused verdict, node offline
                             times; then held
    leftovers                                                               node offline with our note, then 0

Held: `qhold -h s` with the reason on the job, then 2; where that cannot be done 1, since 2 alone would start the job
sixteen times in four seconds. An epilogue's code is ignored. A sister that says anything but 0 is put down.

The hooks' arguments are pbs_mom's own; in them the job's name, resources and account are the user's. Its environment
is clean and holds nothing of the job's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lrms_vm.errors import RequestError, SiteError, UsageError
from lrms_vm.lrms import pbs_text
from lrms_vm.lrms.base import EPILOGUE, MAX_RETRIES, PROLOGUE, Action, Call, Outcome, Told
from lrms_vm.lrms.command import MAX_LINE_BYTES, Command
from lrms_vm.lrms.pbs_text import JobId
from lrms_vm.request import Allocation

NAME = "torque"
# The `files` of a Call
COMMANDS, HOST, QSTAT, JOB_FILE, NODE_FILE = "commands", "host", "qstat", "job file", "node file"
CARRIER = "vm:"  # -l other=vm:NAME
PROLOGUE_WORDS, EPILOGUE_WORDS = 8, 11
MAX_NOTE, MAX_COMMENT = 200, 500
DEFAULT_ALARM_S = 300.0  # $prologalarm

# Of a mom whose job is not on this node any more; elsewhere it may be queued or running
_ENDED = ("C", "F", "X")
_WAITING = ("Q", "H", "W")
_MORE_THAN_WORDS = re.compile(r"[;&|<>()\n`]|\$\(")  # a shell would go on after the script
_BOURNE = ("sh", "bash", "dash", "ksh", "zsh", "mksh", "ash")

_HELD = Told(2, (Action.EXPLAIN, Action.HOLD), otherwise=1)
_TOLD = {
    (PROLOGUE, Outcome.READY): Told(0),
    (PROLOGUE, Outcome.REQUEST): Told(1, (Action.EXPLAIN,)),
    (PROLOGUE, Outcome.SITE): Told(2, (Action.COUNT,), otherwise=_HELD),
    (PROLOGUE, Outcome.CONFIG): _HELD,
    (PROLOGUE, Outcome.NODE): Told(2, (Action.TAKE_OUT, Action.COUNT), otherwise=_HELD),
    (EPILOGUE, Outcome.READY): Told(0),
    (EPILOGUE, Outcome.LEFTOVERS): Told(0, (Action.TAKE_OUT,)),
}
_TIRED = {
    Outcome.SITE: _HELD,
    Outcome.NODE: Told(2, (Action.TAKE_OUT, Action.EXPLAIN, Action.HOLD), otherwise=_HELD),
}
_SISTER = {
    Outcome.READY: Told(0),
    Outcome.REQUEST: Told(0, (Action.VERDICT,)),
    Outcome.SITE: Told(0, (Action.VERDICT,)),
    Outcome.CONFIG: Told(0, (Action.VERDICT,)),
    Outcome.NODE: Told(0, (Action.VERDICT, Action.TAKE_OUT)),
}


def outcome(hook: str, outcome: Outcome, *, retries: int, sister: bool = False) -> Told:
    """The table above."""
    if sister and hook == PROLOGUE:
        return _SISTER[outcome]
    if hook == PROLOGUE and retries >= MAX_RETRIES and outcome in _TIRED:
        return _TIRED[outcome]
    return _TOLD[hook, outcome]


def job_id(call: Call) -> JobId:
    """Raises `SiteError` when this is no hook's call."""
    if len(call.argv) not in (PROLOGUE_WORDS, EPILOGUE_WORDS):
        raise SiteError(
            f"{len(call.argv)} arguments, expected a prologue's {PROLOGUE_WORDS} or an epilogue's {EPILOGUE_WORDS}",
            hint="this verb is for the hooks that `lrms-vm install --lrms=torque` puts in place",
            code="hook-environment",
        )
    return pbs_text.parse_job_id(call.argv[0])


def owner(call: Call) -> str:
    """The job's user. Raises `SiteError`."""
    job_id(call)
    name = call.argv[1]
    if not name or not name.isprintable() or "/" in name or name == "root":
        raise SiteError(f"euser: {name[:40]!r} is no user a job may belong to", code="hook-environment")
    return name


def resources(call: Call) -> dict[str, str]:
    """Resource_List as pbs_mom hands it on. Raises `RequestError`."""
    job_id(call)
    return pbs_text.parse_resources(call.argv[4 if len(call.argv) == PROLOGUE_WORDS else 5])


def wants_by_resource(call: Call) -> bool:
    """Whether the first carrier is there: then nobody else needs to be asked. Raises as `resources`."""
    return resources(call).get("other", "").startswith(CARRIER)


def parse_options(call: Call) -> tuple[dict[str, str], str]:
    """The option texts by their words, and the carrier of the image: the first that is there, in the order

        -l other=vm:NAME        arguments
        VM_IMAGE                `qstat -f -1`, else the job file; the other options are always there

    Hostile, unread. Raises `UsageError` where there is none, `SiteError` where nobody could be asked.
    """
    known = _known(call)
    options = pbs_text.vm_variables(pbs_text.parse_variables((known or {}).get("Variable_List", "")))
    if wants_by_resource(call):
        return {**options, "vm-image": resources(call)["other"].removeprefix(CARRIER)}, "-l other=vm:"
    if "vm-image" in options:
        return options, "VM_IMAGE"
    if known is None:
        raise SiteError(
            "neither qstat nor the job's file says which variables the job has",
            hint="is pbs_server up, and trqauthd on this node?",
            code="controller-down",
        )
    raise UsageError("the job asks for no VM", code="image-missing")


def identify(call: Call, *, uid: int, gid: int) -> Allocation:
    """Which job, and what it has on this node. `uid` and `gid` are those of `owner(call)`.

    Raises `RequestError` for texts its user has muddled, `SiteError`.
    """
    host = call.files.get(HOST, b"").decode("ascii", "replace")
    is_prologue = len(call.argv) == PROLOGUE_WORDS  # an epilogue must not stumble over the user's texts
    cpus = _cpus(call, _known(call) or {}, host) if is_prologue else (1, 1)
    return Allocation(
        lrms=NAME,
        job_id=job_id(call).name,
        node=node_name(host),
        uid=uid,
        gid=gid,
        user=owner(call),
        work_dir=call.environ.get("PBS_O_WORKDIR", ""),
        cpus=cpus[0],
        memory_mib=pbs_text.memory_mib(resources(call), cpus) if is_prologue else None,
        partition=call.argv[-3 if is_prologue else -4],
    )  # no account: Torque takes any text that the user gives to `qsub -A`


def node_name(host: str) -> str:
    """Short: it goes into the paths of sockets, which hold 107 bytes."""
    return host.partition(".")[0]


def _known(call: Call) -> dict[str, str] | None:
    """The job's fields from qstat, else from its file; None where neither is there."""
    whole = call.argv[0]
    if QSTAT in call.files:
        jobs = pbs_text.parse_qstat(call.files[QSTAT].decode("utf-8", "replace"))
        if whole in jobs:
            return jobs[whole]
    if JOB_FILE in call.files:
        fields = pbs_text.parse_job_file(call.files[JOB_FILE])
        if fields.get("jobid") != whole:
            raise SiteError(f"job file: of {fields.get('jobid', '')[:80]!r}", code="job-file-unreadable")
        return fields
    return None


def _cpus(call: Call, known: Mapping[str, str], host: str) -> tuple[int, int]:
    """On this node and in all: as the server counted them, as pbs_mom did, as they were asked for; else one."""
    return (
        pbs_text.slots_on(known.get("exec_host", ""), host)
        or pbs_text.lines_on(call.files.get(NODE_FILE, b"").decode("ascii", "replace"), host)
        or pbs_text.ppn(resources(call).get("nodes", ""))
        or (1, 1)
    )


# -- pbs_mom's own configuration


def mom_setting(text: str, name: str) -> str | None:
    """The last of a directive in mom_priv/config, as pbs_mom reads it ("$job_starter PATH")."""
    found = None
    for line in text.splitlines():
        words = line.split(None, 1)
        if len(words) == 2 and words[0].lower() == f"${name}":
            found = words[1].strip()
    return found


def prologue_limit_s(mom_config: str) -> float:
    """How long a prologue may run: pbs_mom kills it ten seconds before its $prologalarm (measured)."""
    text = mom_setting(mom_config, "prologalarm") or ""
    alarm_s = float(text) if text.isdecimal() and len(text) < 7 else DEFAULT_ALARM_S
    return alarm_s - 10 if alarm_s > 10 else alarm_s


# -- what is asked and told


def qstat_argv(directory: str, job: str) -> list[str]:
    """qstat(1B): everything of a job, one line a field."""
    return [f"{directory}/qstat", "-f", "-1", job]


def active_argv(directory: str) -> list[str]:
    return [f"{directory}/qstat", "-f", "-1", "-t"]


def parse_active(text: str) -> set[str]:
    """The names of the jobs that may have something on a node: all but those that ended, or wait without a host.

    Raises `SiteError`: a job overlooked here would lose its guest.
    """
    try:
        jobs = pbs_text.parse_qstat(text)
    except RequestError as error:
        raise SiteError(f"qstat: {error.message}", code="controller-unreadable") from error
    names = set()
    for whole, fields in jobs.items():
        state = fields.get("job_state", "")
        if state in _ENDED or (state in _WAITING and "exec_host" not in fields):
            continue
        if "[]" not in whole:
            names.add(pbs_text.parse_job_id(whole).name)
    return names


def offline_argv(directory: str, host: str, why: str) -> list[str]:
    """pbsnodes(8B): no new jobs, with a note that says why and that it is ours."""
    return [f"{directory}/pbsnodes", "-o", "-N", f"lrms_vm: {pbs_text.plain(why, MAX_NOTE)}", host]


def hold_argv(directory: str, job: str) -> list[str]:
    """qhold(1B): a system hold, which only an administrator releases."""
    return [f"{directory}/qhold", "-h", "s", job]


def comment_argv(directory: str, job: str, why: str) -> list[str]:
    """qalter(1B)."""
    return [f"{directory}/qalter", "-W", f"comment=lrms_vm: {pbs_text.plain(why, MAX_COMMENT)}", job]


def health_report(wrong: str | None) -> str:
    """$node_check_script: a line that begins with ERROR puts the node down with it, silence brings it back."""
    return f"ERROR lrms_vm: {pbs_text.plain(wrong, MAX_NOTE)}\n" if wrong else ""


# -- the way into the guest


def command(argv: Sequence[str], environ: Mapping[str, str], line: bytes | None) -> Command:
    """What the payload is, from the job starter's arguments and, for a batch script, the line on its stdin.

    A task (pbsdsh), a shell (qsub -I) or a command (qsub -I -x) is its own words. A batch script comes as its path and
    the text of `qsub -F`, in one line for the user's shell, which expands and splits it: so does the guest's. It makes
    room for the script: a shell that stayed would be what a deleted job's TERM ends, and the script's own end cut off.
    Raises `UsageError` where there is nothing to start.
    """
    if not argv:
        raise UsageError("the job starter was given nothing to start", code="command-missing")
    if line is None:
        if len(argv) == 2 and is_first(environ) and _is_script(argv[1], environ):  # built with --enable-shell-use-argv
            return Command(tuple(argv), script_at=1)
        return Command(tuple(argv))
    shell = argv[0]
    if b"\0" in line or len(line) > MAX_LINE_BYTES:
        raise UsageError("the job's script and arguments hold a NUL byte or are too long", code="argument-unusable")
    text = line.decode("utf-8", "surrogateescape").removesuffix("\n").removeprefix("exec ")
    script, _, rest = text.partition(" ")
    if not script.startswith("/"):
        raise UsageError(f"expected the job's script on stdin, got {script[:80]!r}", code="command-missing")
    if not rest.strip():
        return Command((shell, "-c", 'exec "$0"', script), script_at=3) if _is_bourne(shell) else Command((script,), 0)
    if _is_bourne(shell):
        start = '"$0"' if _MORE_THAN_WORDS.search(rest) else 'exec "$0"'
        return Command((shell, "-c", f"{start} {rest}", script), script_at=3)
    return Command((script, *_words(rest)), script_at=0)


def is_first(environ: Mapping[str, str]) -> bool:
    """Whether it is the job's script or shell, not a task that may have been asked for from inside a guest: what such a
    one names as its script may be a link to any file of the user's on the host. PBS_TASKNUM is pbs_mom's."""
    return environ.get("PBS_TASKNUM", "1") == "1"


def _is_script(path: str, environ: Mapping[str, str]) -> bool:
    try:
        prefix = pbs_text.parse_job_id(environ.get("PBS_JOBID", "")).file_prefix
    except SiteError:
        return False
    return path.startswith("/") and path.endswith(f"/mom_priv/jobs/{prefix}.SC")


def _is_bourne(shell: str) -> bool:
    return shell.rpartition("/")[2] in _BOURNE


def _words(text: str) -> list[str]:
    """For a shell whose -c takes no $0 (csh): quotes are read, nothing is expanded."""
    import shlex

    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"qsub -F: {text[:80]!r}: {error}", code="argument-unusable") from error
