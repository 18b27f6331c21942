"""On the Xen node: the prologue's start to a payload's first line, against `xl create` by hand of the same guest.

By instructions: the node's clock counts them (demo/xen_node.py), so the ratio is the same on a busy machine, and a
program that runs once is not charged for its translation by the emulator, which takes longer than the program.
`python -m bench.xen` measures this row alone, and `python -m bench.xen --wall` by the clock on the wall.

Only where the node's disk is made (`make xen-node`): to build it for one number would take longer than all the others.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

from bench.measure import Result
from demo.layout import USER
from demo.machine import Machine, claim
from demo.programs import DemoError
from demo.progress import say, step
from demo.xen_cluster import XenCluster

ONCE = Path(__file__).with_name("xen_once.py")
IMAGE = "hep-jets"
TIMES = 3
ONCE_TIMEOUT_S = 900


def measure(*, counted: bool = True) -> list[Result]:
    """The row; none where there is no node's disk, or the node runs. Raises `DemoError`."""
    cluster = XenCluster.default()
    if not cluster.layout.disk.exists():
        say("         xen-start-to-payload: left out, there is no Xen node here (make xen-node)")
        return []
    with claim(cluster.layout.base / ".lock"):
        if cluster.node.running:
            say("         xen-start-to-payload: left out, the Xen node runs (make xen-node-stop)")
            return []
        cluster.prepare()
        node = replace(cluster.node, counted=counted)
        try:
            with step("Xen node up"):
                node.start()
            with step("Xen: start to payload, against xl create by hand"):
                pairs = [_pair(cluster, node) for _ in range(TIMES + 1)][1:]  # the first fills the node's cache
        finally:
            node.stop()
    return [result(pairs)]


def result(pairs: list[tuple[float, float]]) -> Result:
    """Medians of each; pairs of (ours, by hand) in seconds."""
    ours, theirs = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    what = f"Xen: prologue to first line ({ours:.2f} s) / xl create by hand to login ({theirs:.2f} s)"
    return Result("xen-start-to-payload", ours / theirs, "ratio", 1.15, what)


def _pair(cluster: XenCluster, node: Machine) -> tuple[float, float]:
    layout = cluster.layout
    record = json.loads((layout.site.images / f"{IMAGE}.build.json").read_text())
    sha256 = record["files"][f"{IMAGE}.raw"]["sha256"]
    done = node.call(
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


if __name__ == "__main__":
    for row in measure(counted="--wall" not in sys.argv[1:]):
        say(f"{row.value:.3f}  {row.what}")
