"""The one door for programs: argv list, small explicit environment, stdin closed, a deadline for the whole group."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lrms_vm.errors import NodeError
from lrms_vm.values import dataclass

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT: Mapping[str, str] = {"PATH": PATH, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
MAX_OUTPUT_SHOWN = 400


@dataclass(frozen=True)
class Identity:
    """Whom a child runs as. Groups first, then gid, then uid: the only order that drops everything (setuid(2))."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    environment: Mapping[str, str] = ENVIRONMENT,
    identity: Identity | None = None,
    stdin: bytes | None = None,
    cwd: str = "/",
    umask: int = 0o077,
) -> bytes:
    """Run to the end; return stdout. Raises `NodeError` with a line one can paste when it fails or takes too long."""
    process = _start(
        argv, environment, identity, subprocess.PIPE if stdin is not None else subprocess.DEVNULL, cwd, umask=umask
    )
    try:
        out, err = process.communicate(stdin, timeout=max(timeout_s, 0.01))
    except subprocess.TimeoutExpired as error:
        _end_group(process)
        raise NodeError(
            f"no answer within {timeout_s:.0f} s from: {shlex.join(argv)}", code="command-timeout"
        ) from error
    except BaseException:
        _end_group(process)
        raise
    if process.returncode != 0:
        said = (err.strip() or out.strip()).decode("utf-8", "replace")[-MAX_OUTPUT_SHOWN:]
        raise NodeError(f"exit {process.returncode} from: {shlex.join(argv)}: {said}", code="command-failed")
    return out


def spawn_detached(
    argv: Sequence[str],
    *,
    identity: Identity | None,
    log: Path,
    environment: Mapping[str, str] = ENVIRONMENT,
    stdin: int = subprocess.DEVNULL,
) -> int:
    """Start a child in a session of its own that outlives us; return its pid, which is also its session id.

    slurmd waits for end-of-file on its prolog's stdout and kills its process group (reference/slurm-measured.md 5),
    so the child holds neither. `log` is opened as the child's identity, so that it can never be led elsewhere as root.
    """

    def open_log() -> None:
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        os.dup2(fd, 1)
        os.dup2(fd, 2)

    process = _start(argv, environment, identity, stdin, "/", preexec=open_log)
    process.returncode = 0  # ours no more: nobody waits for it, init reaps it
    return process.pid


@contextlib.contextmanager
def streaming(
    argv: Sequence[str], *, identity: Identity | None, environment: Mapping[str, str] = ENVIRONMENT
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a child whose stdout and stderr the caller reads as they come. It and its group end with the block.

    The pipes are closed before we wait: a child that handed them to a process of its own cannot hold us up.
    """
    process = _start(argv, environment, identity, subprocess.DEVNULL, "/")
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        process.wait()


def remaining_s(deadline: float) -> float:
    """Seconds until `deadline` (a time.monotonic() value), at least a little: a late step fails by itself."""
    return max(deadline - time.monotonic(), 0.05)


def _start(
    argv: Sequence[str],
    environment: Mapping[str, str],
    identity: Identity | None,
    stdin: int,
    cwd: str,
    preexec: Callable[[], None] | None = None,
    umask: int = 0o077,
) -> subprocess.Popen[bytes]:
    detached = preexec is not None
    try:
        return subprocess.Popen(
            list(argv),
            stdin=stdin,
            stdout=subprocess.DEVNULL if detached else subprocess.PIPE,
            stderr=subprocess.DEVNULL if detached else subprocess.PIPE,
            env=dict(environment),
            cwd=cwd,
            start_new_session=True,
            close_fds=True,
            umask=umask,
            user=identity.uid if identity else None,
            group=identity.gid if identity else None,
            extra_groups=identity.groups if identity else None,
            preexec_fn=preexec,
        )
    except OSError as error:
        raise NodeError(f"cannot start {argv[0]}: {error.strerror}", code="command-missing") from error
    except subprocess.SubprocessError as error:  # `preexec`: no room for its log, or no way there for its user
        raise NodeError(f"cannot start {argv[0]}: its log cannot be opened", code="command-missing") from error


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # all gone already
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
