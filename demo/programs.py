"""Programs the demo runs, and daemons it starts and stops. Everything is an argument list; nothing is looked up by name
when it must be ended: only by the pid file that was written for us."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT: Mapping[str, str] = {"PATH": PATH, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}


class DemoError(Exception):
    """Something the demo needs did not work; the text says what and where to look."""


def run(
    argv: Sequence[str | Path],
    *,
    timeout_s: float = 60,
    cwd: Path | None = None,
    pip: bool = False,
    show: bool = False,
) -> str:
    """Run a program to its end; return its stdout. Raises `DemoError` with the end of what it said.

    `pip`: the program may use the network through the settings of whoever called us (proxies, package mirrors).
    `show`: its stderr, where it tells how far it is, goes to ours as it comes.
    """
    words = [str(word) for word in argv]
    callers = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment = {**callers, **ENVIRONMENT} if pip else ENVIRONMENT
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None if show else subprocess.PIPE,
            timeout=timeout_s,
            cwd=cwd,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"no end within {timeout_s:.0f} s: {' '.join(words)}") from error
    except OSError as error:
        raise DemoError(f"{words[0]}: {error.strerror}; is it installed? (make prerequisites)") from error
    if done.returncode != 0:
        said = ((done.stderr or b"").strip() or done.stdout.strip()).decode("utf-8", "replace")[-2000:]
        raise DemoError(f"exit {done.returncode} from: {' '.join(words)}\n{said}")
    return done.stdout.decode("utf-8", "replace")


def succeeds(argv: Sequence[str | Path], *, timeout_s: float = 20) -> bool:
    """Whether a program ends well."""
    try:
        run(argv, timeout_s=timeout_s)
    except DemoError:
        return False
    return True


def wait_until(what: str, holds: Callable[[], bool], *, timeout_s: float, pause_s: float = 0.1) -> None:
    """Look again and again. Raises `DemoError` saying `what` never came."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() >= deadline:
            raise DemoError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(pause_s)


@dataclass(frozen=True)
class Daemon:
    """A program that puts itself into the background and writes `pid_file`.

    `mark` is a word of its command line that only ours has: a pid that was given to another program meanwhile is
    never taken for our daemon.
    """

    name: str
    argv: tuple[str, ...]
    pid_file: Path
    mark: str

    @property
    def pid(self) -> int | None:
        """The running daemon's pid, or None."""
        try:
            pid = int(self.pid_file.read_text())
        except (OSError, ValueError):
            return None
        return pid if self._is_ours(pid) else None

    def _is_ours(self, pid: int) -> bool:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")  # empty once it ended
        except OSError:
            return False
        return any(self.mark.encode() in word for word in words)

    def start(self, *, timeout_s: float = 20) -> None:
        """Start it unless it runs. Its own output goes to the log it was told."""
        if self.pid is None:
            self.pid_file.unlink(missing_ok=True)
            run(self.argv, timeout_s=timeout_s)
            wait_until(f"{self.name} started", lambda: self.pid is not None, timeout_s=timeout_s)

    def stop(self, *, timeout_s: float = 20) -> None:
        """Ask it to end, then make it. Nothing happens where it does not run.

        Goes by the process and not by the pid file, which slurmd removes first and then still finishes its work.
        """
        pid = self.pid
        if pid is not None:
            for number, patience_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, 5.0)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                deadline = time.monotonic() + patience_s
                while self._is_ours(pid) and time.monotonic() < deadline:
                    time.sleep(0.05)
            if self._is_ours(pid):
                raise DemoError(f"{self.name} (pid {pid}) does not end")
        self.pid_file.unlink(missing_ok=True)
