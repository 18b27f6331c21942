"""What a node counts of its jobs, and how Prometheus is told: counters as values, and the text format. Pure.

The text is version 0.0.4 (prometheus.io, "Exposition formats"); node_exporter's textfile collector reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from lrms_vm.values import dataclass

VERSION = 1
BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
# Of the prologue and after it, in the order they happen; what else a history has is counted as "other".
PHASES = (
    *("fetch", "verify", "kernel", "overlay", "network", "seed", "render", "cgroup", "create", "hand_over"),
    *("guest_up", "shares", "payload", "teardown"),
)
OTHER = "other"
MAX_SEEN = 1200  # more than histories are kept
MAX_CODES = 500  # codes are ours, some a child's or a guest's: what they invent does not grow this file


@dataclass
class Times:
    """A histogram: how many took at most so long, all of them, and their sum in seconds."""

    buckets: list[int] = field(default_factory=lambda: [0] * len(BUCKETS_S))
    count: int = 0
    sum_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.buckets = [n + (seconds <= limit) for n, limit in zip(self.buckets, BUCKETS_S, strict=True)]
        self.count += 1
        self.sum_s += seconds


@dataclass
class Counters:
    """Only ever growing, until their file is lost: then all of them begin at 0 again, which Prometheus understands."""

    prologue: Times = field(default_factory=Times)
    phases: dict[str, Times] = field(default_factory=dict)
    jobs: dict[str, int] = field(default_factory=dict)  # by "complete", "incomplete": how far the prologue came
    cache: dict[str, int] = field(default_factory=dict)  # by "hit", "miss"
    fetched_bytes: int = 0
    refusals: dict[str, dict[str, int]] = field(default_factory=dict)  # by blame, by code
    leftovers: int = 0
    retries: int = 0
    seen: dict[str, float] = field(default_factory=dict)  # by key, when the prologue began: those jobs are counted

    def ended(self, history: Mapping[str, Any]) -> bool:
        """Count a job by its history (teardown.py), once: False where it is counted already.

        A job that runs here again has another start; a teardown that is done twice has the same.
        """
        key, started_at = str(history.get("key", "")), _number(history.get("started_at"))
        if not key or self.seen.get(key) == started_at:
            return False
        self.seen.pop(key, None)
        self.seen[key] = started_at
        self.seen = dict(list(self.seen.items())[-MAX_SEEN:])
        _count(self.jobs, "complete" if history.get("complete") is True else "incomplete")
        for name, ms in _mapping(history.get("phases_ms")).items():
            phase = str(name).replace(" ", "_")
            self.phases.setdefault(phase if phase in PHASES else OTHER, Times()).add(_number(ms) / 1e3)
        if "prologue_s" in history:
            self.prologue.add(_number(history["prologue_s"]))
        if history.get("cache") in ("hit", "miss"):
            _count(self.cache, history["cache"])
        self.fetched_bytes += int(_number(history.get("fetched_bytes")))
        return True

    def refused(self, blame: str, code: str) -> None:
        codes = self.refusals.setdefault(blame, {})
        _count(codes, code if code in codes or len(codes) < MAX_CODES else OTHER)


@dataclass(frozen=True)
class Gauge:
    """How something stands now: one value for each value of one label, or one without."""

    name: str
    help: str
    values: Mapping[str, float]
    label: str = ""


def write(counters: Counters) -> bytes:
    """The file's bytes."""
    words = {"version": VERSION, **{name: getattr(counters, name) for name in _PLAIN}}
    words["prologue"] = vars(counters.prologue)
    words["phases"] = {name: vars(times) for name, times in counters.phases.items()}
    return json.dumps(words).encode()


def read(text: bytes) -> Counters:
    """Back again. What cannot be read counts as nothing: a lost count stops no job."""
    try:
        words = json.loads(text)
        if words["version"] != VERSION:
            return Counters()
        return Counters(
            prologue=_times(words["prologue"]),
            phases={str(name): _times(times) for name, times in words["phases"].items()},
            jobs=_counts(words["jobs"]),
            cache=_counts(words["cache"]),
            fetched_bytes=int(words["fetched_bytes"]),
            refusals={str(blame): _counts(codes) for blame, codes in words["refusals"].items()},
            leftovers=int(words["leftovers"]),
            retries=int(words["retries"]),
            seen={str(key): float(at) for key, at in words["seen"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return Counters()


def text(counters: Counters, gauges: Sequence[Gauge] = ()) -> str:
    """The page, every line ended.

    >>> print(text(Counters(retries=2)).partition("# HELP lrms_vm_retries")[2].splitlines()[2])
    lrms_vm_retries_total 2
    """
    phases = [(f'phase="{name}"', counters.phases[name]) for name in (*PHASES, OTHER) if name in counters.phases]
    lines = [
        *_histogram("prologue_seconds", "Prologues that made a guest.", [("", counters.prologue)]),
        *_histogram("phase_seconds", "Phases of ended jobs; the users' own word: guest_up, shares, payload.", phases),
        *_counter("jobs_total", "Ended jobs, by how far the prologue came.", _rows("prologue", counters.jobs)),
        *_counter("cache_total", "Images of jobs, there (hit) or not (miss).", _rows("found", counters.cache)),
        *_counter("fetched_bytes_total", "Received for jobs whose image passed.", {"": counters.fetched_bytes}),
        *_counter(
            "refusals_total",
            "Prologues that made no guest, by whose fault and code.",
            {
                f'blame="{_escaped(blame)}",code="{_escaped(code)}"': number
                for blame, codes in sorted(counters.refusals.items())
                for code, number in sorted(codes.items())
            },
        ),
        *_counter("leftovers_total", "Things that a teardown could not remove.", {"": counters.leftovers}),
        *_counter("retries_total", "Jobs sent back to run elsewhere or later.", {"": counters.retries}),
    ]
    for gauge in gauges:
        lines += _family(gauge.name, "gauge", gauge.help, _rows(gauge.label, gauge.values))
    return "".join(f"{line}\n" for line in lines)


_PLAIN = ("jobs", "cache", "fetched_bytes", "refusals", "leftovers", "retries", "seen")


def _histogram(name: str, help: str, series: Sequence[tuple[str, Times]]) -> list[str]:
    lines = _head(name, "histogram", help)
    for labels, times in series:
        comma = f"{labels}," if labels else ""
        for limit, number in zip((*map(str, BUCKETS_S), "+Inf"), (*times.buckets, times.count), strict=True):
            lines.append(f'lrms_vm_{name}_bucket{{{comma}le="{limit}"}} {number}')
        braces = f"{{{labels}}}" if labels else ""
        lines += [f"lrms_vm_{name}_sum{braces} {times.sum_s:.6g}", f"lrms_vm_{name}_count{braces} {times.count}"]
    return lines


def _counter(name: str, help: str, rows: Mapping[str, float]) -> list[str]:
    return _family(name, "counter", help, rows)


def _family(name: str, kind: str, help: str, rows: Mapping[str, float]) -> list[str]:
    named = [(f"{{{labels}}}" if labels else "", value) for labels, value in rows.items()]
    return [*_head(name, kind, help), *(f"lrms_vm_{name}{labels} {value}" for labels, value in named)]


def _head(name: str, kind: str, help: str) -> list[str]:
    return [f"# HELP lrms_vm_{name} {help}", f"# TYPE lrms_vm_{name} {kind}"]


def _rows(label: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f'{label}="{_escaped(name)}"' if label else "": value for name, value in sorted(values.items())}


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _counts(words: Mapping[str, Any]) -> dict[str, int]:
    return {str(name): int(number) for name, number in words.items()}


def _times(words: Mapping[str, Any]) -> Times:
    buckets = [int(number) for number in words["buckets"]]
    if len(buckets) != len(BUCKETS_S):
        raise ValueError("other buckets")
    return Times(buckets, int(words["count"]), float(words["sum_s"]))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float:
    """What is no number, or none that can be added up, counts as nothing."""
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e18 else 0.0
