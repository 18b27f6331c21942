"""What the Grid Engine adapter must do on a node: find the job's spool directory, read it, disable the host's queues.

The files are read and the argument lists made in lrms/gridengine.py, which is pure. This is a
`batch_system.BatchSystem`. Nothing is taken from the hook's environment: it is the user's.
"""

from __future__ import annotations

import math
import os
import pwd
import stat
from collections.abc import Sequence
from pathlib import Path

from lrms_vm import command
from lrms_vm.config import Config
from lrms_vm.errors import LrmsVmError, NodeError, SiteError, UsageError
from lrms_vm.lrms import gridengine
from lrms_vm.lrms.base import EPILOGUE, Action, Call, Outcome, Told
from lrms_vm.request import Allocation

NAME = gridengine.NAME
QMOD_TIMEOUT_S = 20.0
MAX_FILE_BYTES = 4 << 20
# Set by our hook files, which begin with an empty environment: which cell the host belongs to
CELL = ("SGE_ROOT", "SGE_CELL", "SGE_QMASTER_PORT", "SGE_EXECD_PORT")


def call(words: Sequence[str]) -> Call:
    """`words`: the pid of sge_shepherd. Its directory is the job's; no variable and no argument names another."""
    if len(words) != 1 or not words[0].isdecimal():
        raise SiteError(f"{words!r:.80}: expected sge_shepherd's pid", code="hook-environment")
    directory = _shepherds_directory(int(words[0]))
    files = {gridengine.DIRECTORY: os.fsencode(directory.name)}
    for name in (gridengine.CONFIG, gridengine.ENVIRONMENT):
        files[name] = _read(directory / name)
    return Call(argv=tuple(words), environ=os.environ, files=files)


def identify(call: Call) -> Allocation:
    name = gridengine.owner(call)
    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        raise SiteError(f"{name}: no such user on this node", code="user-unknown") from error
    if entry.pw_uid == 0:
        raise SiteError(f"{name}: is root", code="hook-environment")
    return gridengine.identify(call, uid=entry.pw_uid, gid=entry.pw_gid)


def unready(hook: str, error: LrmsVmError) -> int:
    """The job waits in state Eqw with the reason; a finished one is left alone."""
    return 0 if hook == EPILOGUE else 100


def prologue_limit_s(call: Call) -> float:
    return math.inf


def require_way_in(call: Call, config: Config) -> None:
    """The starter_method is the only way into the guest, and interactive jobs do not take it."""
    gridengine.refuse_interactive(call)
    starter = gridengine.starter_method(call)
    try:
        text = Path(starter).read_bytes()[:MAX_FILE_BYTES] if starter.startswith("/") else b""
    except OSError as error:
        raise NodeError(f"starter_method {starter}: cannot read: {error.strerror}", code="starter-missing") from error
    if b"lrms-vm-exec" not in text:
        raise NodeError(
            f"the queue's starter_method is {starter[:80]!r}: the job would run on the host",
            hint="`lrms-vm install --lrms=gridengine` prints the queue's settings",
            code="starter-missing",
        )


def parse_options(call: Call) -> tuple[dict[str, str], str]:
    return gridengine.parse_options(call)


def allocation(call: Call, config: Config) -> Allocation:
    return identify(call)


def outcome(hook: str, outcome: Outcome, *, retries: int) -> Told:
    return gridengine.outcome(hook, outcome, retries=retries)


def act(action: Action, why: str, job: Allocation, call: Call, config: Config) -> None:
    """Only `TAKE_OUT`. Grid Engine has no place for a reason: it is in the log and in the job's stderr."""
    _ask(gridengine.disable_argv(config.qmod, job.node))


def started(allocation: Allocation, call: Call, config: Config) -> None:
    return None


def lost(key: str, call: Call, config: Config) -> None:
    return None


def node_name(call: Call) -> str | None:
    return None


def active_keys(node: str, call: Call, config: Config) -> set[str]:
    """The jobs of which sge_execd has a spool directory: it removes that when a job was reported as ended."""
    active = _active_jobs(call)
    keys = set()
    try:
        names = os.listdir(active)
    except OSError as error:
        raise SiteError(f"{active}: cannot read: {error.strerror}", code="controller-down") from error
    for name in names:
        number, dot, task = name.partition(".")
        if dot:
            keys |= {f"{NAME}-{number}.{node}", f"{NAME}-{number}-{task}.{node}"}
    return keys


def _active_jobs(call: Call) -> Path:
    """In a hook: where our own job's directory stands. `lrms-vm reap` is told."""
    if len(call.argv) != 1:
        raise UsageError(
            "which jobs has sge_execd on this node?",
            hint="lrms-vm reap --lrms=gridengine --node HOST -- EXECD_SPOOL_DIR/HOST/active_jobs",
            code="spool-unknown",
        )
    if call.argv[0].startswith("/"):
        return Path(call.argv[0])
    return _shepherds_directory(int(call.argv[0])).parent


def _shepherds_directory(pid: int) -> Path:
    try:
        program = os.readlink(f"/proc/{pid}/exe")
        directory = Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError as error:
        raise SiteError(f"process {pid}, which called us, cannot be seen: {error}", code="hook-environment") from error
    if os.path.basename(program) not in ("sge_shepherd", "sge_coshepherd") or directory.parent.name != "active_jobs":
        raise SiteError(
            f"called by {program} in {directory}, expected sge_shepherd in the spool directory of a job",
            hint="this verb is for the hooks that `lrms-vm install --lrms=gridengine` puts in place",
            code="hook-environment",
        )
    return directory


def _read(path: Path) -> bytes:
    """A file of sge_execd's. Its directory is the administrator's; some files in it are the job's user's."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            status, parent = os.fstat(fd), os.stat(path.parent)
            mine = status.st_uid in (0, parent.st_uid) and not status.st_mode & 0o022 and not parent.st_mode & 0o022
            if not stat.S_ISREG(status.st_mode) or not mine:
                raise SiteError(f"{path}: not a file that only sge_execd can write", code="hook-environment")
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise SiteError(f"{path}: cannot read: {error.strerror}", code="hook-environment") from error


def _ask(argv: list[str]) -> None:
    environment = {**command.ENVIRONMENT, **{name: os.environ[name] for name in CELL if os.environ.get(name)}}
    try:
        command.run(argv, timeout_s=QMOD_TIMEOUT_S, environment=environment)
    except LrmsVmError as error:
        raise SiteError(
            f"Grid Engine does not answer: {error.message}", hint="is sge_qmaster up?", code="controller-down"
        ) from error
