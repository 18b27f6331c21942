from __future__ import annotations

import io
from typing import Any

from lrms_vm.cli.progress import Progress

MIB = 1 << 20


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def told(stream: io.StringIO, total: int | None, steps: list[tuple[float, int]], **more: Any) -> str:
    clock = Clock()
    with Progress("atlas/sim", total, stream=stream, clock=clock, **more) as progress:
        for seconds, done in steps:
            clock.now += seconds
            progress(done)
    return stream.getvalue()


def test_a_terminal_sees_a_bar_the_rate_and_what_is_left() -> None:
    said = told(Terminal(), 40 * MIB, [(0, 0), (1, 10 * MIB), (1, 20 * MIB)])
    lines = said.split("\r")
    assert lines[2] == "atlas/sim  [##########..........]  50%  20 MiB of 40 MiB  10 MiB/s  0:02 left"
    assert lines[-1] == "" and set(lines[-2]) == {" "}, "the line is wiped in the end"


def test_what_is_over_at_once_says_nothing() -> None:
    assert told(Terminal(), 40 * MIB, [(0, 0), (0.1, 40 * MIB)]) == ""


def test_without_a_terminal_there_is_a_line_now_and_then_or_nothing() -> None:
    steps = [(5.0, 100 * MIB * (number + 1)) for number in range(5)]
    assert told(io.StringIO(), 1 << 30, steps) == ""
    said = told(io.StringIO(), 1 << 30, steps, lines=True)
    assert said.splitlines() == [
        "lrms-vm: atlas/sim  200 MiB of 1.0 GiB  20 MiB/s  0:41 left",
        "lrms-vm: atlas/sim  400 MiB of 1.0 GiB  20 MiB/s  0:31 left",
    ]


def test_what_was_there_before_is_not_part_of_the_rate_and_another_mirror_starts_anew() -> None:
    said = told(Terminal(), None, [(0, 500 * MIB), (1, 510 * MIB), (1, MIB), (1, 3 * MIB)])
    rates = [line.strip().split("  ")[-1] for line in said.split("\r") if "B/s" in line]
    assert rates == ["10 MiB/s", "0 B/s", "2 MiB/s"]


def test_a_name_cannot_play_with_the_terminal() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress("a\x1b[2J\rb", None, stream=stream, clock=clock)
    clock.now += 9
    progress(1)
    assert "\x1b" not in stream.getvalue() and "a?[2J?b" in stream.getvalue()
