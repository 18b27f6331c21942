"""`lrms-vm run`: prologue, exec and epilogue on this machine, with no batch system: the embedded default."""

from __future__ import annotations

import argparse
import gc
import os
import pwd
import signal
import socket
import sys
import time
from types import FrameType

from lrms_vm import config as configuration
from lrms_vm.account import Account, look_up
from lrms_vm.command import ENVIRONMENT
from lrms_vm.errors import ConfigError, LrmsVmError, UsageError
from lrms_vm.request import OPTIONS, Allocation, parse_request

DESCRIPTION = """\
Runs COMMAND in a guest on this machine, as an ordinary user, and removes the guest afterwards.
The same image checks, guest and clean-up as in a batch job. Needs root (for the hypervisor and the cache);
COMMAND itself runs as the user who called sudo, or as --user.
"""
EXAMPLE = "example:\n  sudo lrms-vm run --vm-image=hep-jets -- python3 -c 'print(1+1)'"
FORWARDED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCONT,
)


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "run", description=DESCRIPTION, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for word in OPTIONS:
        parser.add_argument(f"--{word}", required=word == "vm-image", metavar="REF" if word == "vm-image" else "VALUE")
    parser.add_argument("--user", help="run as this user (default: who called sudo, else nobody)")
    parser.add_argument("--cpus", type=int, default=1, help="the guest's cpus (default 1)")
    parser.add_argument("--memory", default="1G", help="the guest's memory and its hypervisor's (default 1G)")
    parser.add_argument("command", nargs="+", metavar="-- COMMAND", help="what to run in the guest, after `--`")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        raise UsageError(
            "run: needs root for the hypervisor and the cache", hint="sudo lrms-vm run ...", code="not-root"
        )
    gc.disable()  # as in the hooks, see __main__.py; what waits for the payload afterwards makes next to nothing
    from lrms_vm import lifecycle, node, teardown
    from lrms_vm.lrms import local

    config = configuration.load(args.config or configuration.DEFAULT_PATH)
    account = _account(args.user)
    options = {word: text for word in OPTIONS if (text := getattr(args, word.replace("-", "_"))) is not None}
    request = parse_request(options, source="--vm-image")
    allocation = local.allocation(
        pid=os.getpid(),
        node=socket.gethostname().partition(".")[0],
        uid=account.uid,
        gid=account.gid,
        user=account.name,
        work_dir=os.getcwd(),
        cpus=args.cpus,
        memory=args.memory,
    )
    actors = node.actors(config)
    deadline = time.monotonic() + config.prologue_timeout_s
    with teardown.locked(config.places, allocation.key, deadline=deadline), _Forwarding() as forwarding:
        try:
            lifecycle.prologue(
                request, allocation, config=config, actors=actors, started_at=time.time(), deadline=deadline
            )
            return forwarding.end_like(_exec(args.command, allocation, config, account, forwarding))
        finally:
            left = teardown.teardown(
                allocation.key,
                places=config.places,
                hypervisor=actors.hypervisor,
                deadline=time.monotonic() + config.epilogue_timeout_s,
            )
            for leftover in left:
                print(f"lrms-vm: left behind: {leftover}", file=sys.stderr)


class _Forwarding:
    """Passes the signals we get on to the payload's half, so that ours always runs to the epilogue."""

    def __init__(self) -> None:
        self.child: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> _Forwarding:
        for number in FORWARDED:
            self._before[number] = signal.signal(number, self._forward)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        if self.child is not None:
            if number not in (signal.SIGINT, signal.SIGQUIT) or os.getpgid(self.child) != os.getpgrp():
                os.kill(self.child, number)  # a terminal has already told the whole foreground group
        elif number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            raise LrmsVmErrorBySignal(number)

    def end_like(self, status: int) -> int:
        code = os.waitstatus_to_exitcode(status)
        return 128 - code if code < 0 else code


class LrmsVmErrorBySignal(LrmsVmError):
    """A signal came before there was a payload to give it to."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name} before the guest was started", code="interrupted")
        self.exit_code = 128 + number


def _exec(
    command: list[str], allocation: Allocation, config: configuration.Config, account: Account, forwarding: _Forwarding
) -> int:
    """Run the user's half in a child that has dropped everything; return its wait status."""
    argv = [sys.executable, "-I", "-m", "lrms_vm", "exec", "--verdict", str(config.places.verdict(allocation.key))]
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0) if not sys.stdin.isatty() else None
            os.setgroups([gid for _, gid in account.groups])
            os.setresgid(account.gid, account.gid, account.gid)
            os.setresuid(account.uid, account.uid, account.uid)
            environment = {**os.environ, "USER": account.name, "LOGNAME": account.name, "HOME": account.home}
            for name in FORWARDED:
                signal.signal(name, signal.SIG_DFL)
            os.execve(argv[0], [*argv, "--", *command], {**environment, "PATH": ENVIRONMENT["PATH"]})  # noqa: S606
        except OSError as error:
            print(f"lrms-vm: {argv[0]}: {error.strerror}", file=sys.stderr)
        finally:
            os._exit(70)
    forwarding.child = child
    try:
        return os.waitpid(child, 0)[1]
    finally:
        forwarding.child = None


def _account(name: str | None) -> Account:
    if name is None:
        uid = os.environ.get("SUDO_UID", "")
        entry = pwd.getpwuid(int(uid)) if uid.isdigit() and uid != "0" else pwd.getpwnam("nobody")
        if entry.pw_name == "nobody":
            print(
                "lrms-vm: running as nobody (--user NAME for somebody else; root never runs in a guest)",
                file=sys.stderr,
            )
    else:
        try:
            entry = pwd.getpwnam(name)
        except KeyError as error:
            raise UsageError(f"--user: no user {name!r} on this machine", code="user-unknown") from error
    if entry.pw_uid == 0:
        raise UsageError(
            "--user: the payload is never root in a guest", hint="name an ordinary user", code="root-payload"
        )
    if not entry.pw_dir:
        raise ConfigError(f"user {entry.pw_name} has no home directory entry", code="user-unknown")
    return look_up(entry.pw_uid, entry.pw_gid)
