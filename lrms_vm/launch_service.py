"""The host's side of a launcher (srun, pbsdsh) inside a guest: runs the real one, in the job's step, as the job's user.

A process of its own per task, one more per call. The real launcher gets the job's environment and none of the guest's,
but packed (launchers.py): nothing a guest says may reach a program on the host. Frames are those of guest/launch.c.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lrms_vm.environment import OURS, parse
from lrms_vm.errors import LrmsVmError, NodeError, UsageError
from lrms_vm.launchers import Launcher
from lrms_vm.paths import below

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_FRAME_BYTES = 8 << 20
MAX_AT_ONCE = 256  # processes of ours on the host for one script in a guest; more wait
CHUNK_BYTES = 1 << 15
END_AFTER_S = 5.0
LOOK_S = 1.0
LATE_S = 5.0  # how long the launcher's children may be silent once it has ended, before nobody listens any more
FORWARDED = {
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM),
    *(signal.SIGTERM, signal.SIGCONT),
}


def offer(
    path: Path, launcher: Launcher, job_environment: Mapping[bytes, bytes], *, shares: Sequence[str], search: str = PATH
) -> int:
    """Listen on `path` in a child of ours, in its own process group; return its pid. `search`: directories."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    with open(os.devnull, "r+b") as null:
        child = os.fork()
        if child == 0:
            try:
                os.setpgid(0, 0)
                for fd in (0, 1):  # the job's stdin is the payload's alone, and a reader of our stdout must see its end
                    os.dup2(null.fileno(), fd)
                for number in FORWARDED:
                    signal.signal(number, signal.SIG_DFL)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_SETMASK, [])
                _listen(listener, launcher, job_environment, shares, search)
            finally:
                os._exit(1)
    listener.close()
    with contextlib.suppress(OSError):
        os.setpgid(child, child)
    return child


def _listen(
    listener: socket.socket,
    launcher: Launcher,
    job_environment: Mapping[bytes, bytes],
    shares: Sequence[str],
    search: str,
) -> None:
    running = 0
    while True:
        connection, _ = listener.accept()
        while running and os.waitpid(-1, os.WNOHANG if running < MAX_AT_ONCE else 0)[0]:
            running -= 1
        running += 1
        if os.fork() == 0:
            listener.close()
            try:
                serve(connection, launcher, job_environment, shares=shares, search=search)
            except (OSError, LrmsVmError) as error:  # the guest's end went away: there is nobody to tell but the log
                print(f"lrms-vm: {launcher.name}: {error}", file=sys.stderr)
            finally:
                os._exit(0)
        connection.close()


def serve(
    connection: socket.socket,
    launcher: Launcher,
    job_environment: Mapping[bytes, bytes],
    *,
    shares: Sequence[str],
    search: str = PATH,
) -> None:
    """One call of the guest, to its end."""
    frames = _Frames(connection)
    asked: dict[bytes, bytes] = {}
    while (frame := frames.next()) is not None and frame[0] != b"G":
        asked[frame[0]] = frame[1]
    if frame is None:
        return
    try:
        argv, directory, environment = command(asked, launcher, job_environment, shares=shares, search=search)
    except LrmsVmError as error:
        _send(connection, b"2", f"lrms-vm: {error}\n".encode())
        _send(connection, b"X", b"e" + bytes([error.exit_code]))
        return
    process = subprocess.Popen(
        argv,
        env=environment,
        cwd=directory,
        stdin=subprocess.PIPE if launcher.takes_input else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    _carry(connection, frames, process)


def command(
    asked: Mapping[bytes, bytes],
    launcher: Launcher,
    job_environment: Mapping[bytes, bytes],
    *,
    shares: Sequence[str],
    search: str = PATH,
) -> tuple[list[bytes], bytes, dict[bytes, bytes]]:
    """The real one's argv, working directory and environment for what the guest asked. Raises `UsageError`,
    `RequestError` as `Launcher.read`, `NodeError` where there is no such program."""
    arguments = [os.fsdecode(word) for word in asked.get(b"A", b"").split(b"\0")[1:-1]]
    here = os.fsdecode(asked.get(b"D", b"/").rstrip(b"\0"))
    start = launcher.read(arguments, parse(asked.get(b"E", b"")), lambda path: below(os.path.join(here, path), shares))
    job = {name: value for name, value in job_environment.items() if name.startswith(launcher.keeps)}
    environment = {name: value for name, value in job.items() if not name.startswith(OURS)} | dict(start.variables)
    directory = here if below(here, shares) and os.path.isdir(here) else os.getcwd()
    argv = [_find(launcher.name, search), *start.options, "--", *start.command]
    return [os.fsencode(word) for word in argv], os.fsencode(directory), environment


def _find(name: str, search: str) -> str:
    for directory in search.split(":"):
        path = f"{directory}/{name}"
        if os.access(path, os.X_OK) and not os.path.realpath(path).startswith("/run/lrms_vm/"):
            return path
    raise NodeError(f"no {name} on this node in {search}", code="launcher-missing")


class _Frames:
    """Frames out of a stream, bounded. `buffer` keeps what is not yet a whole one."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.buffer = connection, b""

    def whole(self) -> tuple[bytes, bytes] | None:
        """A frame that is already here."""
        if len(self.buffer) < 5:
            return None
        kind, length = struct.unpack(">cI", self.buffer[:5])
        if length > MAX_FRAME_BYTES:
            raise UsageError(f"a frame of {length} bytes from the guest", code="launch-unreadable")
        if len(self.buffer) < 5 + length:
            return None
        text, self.buffer = self.buffer[5 : 5 + length], self.buffer[5 + length :]
        return kind, text

    def next(self) -> tuple[bytes, bytes] | None:
        """The next frame, waiting for it; None at the end of the stream."""
        while (frame := self.whole()) is None:
            if not self.more():
                return None
        return frame

    def more(self) -> bool:
        got = self.connection.recv(1 << 16)
        self.buffer += got
        return bool(got)


def _send(connection: socket.socket, kind: bytes, text: bytes) -> None:
    connection.sendall(struct.pack(">cI", kind, len(text)) + text)


class _Input:
    """What the guest sent for the real one's stdin and that has not taken yet; never blocks."""

    def __init__(self, fd: int, selector: selectors.BaseSelector) -> None:
        """`fd` is -1 for a launcher that takes no input."""
        self.fd, self.selector, self.waiting = fd, selector, b""
        if fd >= 0:
            os.set_blocking(fd, False)

    def give(self, text: bytes) -> None:
        """No text is the end of the input."""
        if not text or self.fd < 0:
            self.close()
        elif not self.waiting:  # one answer to each W; more would be somebody else's protocol
            self.waiting = text
            self.selector.register(self.fd, selectors.EVENT_WRITE)

    def take(self) -> bool:
        """Write what fits; True when more is wanted."""
        try:
            self.waiting = self.waiting[os.write(self.fd, self.waiting) :]
        except BlockingIOError:
            return False
        except BrokenPipeError:
            self.waiting = b""
            self.close()
            return False
        if self.waiting:
            return False
        self.selector.unregister(self.fd)
        return True

    def close(self) -> None:
        if self.fd >= 0:
            with contextlib.suppress(KeyError):  # not waiting for it
                self.selector.unregister(self.fd)
            os.close(self.fd)
            self.fd = -1


def _carry(connection: socket.socket, frames: _Frames, process: subprocess.Popen[bytes]) -> None:
    """Bytes and signals between the guest's launcher and the real one, until that ends."""
    assert process.stdout and process.stderr
    kinds = {process.stdout.fileno(): b"1", process.stderr.fileno(): b"2"}
    with selectors.PollSelector() as selector:
        to_step = _Input(os.dup(process.stdin.fileno()) if process.stdin else -1, selector)
        selector.register(connection, selectors.EVENT_READ)
        for fd in kinds:
            selector.register(fd, selectors.EVENT_READ)
        if process.stdin:
            process.stdin.close()
            _send(connection, b"W", b"")

        def obey() -> None:
            while (frame := frames.whole()) is not None:
                kind, text = frame
                if kind == b"S" and len(text) == 1 and text[0] in FORWARDED:
                    process.send_signal(text[0])
                elif kind == b"I":
                    to_step.give(text)

        obey()  # what came along with the request
        ended_at = None
        while kinds:
            ready = selector.select(LOOK_S)
            if not ready and ended_at is not None and time.monotonic() > ended_at + LATE_S:
                break
            for key, _ in ready:
                if key.fd == connection.fileno():
                    if not frames.more():
                        selector.unregister(connection)
                        _end(process)
                    obey()
                elif key.fd == to_step.fd:
                    if to_step.take():
                        _send(connection, b"W", b"")
                else:
                    text = os.read(key.fd, CHUNK_BYTES)
                    if text:
                        _send(connection, kinds[key.fd], text)
                    else:
                        selector.unregister(key.fd)
                        del kinds[key.fd]
            if ended_at is None and process.poll() is not None:
                ended_at = time.monotonic()
    to_step.close()
    code = process.wait()
    _send(connection, b"X", b"s" + bytes([-code]) if code < 0 else b"e" + bytes([code]))


def _end(process: subprocess.Popen[bytes]) -> None:
    """The guest's launcher is gone: so must the tasks be."""
    process.terminate()
    until = time.monotonic() + END_AFTER_S
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    if process.poll() is None:
        process.kill()
