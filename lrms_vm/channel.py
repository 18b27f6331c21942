"""The channel: OpenSSH over whatever byte pipe reaches the guest, one connection per guest, shared.

The pipe has memory: bytes may wait in it from before the guest was up or from an earlier connection. So the host says
`LRMS-VM hello NONCE` until it reads `LRMS-VM ready NONCE`, then `LRMS-VM go NONCE`, and ssh follows at the next byte
(reference/xen-and-guests-measured.md; the guest's half is guest/channel.c). The host's is guest/connect.c, the shared
connection's ProxyCommand: PLACE is the path of the hypervisor's socket, or `tcp:ADDRESS:PORT`: a Xen guest with an
address is reached by that, for its console holds 2 KiB at a time.
"""

from __future__ import annotations

import os
import signal

from lrms_vm.errors import NodeError

TYPE_CHECKING = False  # as typing's, without loading it: `exec` starts with every task
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lrms_vm.paths import UserPlaces

SSH = "/usr/bin/ssh"
HOST = "guest"  # the alias in ssh_config and known_hosts
GUEST_PROGRAM = "/run/lrms_vm/guest"
GUEST_TASKS = "/run/lrms_vm/tasks"
TCP = "tcp:"
SILENT_S, TCP_SILENT_S = 120, 45
KEY_VARIABLE = "LRMS_VM_KEY"  # marks every process that connects a job to its guest, for the epilogue
MAX_COMMAND_BYTES = 100 << 10  # one argument of execve(2) holds 128 KiB
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment(key: str | None) -> dict[str, str]:
    """What ssh runs with; it gives a ProxyCommand to $SHELL. `key` marks what attach leaves behind for the epilogue."""
    marked = {KEY_VARIABLE: key} if key else {}
    return {"PATH": _PATH, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "SHELL": "/bin/sh", **marked}


def ssh_config(
    user: UserPlaces,
    user_name: str,
    *,
    program: str,
    place: str | None = None,
    silent_s: int = SILENT_S,
) -> str:
    """The text of the job's ssh_config(5): pinned host key, one key, nothing from the user's or the site's own files.

    `program`: the guest program, on this node. `place`: where the guest answers, see above; by default the job's
    channel socket. `silent_s`: a guest that says nothing for so long is lost.
    """
    import shlex

    place = place or str(user.root.with_name("channel.sock"))
    command = (program, "connect", place)
    lines = {
        "HostName": HOST,
        "User": _quoted(user_name),
        "HostKeyAlias": HOST,
        "IdentityFile": _quoted(str(user.private_key)),
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "UserKnownHostsFile": _quoted(str(user.known_hosts)),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "CheckHostIP": "no",
        "PreferredAuthentications": "publickey",
        "BatchMode": "yes",
        "KexAlgorithms": "curve25519-sha256",  # the key is pinned and the pipe is local: the cheapest in emulation
        "ControlPath": _quoted(str(user.control_socket)),
        "ControlMaster": "no",
        "ProxyCommand": shlex.join(command).replace("%", "%%"),
        "ProxyUseFdpass": "yes",
        # A guest that hangs is lost after `silent_s`; one that dies, at once. Asked every second because now and then
        # (1 session in 250 was measured) bytes wait unnoticed at the guest's end of the port until the next ones come.
        "ServerAliveInterval": "1",
        # An address says nothing when its guest is gone, as a socket of the hypervisor does.
        "ServerAliveCountMax": str(min(silent_s, TCP_SILENT_S) if place.startswith(TCP) else silent_s),
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "PermitLocalCommand": "no",
        "Compression": "no",
        "LogLevel": "ERROR",
    }
    return f"Host {HOST}\n" + "".join(f"    {name} {value}\n" for name, value in lines.items())


def open_shared_connection(user: UserPlaces, key: str) -> int:
    """Start the connection all sessions share; return a pid, which ends with 0 when it is up: ssh -f goes on behind."""
    argv = [SSH, "-F", str(user.ssh_config), "-f", "-M", "-N", "-T", HOST]
    with open(os.devnull, "r+b") as null:
        return start(argv, environment=environment(key), fds=(null.fileno(), null.fileno(), 2))


def session_argv(user: UserPlaces, command: str, *, tty: bool = False, options: Iterable[str] = ()) -> list[str]:
    """One more session on the shared connection. Without that it fails with 255: it never connects by itself."""
    return [
        *(SSH, "-F", str(user.ssh_config), "-o", "ProxyCommand=/bin/false", "-o", "ProxyUseFdpass=no"),
        *(word for option in options for word in ("-o", option)),
        *("-tt" if tty else "-T", HOST, command),
    ]


def guest_command(*words: str) -> str:
    """The guest program's command line. The words must be plain: they pass through the user's login shell."""
    for word in words:
        if not word or not all(c.isascii() and (c.isalnum() or c in "@%+=:,./_-") for c in word):
            raise ValueError(f"not a plain word: {word!r:.80}")
    return " ".join(("exec", GUEST_PROGRAM, *words))


def start(
    argv: Sequence[str],
    *,
    environment: Mapping[bytes, bytes] | Mapping[str, str],
    fds: tuple[int, int, int] = (0, 1, 2),
    own_group: bool = False,
    blocked: Iterable[int] = (),
) -> int:
    """Start a child with `fds` as stdin, stdout, stderr and no other descriptor; return its pid.

    posix_spawn and not subprocess: `exec` starts with every task and must be quick. `blocked` is its signal mask.
    Raises `NodeError`.
    """
    import functools

    high = [os.dup(fd) for fd in fds]  # close-on-exec, and out of the way of 0, 1 and 2
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(high)]
    spawn = functools.partial(os.posix_spawn, setpgroup=0) if own_group else os.posix_spawn
    try:
        return spawn(
            argv[0],
            list(argv),
            environment,
            file_actions=actions,
            setsigmask=list(blocked),
            setsigdef=[signal.SIGPIPE, signal.SIGCHLD],
        )
    except OSError as error:
        raise NodeError(f"cannot start {argv[0]}: {error.strerror}", code="command-missing") from error
    finally:
        for fd in high:
            os.close(fd)


def _quoted(text: str) -> str:
    """An argument of ssh_config(5), where % is special. Raises `NodeError` for what cannot be written there."""
    if '"' in text or "\n" in text or "${" in text:
        raise NodeError(f"{text!r}: cannot be written in an ssh configuration", code="name-unusable")
    return '"' + text.replace("%", "%%") + '"'
