"""`make bench`: the speed goals, as ratios and differences in one run. Writes build/bench/results.json.

Needs the demo's site (it brings it up), and disk for a dense 20 GiB image and its copy in the cache; where there is
less room it uses the largest that fits and says so. A missed goal is marked, and no failure: the machine may be busy.
"""

from __future__ import annotations

import sys

from bench import cache, hooks, lists, load, prologues, tasks, trust, xen
from bench.images import Images
from bench.measure import Result, table, write_results
from demo import site
from demo.cluster import Cluster
from demo.layout import CHECKOUT, default_base
from demo.progress import say, step

RESULTS = CHECKOUT / "build" / "bench" / "results.json"


def main() -> int:
    cluster = Cluster(default_base())
    results: list[Result] = []
    try:
        site.bring_up(cluster, ["minimal"])
        with step("hook of an ordinary job"):
            results += hooks.measure(cluster)
        with step("a task in a guest that is up"):
            results += tasks.measure(cluster)
        with step("start to payload, against qemu by hand"):
            results += prologues.start_to_payload(cluster)
        with step("a node under load"):
            results += load.measure(cluster)
        results += lists.measure()
        results += trust.measure(cluster.layout.images)
        results += cache.measure(cluster.layout.images)
        with Images(cluster.layout) as images:
            results += prologues.warm(cluster, images)
        results += xen.measure()
    finally:
        cluster.stop()
        if results:
            write_results(results, RESULTS)
    say("\n" + table(results))
    missed = [result.name for result in results if not result.held]
    say(
        f"\n{len(results) - len(missed)} of {len(results)} goals held" + "".join(f"; missed: {name}" for name in missed)
    )
    say(f"results: {RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
