"""What the systems' options have in common: paths with their marks, durations, options as words. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from lrms_vm.errors import UsageError

JOB, INDEX = "{job}", "{index}"


def path(text: str, where: str, *, job: str | None, index: str | None) -> str:
    """A path with this system's own marks in place of ours. Raises `UsageError` where it has none.

    >>> path("out/{job}.{index}", "stdout_path", job="%A", index="%a")
    'out/%A.%a'
    """
    for mark, theirs in ((JOB, job), (INDEX, index)):
        if mark in text:
            if theirs is None:
                raise UsageError(
                    f"{where}: {text[:60]!r}: {mark} cannot be said here", hint="leave it out", code="carrier-unfit"
                )
            text = text.replace(mark, theirs)
    return text


def seconds(duration: timedelta) -> int:
    """Whole seconds, rounded up."""
    return -(-duration // timedelta(seconds=1))


def clock(duration: timedelta) -> str:
    """
    >>> clock(timedelta(hours=30, seconds=5))
    '30:00:05'
    """
    minutes, second = divmod(seconds(duration), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


def option_words(options: Iterable[tuple[str, str]]) -> list[str]:
    """Options as words of a command line: --long=value, -s value; without a value where it is empty.

    >>> option_words([("comment", "a b"), ("l", "mem=1gb"), ("hold", "")])
    ['--comment=a b', '-l', 'mem=1gb', '--hold']
    """
    words = []
    for name, value in options:
        if len(name) > 1:
            words.append(f"--{name}={value}" if value else f"--{name}")
        else:
            words += [f"-{name}", value] if value else [f"-{name}"]
    return words


def merged(ours: Iterable[tuple[str, str]], theirs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Ours, then the user's own; the same option in both is refused (`-l` may stand more than once).

    Raises `UsageError`.
    """
    first = [(name, value) for name, value in ours]
    for name, value in theirs:
        if name != "l" and any(name == known for known, _ in first):
            raise UsageError(
                f"custom_attributes: {name}={value[:60]!r} says what the description says too",
                hint="leave one out",
                code="description-unreadable",
            )
        first.append((name, value))
    return first
