"""What a batch system's suspension needs in the guest: word from here, each second, that we run.

Whoever suspends a job stops its processes by SIGSTOP, which cannot be caught and so not be handed on. Slurm says
SIGTSTP first and waits (slurm.conf, suspend_grace_time): there the guest is told from then on that we run, elsewhere
always. When we are silent it stops the task.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

STOPPED_UNTOLD = ("torque", "openpbs", "gridengine")  # by batch systems that send no SIGTSTP before
BEAT_S = 1.0  # guest/suspend.c takes three seconds of silence for a stop


class Heartbeat:
    """A session of its own in the guest, until a SIGCONT or the task's end. Its process is not waited for:
    a guest that hangs must not hold up the task's end."""

    def __init__(self) -> None:
        self._pipe: int | None = None

    @property
    def beats(self) -> bool:
        return self._pipe is not None

    def begin(self, session: Callable[[int], object]) -> None:
        """`session` starts it, given its stdin."""
        if self._pipe is None:
            read_end, self._pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            os.set_blocking(read_end, True)
            try:
                session(read_end)
            finally:
                os.close(read_end)

    def beat(self) -> None:
        if self._pipe is not None:
            with contextlib.suppress(OSError):  # the session is gone: the task's own will tell why
                os.write(self._pipe, b".")

    def end(self) -> None:
        """The task goes on, if it was stopped; or it has ended."""
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
