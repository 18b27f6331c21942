"""How far long work is, on stderr: one line that is written over on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from lrms_vm.units import size_text

FIRST_S = 0.5  # what is done sooner says nothing
EVERY_S = 0.2
LINE_EVERY_S = 10.0  # where there is no terminal
WIDTH = 20


class Progress:
    """Call it with the bytes done. `total_bytes` None: nobody knows. `lines`: speak also where there is no terminal."""

    def __init__(
        self,
        label: str,
        total_bytes: int | None,
        *,
        lines: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label = "".join(c if c.isprintable() else "?" for c in label)[-40:]
        self._total, self._clock, self._stream = total_bytes, clock, stream or sys.stderr
        self._on_terminal = self._stream.isatty()
        self._silent = not (self._on_terminal or lines)
        self._began = self._clock()
        self._next = self._began + (FIRST_S if self._on_terminal else LINE_EVERY_S)
        self._first_bytes: int | None = None  # what was there before is not part of the rate
        self._shown = 0  # characters on the terminal's line

    def __call__(self, done_bytes: int) -> None:
        now = self._clock()
        if self._first_bytes is None or done_bytes < self._first_bytes:
            self._first_bytes, self._began = done_bytes, now
        if self._silent or now < self._next:
            return
        self._next = now + (EVERY_S if self._on_terminal else LINE_EVERY_S)
        text = self._text(done_bytes, now)
        if self._on_terminal:
            self._stream.write(f"\r{text:<{self._shown}}")
            self._shown = len(text)
        else:
            self._stream.write(f"lrms-vm: {text}\n")
        self._stream.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal's line as if nothing had been there."""
        if self._shown:
            self._stream.write(f"\r{'':<{self._shown}}\r")
            self._stream.flush()

    def _text(self, done_bytes: int, now: float) -> str:
        rate = (done_bytes - (self._first_bytes or 0)) / max(now - self._began, 0.001)
        words = [self._label, size_text(done_bytes)]
        if self._total:
            part = min(1.0, done_bytes / self._total)
            filled = int(part * WIDTH)
            if self._on_terminal:
                words.insert(1, f"[{'#' * filled}{'.' * (WIDTH - filled)}] {part:4.0%}")
            words[-1] += f" of {size_text(self._total)}"
        words.append(f"{size_text(int(rate))}/s")
        if self._total and rate > 0 and done_bytes < self._total:
            words.append(f"{_clock_text((self._total - done_bytes) / rate)} left")
        return "  ".join(words)


def _clock_text(seconds: float) -> str:
    """
    >>> _clock_text(65), _clock_text(7322), _clock_text(1e9)
    ('1:05', '2:02:02', 'days')
    """
    if seconds > 2 * 86400:
        return "days"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
