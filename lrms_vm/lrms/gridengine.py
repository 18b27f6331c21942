"""Grid Engine's hooks and files: arguments and the job's spool files in, options, allocation and argument lists out.

What the hook tells sge_shepherd (queue_conf(5) prolog, epilog; sge_diagnostics(1) exit codes; measured on 8.1.9,
docs/gridengine.md):

    outcome                  prolog                                                epilog
    ready, or nothing asked  0                                                     0
    the request's fault      100: the job waits in state Eqw; our text is in its stderr
    the site's fault         99: tried again, at most three times; then 100
    the site's settings      100
    the node's fault         its queues disabled, then 99 at most three times; then 100. Where they cannot be
                             disabled: 1, for which Grid Engine itself puts the queue out of service
    leftovers                                                                      its queues disabled, then 0

An epilog that ends with anything but 0 would run a finished job again.

`config` in the job's spool directory is key=value lines among which arguments and paths of the user stand unquoted: a
newline in an argument makes a line of its own. sge_shepherd believes the last of two, in its pseudo variables too
($job_owner), so we take from neither what stands there twice, and the job's number from the directory's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lrms_vm.errors import RequestError, SiteError, UsageError
from lrms_vm.lrms.base import EPILOGUE, MAX_RETRIES, PROLOGUE, Action, Call, Outcome, Told
from lrms_vm.lrms.command import Command
from lrms_vm.request import OPTIONS, Allocation

NAME = "gridengine"
VARIABLES = {word: word.upper().replace("-", "_") for word in OPTIONS}  # in the job's environment: qsub -v VM_IMAGE=...
CONFIG, ENVIRONMENT, DIRECTORY = "config", "environment", "directory"  # the `files` of a Call
INTERACTIVE = ("QRSH", "QLOGIN", "QRLOGIN", "INTERACTIVE")  # script_file of jobs that no starter_method leads anywhere

_DIRECTORY = re.compile(rb"([1-9][0-9]{0,9})\.([1-9][0-9]{0,9})")
_OWNER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}\$?", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)
_MEMORY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([KkMmGg]?)", re.ASCII)  # sge_types(1), memory_specifier
_BYTES_PER = {"": 1, "k": 10**3, "K": 1 << 10, "m": 10**6, "M": 1 << 20, "g": 10**9, "G": 1 << 30}

_TOLD = {
    (PROLOGUE, Outcome.READY): Told(0),
    (PROLOGUE, Outcome.REQUEST): Told(100),
    (PROLOGUE, Outcome.SITE): Told(99, (Action.COUNT,), otherwise=100),
    (PROLOGUE, Outcome.CONFIG): Told(100),
    (PROLOGUE, Outcome.NODE): Told(99, (Action.TAKE_OUT, Action.COUNT), otherwise=1),
    (EPILOGUE, Outcome.READY): Told(0),
    (EPILOGUE, Outcome.LEFTOVERS): Told(0, (Action.TAKE_OUT,)),
}
_TIRED = {Outcome.SITE: Told(100), Outcome.NODE: Told(100, (Action.TAKE_OUT,))}


def outcome(hook: str, outcome: Outcome, *, retries: int) -> Told:
    """The table above."""
    if hook == PROLOGUE and retries >= MAX_RETRIES and outcome in _TIRED:
        return _TIRED[outcome]
    return _TOLD[hook, outcome]


def parse_options(call: Call) -> tuple[dict[str, str], str]:
    """The option texts by their words, from the job's environment as sge_execd spooled it. Hostile, unread.

    Only VM_IMAGE asks for a VM: `qsub -V` brings along whatever else is called VM_... Raises `UsageError`.
    """
    environment = parse_environment(call.files.get(ENVIRONMENT, b""))
    options = {word: environment[name] for word, name in VARIABLES.items() if name in environment}
    if "vm-image" not in options:
        raise UsageError("VM_IMAGE is not in the job's environment", code="image-missing")
    return options, "VM_IMAGE"


def parse_environment(text: bytes) -> dict[str, str]:
    """NAME=VALUE lines; a newline in a value is "\\n" there. Raises `UsageError` for one of ours that comes twice."""
    found: dict[str, str] = {}
    for line in text.split(b"\n"):
        name, equals, value = line.decode("utf-8", "surrogateescape").partition("=")
        if equals and name in found and name in VARIABLES.values():
            raise UsageError(f"{name} is in the job's environment twice", code="option-unreadable")
        if equals:
            found[name] = value
    return found


def identify(call: Call, *, uid: int, gid: int) -> Allocation:
    """Which job, and what it has on this host. `uid` and `gid` are those of `owner(call)`.

    Raises `RequestError` for a job whose arguments look like settings, `SiteError` for files we cannot read.
    """
    settings = _Settings(call.files.get(CONFIG, b""))
    number, task = _job(call)
    said = settings.number("job_id"), settings.number("ja_task_id")
    if said not in ((number, task), (number, 0)) or (said[1] == 0 and task != 1):
        raise SiteError(f"the job of {number}.{task} calls itself {said[0]}.{said[1]}", code="hook-environment")
    slots = settings.number("host_slots")
    return Allocation(
        lrms=NAME,
        job_id=f"{number}-{task}" if said[1] else str(number),  # Allocation.key: a job id has no dot
        node=settings.text("host"),
        uid=uid,
        gid=gid,
        user=owner(call),
        work_dir=settings.text("cwd"),
        cpus=max(slots, 1),
        memory_mib=_memory_mib(settings, max(slots, 1)),
        partition=settings.text("queue"),
    )


def owner(call: Call) -> str:
    """The user's name. Raises as `identify`."""
    name = _Settings(call.files.get(CONFIG, b"")).text("job_owner")
    if _OWNER.fullmatch(name) is None or name == "root":
        raise SiteError(f"job_owner: {name[:40]!r} is no user a job may belong to", code="hook-environment")
    return name


def refuse_interactive(call: Call) -> None:
    """qrsh and qlogin start their shell past the starter_method: it would run on the host. Raises `RequestError`."""
    if _Settings(call.files.get(CONFIG, b"")).text("script_file") in INTERACTIVE:
        raise RequestError(
            "VM_IMAGE: an interactive job cannot run in a VM under Grid Engine",
            hint="use qsub, or `lrms-vm run` inside an ordinary interactive job",
            code="interactive-unsupported",
        )


def starter_method(call: Call) -> str:
    """What will be run in the payload's place: a path, or "NONE". Raises as `identify`."""
    return _Settings(call.files.get(CONFIG, b"")).text("starter_method")


def command(argv: Sequence[str], environ: Mapping[str, str]) -> Command:
    """What the payload is, from the starter_method's arguments and environment: as sge_shepherd would have started it.

    argv[0] is the spooled script or, for `qsub -b y`, the command. A login shell's start files stay on the host.
    """
    if not argv:
        raise UsageError("the starter_method was given nothing to start", code="command-missing")
    shell = environ.get("SGE_STARTER_SHELL_PATH") or "/bin/sh"
    spool = environ.get("SGE_JOB_SPOOL_DIR", "").rpartition("/active_jobs/")[0]
    if spool and argv[0] == f"{spool}/job_scripts/{environ.get('JOB_ID', '')}":
        if environ.get("SGE_STARTER_SHELL_START_MODE") == "unix_behavior":
            return Command(tuple(argv), script_at=0)
        return Command((shell, *argv), script_at=1)
    return Command(tuple(argv))


def disable_argv(qmod: str, node: str) -> list[str]:
    """qmod(1): every queue of the host takes no more jobs; those that run go on."""
    return [qmod, "-d", f"*@{node}"]


def load_report(node: str, *, capable: bool) -> str:
    """What a load sensor says at each of sge_execd's questions (sge_execd(8), LOAD SENSOR)."""
    return f"begin\n{node}:vm_capable:{int(capable)}\nend\n"


class _Settings:
    """`config`: the last of two would be believed by sge_shepherd; we believe neither."""

    def __init__(self, text: bytes) -> None:
        self._values: dict[str, list[str]] = {}
        for line in text.decode("utf-8", "surrogateescape").split("\n"):
            key, equals, value = line.partition("=")
            if equals:
                self._values.setdefault(key, []).append(value)

    def text(self, key: str) -> str:
        found = self._values.get(key, [])
        if len(found) > 1:
            raise RequestError(
                f"an argument or a path of the job holds a line that looks like Grid Engine's own setting {key}=",
                hint="no newlines in arguments and paths, please",
                code="job-text-muddled",
            )
        if not found:
            raise SiteError(
                f"there is no {key}= in the job's spooled config",
                hint="this verb is for the hooks that `lrms-vm install --lrms=gridengine` puts in place",
                code="hook-environment",
            )
        return found[0]

    def number(self, key: str) -> int:
        text = self.text(key)
        if _NUMBER.fullmatch(text) is None:
            raise SiteError(f"{key}: {text[:40]!r} is not a number", code="hook-environment")
        return int(text)


def _job(call: Call) -> tuple[int, int]:
    """Number and task from the name of the job's spool directory, which sge_execd chose."""
    name = call.files.get(DIRECTORY, b"")
    found = _DIRECTORY.fullmatch(name)
    if found is None:
        raise SiteError(f"{name[:80]!r} is not the spool directory of a job", code="hook-environment")
    return int(found[1]), int(found[2])


def _memory_mib(settings: _Settings, slots: int) -> int | None:
    """The smaller of the hard limits that were asked for; each is per slot, but for a consumable of kind JOB."""
    limits = []
    for key in ("h_vmem", "h_rss"):
        text = settings.text(key)
        if text in ("INFINITY", "NONE", "UNDEFINED"):
            continue
        found = _MEMORY.fullmatch(text)
        if found is None:
            raise SiteError(f"{key}: {text[:40]!r} is not a size", code="hook-environment")
        per_job = key == "h_vmem" and settings.text("h_vmem_is_consumable_job") == "1"
        limits.append(float(found[1]) * _BYTES_PER[found[2]] * (1 if per_job else slots))
    return int(min(limits) / (1 << 20)) if limits else None
