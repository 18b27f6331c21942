"""On the Xen node: the prologue's start to a payload's first line, against `xl create` by hand of the same guest.

Only where the node's disk is made (`make xen-node`): to build it for one number would take longer than all the others.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from bench.measure import Result
from demo.layout import USER
from demo.machine import claim
from demo.programs import DemoError
from demo.progress import say, step
from demo.xen_cluster import XenCluster

ONCE = Path(__file__).with_name("xen_once.py")
IMAGE = "hep-jets"
TIMES = 3
ONCE_TIMEOUT_S = 900


def measure() -> list[Result]:
    """The row, or none where there is no node. One that runs is used and left. Raises `DemoError`."""
    cluster = XenCluster.default()
    if not cluster.layout.disk.exists():
        say("         xen-start-to-payload: left out, there is no Xen node here (make xen-node)")
        return []
    with claim(cluster.layout.base / ".lock"):
        found = cluster.node.daemon.pid
        cluster.start()
        try:
            with step("Xen: start to payload, against xl create by hand"):
                pairs = [_pair(cluster) for _ in range(TIMES + 1)][1:]  # the first fills the node's cache
        finally:
            if cluster.node.daemon.pid != found:
                cluster.stop()
    return [result(pairs)]


def result(pairs: list[tuple[float, float]]) -> Result:
    """Medians of each; pairs of (ours, by hand) in seconds."""
    ours, theirs = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    what = f"Xen: prologue to first line ({ours:.1f} s) / xl create by hand to login ({theirs:.1f} s)"
    return Result("xen-start-to-payload", ours / theirs, "ratio", 1.15, what)


def _pair(cluster: XenCluster) -> tuple[float, float]:
    layout = cluster.layout
    record = json.loads((layout.site.images / f"{IMAGE}.build.json").read_text())
    sha256 = record["files"][f"{IMAGE}.raw"]["sha256"]
    done = cluster.node.call(
        f"python3 - {USER} {layout.home(USER)} {IMAGE} {sha256}",
        stdin=ONCE.read_bytes(),
        timeout_s=ONCE_TIMEOUT_S,
        check=True,
    )
    try:
        said = json.loads(done.stdout)
        return float(said["ours_s"]), float(said["theirs_s"])
    except (ValueError, KeyError, TypeError) as error:
        raise DemoError(f"x1: unreadable: {done.stdout[-300:]!r}") from error
