"""Pictures of where the time went: a job's phases, or the jobs of a node, as SVG text. Pure; times are given.

Every text that is not ours is escaped, and no number is drawn outside its frame: some are the users' own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape

from lrms_vm.values import dataclass

# In the order they happen: what it is, in words. The first ten are the prologue's.
PHASES = {
    "fetch": "image into the cache",
    "verify": "signature, chain, CRLs, policy",
    "kernel": "the site's kernel is the one it names",
    "overlay": "the job's own disk",
    "network": "the guest's network",
    "seed": "user, keys and shares for the guest",
    "render": "domain description, checked",
    "cgroup": "the job's limits, for the guest",
    "create": "hypervisor starts the guest",
    "hand over": "verdict and keys to the user",
    "guest_up": "guest boots and answers",
    "shares": "directories of the host",
    "payload": "the job's own work",
    "teardown": "guest and files removed",
}
LATER = ("guest_up", "shares", "payload", "teardown")
# Okabe and Ito's colours, which everybody can tell apart.
COLOURS = {
    "prologue": "#E69F00",
    "guest_up": "#56B4E9",
    "shares": "#0072B2",
    "payload": "#009E73",
    "teardown": "#D55E00",
}
NAMES = {"prologue": "prologue", "guest_up": "boot", "shares": "shares", "payload": "payload", "teardown": "teardown"}
WIDTH, LEFT, RIGHT, ROW = 960, 250, 100, 22
_STEPS_S = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400)


@dataclass(frozen=True)
class Job:
    """What a history or a record says of a job; times are time.time() and milliseconds."""

    key: str
    user: str
    image: str
    started_at: float
    ended_at: float
    phases_ms: Mapping[str, float]

    @property
    def segments_ms(self) -> dict[str, float]:
        """The prologue as one, and what came after it."""
        later = {name: self.phases_ms[name] for name in LATER if name in self.phases_ms}
        return {"prologue": sum(ms for name, ms in self.phases_ms.items() if name not in LATER), **later}


def of_job(job: Job) -> str:
    """Two panels to scale: the whole job, and its prologue phase by phase."""
    known = [name for name in PHASES if name in job.phases_ms] + [n for n in job.phases_ms if n not in PHASES]
    prologue = [
        (name, job.phases_ms[name], PHASES.get(name, ""), COLOURS["prologue"]) for name in known if name not in LATER
    ]
    whole = [
        (NAMES[name], ms, PHASES.get(name, "before the job starts"), COLOURS[name])
        for name, ms in job.segments_ms.items()
    ]
    span_s = max(0.0, job.ended_at - job.started_at)
    began = _clock(job.started_at, "%Y-%m-%d %H:%M:%S UTC")
    head = f"{job.image or 'no image'} · {job.user or '?'} · began {began} · {duration(span_s * 1e3)} in all"
    parts = [_text(20, 32, job.key, size=18, bold=True), _text(20, 54, head, colour="#555")]
    at = 80.0
    for title, rows in (("The whole job", whole), ("Its prologue", prologue)):
        drawn, height = _panel(title, rows, at)
        parts += drawn
        at += height + 24
    return _page(parts, at)


def of_node(node: str, jobs: Sequence[Job]) -> str:
    """One row a job on a common axis of time, the oldest first."""
    jobs = sorted(jobs, key=lambda job: (job.started_at, job.key))
    parts = [_text(20, 32, f"{node}: {len(jobs)} jobs", size=18, bold=True)]
    if not jobs:
        return _page([*parts, _text(20, 60, "none so far", colour="#555")], 80)
    begin, end = jobs[0].started_at, max(jobs[-1].started_at, *(job.ended_at for job in jobs))
    width, top = WIDTH - LEFT - RIGHT, 96
    span_s = max(end - begin, 1e-3)
    at = LEFT
    for name, colour in COLOURS.items():
        parts += [_bar(at, 50, 12, 12, colour), _text(at + 17, 60, NAMES[name], colour="#555")]
        at += 90
    parts += [_bar(at, 50, 12, 12, "#DDD"), _text(at + 17, 60, "guest there, nothing noted", colour="#555")]
    parts += _axis(begin, span_s, top, top + ROW * len(jobs))
    for number, job in enumerate(jobs):
        y = top + ROW * number
        label = job.key if len(job.key) < 34 else job.key[:31] + "..."
        parts.append(_text(LEFT - 10, y + 15, label, anchor="end", title=f"{job.key} {job.user} {job.image}"))
        start, length = job.started_at - begin, max(0.0, job.ended_at - job.started_at)
        parts.append(_bar(LEFT + start / span_s * width, y + 4, length / span_s * width, 14, "#DDD"))
        for name, segment_start, segment in _placed(job):
            x, w = LEFT + (start + segment_start) / span_s * width, segment / span_s * width
            parts.append(_bar(x, y + 4, w, 14, COLOURS[name], f"{NAMES[name]}: {duration(segment * 1e3)}"))
        parts.append(_text(WIDTH - RIGHT + 10, y + 15, duration(length * 1e3), colour="#555"))
    return _page(parts, top + ROW * len(jobs) + 44)


def duration(ms: float) -> str:
    """For people, two or three digits.

    >>> [duration(ms) for ms in (0.4, 31.2, 1234, 84_000, 7_500_000)]
    ['0.4 ms', '31 ms', '1.23 s', '1 min 24 s', '2 h 05 min']
    """
    if ms < 1000:
        return f"{ms:.1f} ms" if ms < 9.95 else f"{ms:.0f} ms"
    seconds = ms / 1e3
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _clock(moment: float, form: str) -> str:
    return datetime.fromtimestamp(min(moment, 4e9), UTC).strftime(form)


def _placed(job: Job) -> list[tuple[str, float, float]]:
    """(name, start, length) in seconds from the job's start, none beyond its end; the teardown ends with the job."""
    length, at, placed = max(0.0, job.ended_at - job.started_at), 0.0, []
    for name, ms in job.segments_ms.items():
        own = min(ms / 1e3, length)
        start = length - own if name == "teardown" else min(at, length)
        own = min(own, length - start)
        placed.append((name, start, own))
        at = start + own
    return placed


def _panel(title: str, rows: Sequence[tuple[str, float, str, str]], top: float) -> tuple[list[str], float]:
    total_ms = sum(ms for _, ms, _, _ in rows)
    parts = [_text(20, top + 14, f"{title}: {duration(total_ms)}", size=14, bold=True)]
    width, before_ms = WIDTH - LEFT - RIGHT, 0.0
    bottom = top + 26 + ROW * len(rows)
    parts += [_line(LEFT + width * share, top + 24, bottom) for share in (0, 0.25, 0.5, 0.75, 1)]
    for number, (name, ms, words, colour) in enumerate(rows):
        y = top + 26 + ROW * number
        x, length = LEFT + before_ms / (total_ms or 1) * width, ms / (total_ms or 1) * width
        before_ms += ms
        parts.append(_text(20, y + 15, name))
        parts.append(_text(LEFT - 10, y + 15, duration(ms), anchor="end"))
        parts.append(_bar(x, y + 4, length, 14, colour, f"{name}: {duration(ms)}"))
        room_right = LEFT + width - (x + length)
        if room_right > 6.2 * len(words) + 6:
            parts.append(_text(x + max(length, 2) + 6, y + 15, words, colour="#777"))
        elif x - LEFT > 6.2 * len(words) + 6:
            parts.append(_text(x - 6, y + 15, words, colour="#777", anchor="end"))
    return parts, bottom - top


def _axis(begin: float, span_s: float, top: float, bottom: float) -> list[str]:
    step = next((step for step in _STEPS_S if span_s / step <= 8), _STEPS_S[-1] * (1 + int(span_s / 8 / _STEPS_S[-1])))
    form = "%m-%d %H:%M" if span_s > 86400 else "%H:%M" if step >= 60 else "%H:%M:%S"
    parts, moment = [], -(-begin // step) * step
    while moment <= begin + span_s:
        x = LEFT + (moment - begin) / span_s * (WIDTH - LEFT - RIGHT)
        parts += [
            _line(x, top, bottom),
            _text(x, bottom + 18, _clock(moment, form), anchor="middle"),
        ]
        moment += step
    date = _clock(begin, "%Y-%m-%d, UTC")
    return [*parts, _text(20, bottom + 18, date, colour="#555")]


def _page(parts: Sequence[str], height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {WIDTH} {height:.0f}" font-family="DejaVu Sans, Helvetica, Arial, sans-serif">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n' + "".join(f"{part}\n" for part in parts) + "</svg>\n"
    )


def _bar(x: float, y: float, width: float, height: float, colour: str, title: str = "") -> str:
    told = f"<title>{_clean(title)}</title>" if title else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1.5):.1f}" height="{height}" fill="{colour}">{told}</rect>'
    )


def _line(x: float, top: float, bottom: float) -> str:
    return f'<line x1="{x:.1f}" y1="{top:.1f}" x2="{x:.1f}" y2="{bottom:.1f}" stroke="#E4E4E4"/>'


def _text(
    x: float, y: float, text: str, *, size: int = 12, bold: bool = False, colour: str = "#222",
    anchor: str = "start", title: str = "",
) -> str:  # fmt: skip
    weight = ' font-weight="bold"' if bold else ""
    told = f"<title>{_clean(title)}</title>" if title else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"{weight}>'
        f"{_clean(text)}{told}</text>"
    )


def _clean(text: str) -> str:
    return escape("".join(letter if letter.isprintable() else "?" for letter in text[:200]))
