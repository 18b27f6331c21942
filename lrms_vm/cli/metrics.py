"""`lrms-vm metrics`: what this node has counted and how it stands, for Prometheus."""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from pathlib import Path

from lrms_vm import config as configuration
from lrms_vm import counters, metrics, store, upkeep
from lrms_vm.cli.status import rows_of
from lrms_vm.errors import NodeError, UsageError
from lrms_vm.paths import Places

STATES = ("prologue", "booting", "up", "lost", "refused")  # of jobs; "prologue" is one that made no verdict so far


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "metrics",
        description="What this node has counted and how it stands, in Prometheus' text format. Root's.",
        epilog="example, from a timer:\n  lrms-vm metrics --write /var/lib/prometheus/node-exporter/lrms_vm.prom",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace FILE at once, mode 0644; default: stdout")
    parser.set_defaults(run=_metrics)


def _metrics(args: argparse.Namespace) -> int:
    config = configuration.load(args.config or configuration.DEFAULT_PATH, must_be_root_owned=False)
    if not os.access(config.places.state_dir, os.W_OK):
        raise UsageError("metrics: only root reads them", hint="call it as root, from a timer", code="not-root")
    page = metrics.text(counters.catch_up(config.places), gauges(config.places))
    if args.write is None:
        print(page, end="")
        return 0
    try:
        store.write_durably(args.write, page.encode(), 0o644)
    except OSError as error:
        raise NodeError(
            f"{args.write}: cannot write: {error.strerror}",
            hint="name a file in node_exporter's --collector.textfile.directory",
            code="metrics-unwritable",
        ) from error
    return 0


def gauges(places: Places) -> list[metrics.Gauge]:
    """How the node stands now. Raises `NodeError`."""
    guests = Counter(_state(row["phase"]) for row in rows_of(places))
    images = upkeep.entries(places)
    return [
        metrics.Gauge("guests", "Jobs here, by their guest's state.", {name: guests[name] for name in STATES}, "state"),
        metrics.Gauge("leftovers", "Things of ended jobs that are still there.", {"": counters.left_now(places)}),
        metrics.Gauge("cache_images", "Stored images.", {"": len(images)}),
        metrics.Gauge("cache_bytes", "What stored images take on disk.", {"": sum(one.disk_bytes for one in images)}),
        metrics.Gauge("written_seconds", "When this was written, in Unix time.", {"": round(time.time())}),
    ]


def _state(phase: str) -> str:
    """Of status' words."""
    return {"guest up": "up", "guest lost": "lost"}.get(phase, phase.partition(":")[0])
