"""A job's phases as text: how long each took, and when. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from lrms_vm.report import PHASES

WIDTH = 40


def render(phases_ms: Mapping[str, float], *, width: int = WIDTH) -> str:
    """A table with bars to scale: one line a phase, milliseconds, one after the other.

    >>> print(render({"create": 250.0, "payload": 750.0}, width=8))
    create            250 ms  ##         hypervisor starts the guest
    payload           750 ms    ######   the job's own work
    """
    order = [name for name in PHASES if name in phases_ms] + [name for name in phases_ms if name not in PHASES]
    total_ms = sum(phases_ms.values()) or 1.0
    lines, before_ms = [], 0.0
    for name in order:
        start = round(before_ms / total_ms * width)
        before_ms += phases_ms[name]
        length = max(round(before_ms / total_ms * width) - start, 0)
        bar = (" " * start + ("#" * length or "|"))[:width]
        lines.append(f"{name:<12} {phases_ms[name]:>8.0f} ms  {bar:<{width}}   {PHASES.get(name, '')}".rstrip())
    return "\n".join(lines)
