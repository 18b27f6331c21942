"""Progress on a terminal, and the same without one: a line a step, with the time it took."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_began = time.monotonic()


def say(text: str = "") -> None:
    """A line of its own."""
    print(text, flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is being done, and afterwards how long it took."""
    start = time.monotonic()
    if sys.stdout.isatty():
        print(f"  ...... {what}", end="\r", flush=True)
    try:
        yield
    except BaseException:
        say(f"  FAILED {what}")
        raise
    say(f"{time.monotonic() - start:6.1f} s {what}")


class Waiting:
    """One line that changes while something takes its time; without a terminal a new line only when the text does."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._start = time.monotonic()
        self._last = ""

    def show(self, text: str) -> None:
        elapsed_s = time.monotonic() - self._start
        if sys.stdout.isatty():
            print(f"\r{elapsed_s:6.1f} s {self._what}: {text:<48}", end="", flush=True)
        elif text != self._last:
            say(f"{elapsed_s:6.1f} s {self._what}: {text}")
        self._last = text

    def done(self) -> None:
        if sys.stdout.isatty():
            print()


def elapsed_s() -> float:
    """Since this program began."""
    return time.monotonic() - _began
