"""Attach: what the prologue leaves running, detached and as the job's user, to connect the job to its guest.

Waits for the guest, opens the one shared ssh connection, mounts the shares, says `ready` or `failed`, and ends. What
stays is the connection, and per share an sftp-server that sees nothing but the share and an ssh session. All carry
LRMS_VM_KEY in their environment: that is how the epilogue finds them. Nothing here runs as root.
"""

from __future__ import annotations

import binascii
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lrms_vm import channel
from lrms_vm.errors import GuestLost, LrmsVmError, NodeError
from lrms_vm.paths import JobPlaces, UserPlaces, below
from lrms_vm.verdict import Verdict
from lrms_vm.verdict_file import believe

BWRAP = "/usr/bin/bwrap"
SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")
SHARES_TIMEOUT_S = 60


def main() -> int:
    """`attach --verdict FILE`, a root-owned one."""
    try:
        attach(believe(Path(sys.argv[-1])))
    except LrmsVmError as error:
        print(f"lrms-vm: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def attach(verdict: Verdict) -> None:
    """Do it all; the outcome is in `ready` or `failed`. Raises `LrmsVmError` after writing `failed`."""
    shares = outermost(verdict.shares)
    user = JobPlaces(run=Path(verdict.job_dir), disk=Path(verdict.job_dir)).user  # the disks are root's affair
    deadline = time.monotonic() + verdict.boot_timeout_s
    try:
        with _held_open(user.attaching):
            _wait_for_guest(user, verdict, deadline)
            up_at = time.monotonic()
            user.passwd.write_text(passwd_line(verdict.user_name, os.getuid(), os.getgid()))
            for share in shares:
                _offer_share(user, verdict.key, share)
            _wait_for_shares(user, verdict.key, shares)
            shares_ms = round((time.monotonic() - up_at) * 1e3, 1)
            _write(user.ready, {"guest_up": verdict.since_start_ms(up_at), "shares": shares_ms})
    except LrmsVmError as error:
        _write(user.failed, {"message": str(error), "code": error.code})
        raise
    except Exception as error:  # a defect of ours: the payload must not wait for a guest that nobody attends to
        _write(user.failed, {"message": f"cannot connect to the guest: {error!r}", "code": "attach-failed"})
        raise


@contextlib.contextmanager
def _held_open(fifo: Path) -> Iterator[None]:
    """Whoever waits for us sees it closed, however we end."""
    os.mkfifo(fifo, 0o600)
    fd = os.open(fifo, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield
    finally:
        os.close(fd)


def outermost(shares: Sequence[str]) -> list[str]:
    """Those that no other contains: what is mounted inside another share would be hidden by it, or hide it."""
    return [share for share in shares if not any(other != share and below(share, (other,)) for other in shares)]


def sftp_argv(share: str, *, server: str, passwd: str, exists: frozenset[str]) -> list[str]:
    """The host's end of a share: sftp-server in a name space of its own, with no more of the host than the share.

    A guest that broke out of its user's permissions would still find only what the job was given. `passwd` has the
    user's line: sftp-server ends without one, and no name service (LDAP) can be asked from in there. No
    --die-with-parent: it ends when its ssh session does. umask 0: the guest's kernel has applied the payload's.
    `exists`: which of the host's top directories there are, and are not links into /usr.
    """
    system = [word for path in ("/lib", "/lib64", "/lib32") if path in exists for word in ("--ro-bind", path, path)]
    links = [
        word
        for path in ("/lib", "/lib64")
        if path not in exists and path + "@" in exists
        for word in ("--symlink", f"usr{path}", path)
    ]
    return [
        *(BWRAP, "--unshare-all", "--ro-bind", "/usr", "/usr", *system, *links),
        *("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"),
        *("--ro-bind", passwd, "/etc/passwd"),
        *("--dev", "/dev", "--bind", share, share, "--chdir", share, "--", server, "-e", "-l", "ERROR", "-u", "0000"),
    ]


def passwd_line(name: str, uid: int, gid: int) -> str:
    """passwd(5) of one user, for programs that only ask whether there is one."""
    return f"{name}:x:{uid}:{gid}::/:/bin/false\n"


def _wait_for_guest(user: UserPlaces, verdict: Verdict, deadline: float) -> None:
    """Start the shared connection; its ProxyCommand does the waiting. Raises `GuestLost`."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    pid = channel.open_shared_connection(user, verdict.key)
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            os.kill(pid, signal.SIGKILL)
            raise GuestLost(f"the guest did not come up within {verdict.boot_timeout_s} s", code="guest-silent")
        signal.sigtimedwait({signal.SIGCHLD}, left_s)
    if (code := os.waitstatus_to_exitcode(ended[1])) != 0:
        raise GuestLost(f"no connection to the guest (ssh ended with {code})", code="guest-gone")


def _offer_share(user: UserPlaces, key: str, share: str) -> None:
    """Connect an sftp-server here with an sshfs there. Both stay."""
    ours, theirs = socket.socketpair()
    server = next((path for path in SFTP_SERVERS if os.access(path, os.X_OK)), None)
    if server is None:
        raise NodeError("no sftp-server on this node", hint="install openssh-sftp-server", code="sftp-missing")
    with ours, theirs:
        argv = sftp_argv(share, server=server, passwd=str(user.passwd), exists=_top_directories())
        channel.start(argv, environment=channel.environment(key), fds=(ours.fileno(), ours.fileno(), 2))
        command = channel.guest_command("share", _word(share))
        channel.start(
            channel.session_argv(user, command),
            environment=channel.environment(key),
            fds=(theirs.fileno(), theirs.fileno(), 2),
        )


def _wait_for_shares(user: UserPlaces, key: str, shares: Sequence[str]) -> None:
    if not shares:
        return
    command = channel.guest_command("mounted", str(SHARES_TIMEOUT_S), *map(_word, shares))
    with open(os.devnull, "r+b") as null:
        argv = channel.session_argv(user, command)
        pid = channel.start(argv, environment=channel.environment(key), fds=(null.fileno(), null.fileno(), 2))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != 0:
        raise GuestLost(
            f"the working directory and shares could not be mounted in the guest (exit {code}): {', '.join(shares)}",
            hint=f"see {user.attach_log} on the node",
            code="shares-failed",
        )


def _top_directories() -> frozenset[str]:
    """Names of what is a directory, and name@ of what is a link."""
    paths = ("/lib", "/lib64", "/lib32")
    return frozenset(path + ("@" if os.path.islink(path) else "") for path in paths if os.path.exists(path))


def _word(path: str) -> str:
    return binascii.b2a_base64(os.fsencode(path), newline=False).decode()


def _write(path: Path, values: dict[str, object] | dict[str, float] | dict[str, str]) -> None:
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.write_text(json.dumps(values))
        fresh.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            print(f"lrms-vm: {path}: {error.strerror}", file=sys.stderr)
        raise NodeError(f"{path}: cannot write: {error.strerror}", code="state-unwritable") from error
