"""What the Torque adapter must do on a node: ask qstat, read pbs_mom's files, tell the server of nodes and jobs.

The texts are read and the argument lists made in lrms/torque.py, which is pure. Both of a job's kinds of node are a
`batch_system.BatchSystem`: `MOTHER`, where its script runs, and `SISTER`, whose pbs_mom stands still while its prologue
runs. So a sister's prologue works in the background and never fails: what went wrong a task there says.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import stat
import time
from collections.abc import Sequence
from pathlib import Path

from lrms_vm import command, journal
from lrms_vm.config import Config
from lrms_vm.errors import LrmsVmError, NodeError, SiteError, UsageError
from lrms_vm.lrms import pbs_text, torque
from lrms_vm.lrms.base import PROLOGUE, Action, Call, Outcome, Told
from lrms_vm.request import Allocation
from lrms_vm.values import dataclass

ASK_TIMEOUT_S = 5.0  # where trqauthd does not run, a command hangs for minutes
JOB_FILE_PATIENCE_S = 10.0  # pbs_mom often writes it only after the prologue began
POLL_S = 0.2
TELL_S = 15.0  # kept of a prologue's time for what the server is told in the end


@dataclass(frozen=True)
class TorqueNode:
    """See above."""

    sister: bool = False

    @property
    def NAME(self) -> str:  # noqa: N802 - a module has it too
        return torque.NAME

    def call(self, words: Sequence[str]) -> Call:
        """`words`: the directory of Torque's commands, which `install` wrote into the hook, and the hook's arguments.

        A prologue's call has what qstat and pbs_mom's files say of the job. What cannot be asked is left out.
        """
        if not words or not words[0].startswith("/"):
            raise SiteError(
                f"{list(words[:1])!r:.80}: expected Torque's directory of commands", code="hook-environment"
            )
        files = {torque.COMMANDS: os.fsencode(words[0]), torque.HOST: socket.gethostname().encode()}
        call = Call(argv=tuple(words[1:]), environ=os.environ, files=files)
        if len(call.argv) == torque.PROLOGUE_WORDS:
            files |= _known_of(call)
        return call

    def identify(self, call: Call) -> Allocation:
        uid, gid = _account(torque.owner(call))
        return torque.identify(call, uid=uid, gid=gid)

    def unready(self, hook: str, error: LrmsVmError) -> int:
        """Aborted: without a configuration nothing could be counted. On a sister its tasks find no verdict."""
        return 1 if hook == PROLOGUE and not self.sister else 0

    def require_way_in(self, call: Call, config: Config) -> None:
        """The job starter is the only way into the guest. Raises `NodeError`."""
        directory = _mom_directory(call)
        try:
            settings = (directory / "config").read_text(errors="replace")
        except OSError as error:
            raise NodeError(f"{directory}/config: cannot read: {error.strerror}", code="starter-missing") from error
        starter = torque.mom_setting(settings, "job_starter") or ""
        try:
            text = _read(Path(starter)) if starter.startswith("/") else b""
        except (OSError, SiteError) as error:
            raise NodeError(f"$job_starter {starter}: cannot read: {error}", code="starter-missing") from error
        privileged = torque.mom_setting(settings, "job_starter_run_privileged") or "false"
        if b"lrms-vm-exec" not in text or privileged.lower() in ("true", "1", "yes", "on"):
            raise NodeError(
                f"{directory}/config: $job_starter is {starter[:80]!r}"
                f"{', run as root' if b'lrms-vm-exec' in text else ''}: the job would run on the host",
                hint="`lrms-vm install --lrms=torque` prints what the file must say; then restart pbs_mom",
                code="starter-missing",
            )

    def prologue_limit_s(self, call: Call) -> float:
        settings = ""
        with contextlib.suppress(OSError):
            settings = (_mom_directory(call) / "config").read_text(errors="replace")
        limit_s = torque.prologue_limit_s(settings)
        return max(limit_s - TELL_S, limit_s / 2)

    def parse_options(self, call: Call) -> tuple[dict[str, str], str]:
        return torque.parse_options(call)

    def allocation(self, call: Call, config: Config) -> Allocation:
        return self.identify(call)

    def outcome(self, hook: str, outcome: Outcome, *, retries: int) -> Told:
        return torque.outcome(hook, outcome, retries=retries, sister=self.sister)

    def act(self, action: Action, why: str, job: Allocation, call: Call, config: Config) -> None:
        directory, whole = _commands(call), call.argv[0]
        if action is Action.HOLD:
            _ask(torque.hold_argv(directory, whole))
        elif action is Action.EXPLAIN:
            try:
                _ask(torque.comment_argv(directory, whole, why))
            except LrmsVmError as error:
                journal.say("warning", job.key, f"comment not set: {error}")
        else:
            _take_out(directory, why)

    def started(self, allocation: Allocation, call: Call, config: Config) -> None:
        return None

    def lost(self, key: str, call: Call, config: Config) -> None:
        return None

    def node_name(self, call: Call) -> str | None:
        return torque.node_name(socket.gethostname())

    def active_keys(self, node: str, call: Call, config: Config) -> set[str]:
        directory = _commands(call) if torque.COMMANDS in call.files else "".join(call.argv[:1])  # reap's own argument
        if not directory.startswith("/"):
            raise UsageError(
                "where are Torque's commands?", hint="lrms-vm reap --lrms=torque -- DIRECTORY", code="commands-unknown"
            )
        text = _ask(torque.active_argv(directory))
        return {f"{self.NAME}-{name}.{node}" for name in torque.parse_active(text.decode("utf-8", "replace"))}


MOTHER, SISTER = TorqueNode(), TorqueNode(sister=True)


def _account(name: str) -> tuple[int, int]:
    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        raise SiteError(f"{name}: no such user on this node", code="user-unknown") from error
    if entry.pw_uid == 0:
        raise SiteError(f"{name}: is root", code="hook-environment")
    return entry.pw_uid, entry.pw_gid


def _known_of(call: Call) -> dict[str, bytes]:
    """What the server and pbs_mom say of the job."""
    found = {}
    try:
        argv = torque.qstat_argv(_commands(call), call.argv[0])
        found[torque.QSTAT] = command.run(argv, timeout_s=ASK_TIMEOUT_S)
    except NodeError as error:
        journal.say("warning", call.argv[0], f"qstat: {error}")
        patience_s = 0.0 if torque.wants_by_resource(call) else JOB_FILE_PATIENCE_S
        path = _mom_directory(call) / "jobs" / f"{torque.job_id(call).file_prefix}.JB"
        if job_file := _read_when_there(path, time.monotonic() + patience_s):
            found[torque.JOB_FILE] = job_file
    if node_file := call.environ.get("PBS_NODEFILE"):
        with contextlib.suppress(OSError, SiteError):
            found[torque.NODE_FILE] = _read(Path(node_file))
    return found


def _commands(call: Call) -> str:
    return os.fsdecode(call.files[torque.COMMANDS])


def _take_out(directory: str, why: str) -> None:
    """The server may know the node with its domain or without."""
    host = socket.gethostname()
    try:
        _ask(torque.offline_argv(directory, host, why))
    except SiteError:
        if torque.node_name(host) == host:
            raise
        _ask(torque.offline_argv(directory, torque.node_name(host), why))


def _ask(argv: list[str]) -> bytes:
    try:
        return command.run(argv, timeout_s=ASK_TIMEOUT_S)
    except LrmsVmError as error:
        raise SiteError(
            f"Torque's server does not answer: {error.message}",
            hint="is pbs_server up, trqauthd on this node, and root@NODE one of its managers?",
            code="controller-down",
        ) from error


def _mom_directory(call: Call) -> Path:
    """mom_priv: from the path of the job's script, the last argument of every hook."""
    script = Path(call.argv[-1])
    if not script.is_absolute() or script.parent.name != "jobs":
        raise SiteError(f"{call.argv[-1][:80]!r} is not a job's script", code="hook-environment")
    return script.parent.parent


def _read_when_there(path: Path, deadline: float) -> bytes | None:
    while True:
        with contextlib.suppress(OSError, SiteError):
            return _read(path)
        if time.monotonic() >= deadline:
            return None
        time.sleep(POLL_S)


def _read(path: Path) -> bytes:
    """A file of pbs_mom's. Raises `OSError`, `SiteError` for one that others can write."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
            raise SiteError(f"{path}: not a file that only root can write", code="hook-environment")
        return file.read(pbs_text.MAX_BYTES)
