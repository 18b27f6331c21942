"""The channel: OpenSSH over whatever byte pipe reaches the guest, one connection per guest, shared.

The pipe has memory: bytes may wait in it from before the guest was up or from an earlier connection. So the host says
`LRMS-VM hello NONCE` until it reads `LRMS-VM ready NONCE`, then `LRMS-VM go NONCE`, and ssh follows at the next byte
(reference/xen-and-guests-measured.md; the guest's half is guest/channel.c).

Run as a program (`python -I -m lrms_vm.channel PLACE`) this is the shared connection's ProxyCommand: it greets the
guest, passes the open socket to ssh and ends, so that no Python stays resident. PLACE is the path of the hypervisor's
socket, or `tcp:ADDRESS:PORT`: a Xen guest with an address is reached by that, for its console holds 2 KiB at a time.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from lrms_vm.errors import GuestLost, NodeError

TYPE_CHECKING = False  # as typing's, without loading it: a ProxyCommand starts beside every guest
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Mapping, Sequence

    from lrms_vm.paths import UserPlaces

SSH = "/usr/bin/ssh"
HOST = "guest"  # the alias in ssh_config and known_hosts
GUEST_PROGRAM = "/run/lrms_vm/guest"
GUEST_TASKS = "/run/lrms_vm/tasks"
TCP = "tcp:"
SILENT_S, TCP_SILENT_S = 120, 45
KEY_VARIABLE = "LRMS_VM_KEY"  # marks every process that connects a job to its guest, for the epilogue
HELLO_EVERY_S = 1.0
RETRY_S = 0.2
MAX_NOISE_BYTES = 1 << 16
MAX_COMMAND_BYTES = 100 << 10  # one argument of execve(2) holds 128 KiB
POLL_S, POLL_SHARE = 0.02, 0.02
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SIOCOUTQ = 0x5411  # unix(7): bytes the other end has not read yet


def environment(key: str | None) -> dict[str, str]:
    """What ssh runs with; it gives a ProxyCommand to $SHELL. `key` marks what attach leaves behind for the epilogue."""
    marked = {KEY_VARIABLE: key} if key else {}
    return {"PATH": _PATH, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "SHELL": "/bin/sh", **marked}


def ssh_config(
    user: UserPlaces,
    user_name: str,
    *,
    place: str | None = None,
    proxy: Sequence[str] | None = None,
    silent_s: int = SILENT_S,
) -> str:
    """The text of the job's ssh_config(5): pinned host key, one key, nothing from the user's or the site's own files.

    `place`: where the guest answers, see above; by default the job's channel socket. `proxy`: another ProxyCommand.
    `silent_s`: a guest that says nothing for so long is lost.
    """
    import shlex

    place = place or str(user.root.with_name("channel.sock"))
    command = proxy or (sys.executable, "-I", "-m", "lrms_vm.channel", place)
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


def pause_s(waited_s: float) -> float:
    """How long to sleep before looking again for what was waited for so long: a look costs the guest's own processor
    time where processors are few, so none is late by more than a fiftieth.

    >>> pause_s(0), pause_s(10)
    (0.02, 0.2)
    """
    return max(POLL_S, min(waited_s * POLL_SHARE, 0.5))


def open_shared_connection(user: UserPlaces, key: str) -> int:
    """Start the connection all sessions share; return its pid. It is up when `user.control_socket` exists."""
    argv = [SSH, "-F", str(user.ssh_config), "-M", "-N", "-T", HOST]
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


def greet(pipe: socket.socket, *, nonce: str, deadline: float = float("inf"), abandoned_fd: int | None = None) -> None:
    """Shake hands with the guest's channel program; afterwards the next byte either way is ssh's.

    `deadline` is a time.monotonic() value. Ends early when the other side of `abandoned_fd` is closed.
    Raises `GuestLost` when the guest's end closes or the deadline passes.
    """
    import select

    hello, ready = f"LRMS-VM hello {nonce}\n".encode(), f"LRMS-VM ready {nonce}".encode()
    heard, hello_at = b"", float("-inf")
    poller = select.poll()
    poller.register(pipe, select.POLLIN)
    if abandoned_fd is not None:
        poller.register(abandoned_fd, 0)
    while ready not in heard.split(b"\n")[:-1]:
        now = time.monotonic()
        if now >= deadline:
            raise GuestLost("the guest did not answer in time", code="guest-silent")
        if now - hello_at >= HELLO_EVERY_S and _unread(pipe) == 0:  # never fill a pipe that nobody reads yet
            _send(pipe, hello)
            hello_at = now
        wait_s = max(0.0, min(HELLO_EVERY_S, deadline - now))
        for fd, _ in poller.poll(wait_s * 1000):
            if fd == abandoned_fd:
                raise GuestLost("nobody waits for the guest any more", code="channel-abandoned")
            heard = (heard + _receive(pipe))[-MAX_NOISE_BYTES:]
    _send(pipe, f"LRMS-VM go {nonce}\n".encode())


def _receive(pipe: socket.socket) -> bytes:
    try:
        got = pipe.recv(4096)
    except OSError as error:
        raise GuestLost(f"the guest's channel broke: {error.strerror}", code="guest-gone") from error
    if not got:
        raise GuestLost("the guest is gone: its channel was closed", code="guest-gone")
    return got


def _send(pipe: socket.socket, text: bytes) -> None:
    try:
        pipe.sendall(text)
    except OSError as error:
        raise GuestLost(f"the guest's channel broke: {error.strerror}", code="guest-gone") from error


def _unread(pipe: socket.socket) -> int:
    import array
    import fcntl

    waiting = array.array("i", [0])
    try:
        fcntl.ioctl(pipe.fileno(), _SIOCOUTQ, waiting)
    except OSError:
        return 0  # not a kind of pipe that can tell; the pause between hellos has to do
    return waiting[0]


def connect(place: str, *, abandoned_fd: int | None = None) -> socket.socket:
    """The pipe to the guest. An address does not answer before its guest is up: that is tried until `abandoned_fd` is.

    Raises `GuestLost`.
    """
    import socket

    if place.startswith(TCP):
        address, _, port = place.removeprefix(TCP).partition(":")
        return _connect_tcp((address, int(port)), abandoned_fd)
    pipe = socket.socket(socket.AF_UNIX)
    try:
        pipe.connect(place)
    except OSError as error:
        raise GuestLost(f"{place}: cannot reach the guest: {error.strerror}", code="guest-gone") from error
    return pipe


def _connect_tcp(where: tuple[str, int], abandoned_fd: int | None) -> socket.socket:
    import select
    import socket

    poller = select.poll()
    if abandoned_fd is not None:
        poller.register(abandoned_fd, 0)
    while True:
        try:
            pipe = socket.create_connection(where, timeout=HELLO_EVERY_S)
        except OSError:
            if poller.poll(RETRY_S * 1000):
                raise GuestLost("nobody waits for the guest any more", code="channel-abandoned") from None
            continue
        pipe.settimeout(None)
        pipe.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return pipe


def _quoted(text: str) -> str:
    """An argument of ssh_config(5), where % is special. Raises `NodeError` for what cannot be written there."""
    if '"' in text or "\n" in text or "${" in text:
        raise NodeError(f"{text!r}: cannot be written in an ssh configuration", code="name-unusable")
    return '"' + text.replace("%", "%%") + '"'


def _main(arguments: Sequence[str]) -> int:
    """ProxyCommand with ProxyUseFdpass: stdout is a socket that takes the connected descriptor (ssh_config(5))."""
    import array
    import socket

    try:
        (place,) = arguments
        with socket.socket(fileno=os.dup(1)) as taker, connect(place, abandoned_fd=taker.fileno()) as pipe:
            greet(pipe, nonce=os.urandom(16).hex(), abandoned_fd=taker.fileno())
            taker.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [pipe.fileno()]))])
    except GuestLost as error:
        print(f"lrms-vm: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
