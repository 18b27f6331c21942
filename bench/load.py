"""A node under load: warm prologues per second, and what our own processes take of the host's memory per guest.

A prologue here is a whole one: interpreter, rules, cache, overlay, seed, keys, libvirt's create of the domain, verdict
and attach. The domain is created and its cpus are never started: a guest that boots would take the processors that are
measured, and no node boots 32 on two. What is left out is nothing of ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.measure import Result
from demo.cluster import Cluster
from demo.layout import NODES, USER
from demo.programs import DemoError
from lrms_vm import config as configuration
from lrms_vm import guest, teardown

ONCE = Path(__file__).with_name("prologue_once.py")
AT_ONCE = (1, 8, 32)
GOAL_MIB = 15.0
IDLE_S = 3.0


def measure(cluster: Cluster) -> list[Result]:
    return [*rates(cluster), *memory(cluster)]


def rates(cluster: Cluster) -> list[Result]:
    """Each number at once, all of the same image; the first of them has brought it in before."""
    _seconds(cluster, 1)
    results, alone = [], 0.0
    for count in AT_ONCE:
        seconds = _seconds(cluster, count)
        rate = count / seconds
        alone = alone or rate
        what = f"{count} warm prologues at once: {rate:.2f} a second, all in {seconds:.1f} s; rate alone / rate"
        results.append(Result(f"prologues-{count}-at-once", alone / rate, "ratio", 1.25, what))
    return results


def memory(cluster: Cluster) -> list[Result]:
    """Of a guest that is up, with a payload that sleeps and its working directory shared: all that is not QEMU."""
    directory = cluster.layout.home(USER)
    job_id = cluster.client().sbatch(
        "--vm-image=minimal", "--mem=700", "--time=15", script="#!/bin/sh\ntouch load-up\nsleep 600\n", cwd=directory
    )
    up = directory / "load-up"
    try:
        until = time.monotonic() + 300
        while not up.exists():
            if time.monotonic() > until:
                raise DemoError(f"job {job_id}: its payload never ran")
            time.sleep(0.2)
        time.sleep(IDLE_S)
        node = cluster.job_info(job_id).nodes
        taken = of_job(f"slurm-{job_id}.{node}", str(cluster.layout.places(node).job(f"slurm-{job_id}.{node}").run))
    finally:
        cluster.client().cancel(job_id)
        cluster.wait_job(job_id, timeout_s=120)
        up.unlink(missing_ok=True)
    of_guest = [(name, kib) for name, kib in taken if not name.startswith("python")]
    payload = sum(kib for name, kib in taken if name.startswith("python")) / 1024
    total = sum(kib for _, kib in of_guest) / 1024
    parts = ", ".join(f"{name} {kib / 1024:.1f}" for name, kib in of_guest)
    what = f"our processes on the host for an idle guest, PSS: {parts}"
    return [
        Result("memory-per-guest", total, "MiB", GOAL_MIB, what),
        Result("memory-per-payload", payload, "MiB", GOAL_MIB, "and `exec` in the job's step, PSS"),
    ]


def of_job(key: str, job_dir: str) -> list[tuple[str, int]]:
    """(program, KiB of PSS) of each of a job's processes on the host that is not the hypervisor's (proc(5)).

    Proportional: a page that ten processes share counts as a tenth for each.
    """
    found = []
    for directory in _processes():
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
            environment = (directory / "environ").read_bytes().split(b"\0")
            rollup = (directory / "smaps_rollup").read_text()
        except OSError:
            continue  # ended meanwhile, or a kernel thread
        program = Path(os.fsdecode(words[0])).name
        verdict = f"verdicts/{key}.json"
        ours = f"LRMS_VM_KEY={key}".encode() in environment or any(
            job_dir in os.fsdecode(word) or verdict in os.fsdecode(word) for word in words
        )
        if ours and not program.startswith("qemu"):
            found.append((program, pss_kib(rollup)))
    return found


def pss_kib(rollup: str) -> int:
    """Of smaps_rollup.

    >>> pss_kib("00400000-7ffe00 ---p 00000000 00:00 0    [rollup]\\nRss:  9 kB\\nPss:   7 kB\\nPss_Anon: 3 kB\\n")
    7
    """
    return next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)


def _processes() -> Iterator[Path]:
    return (Path("/proc", name) for name in os.listdir("/proc") if name.isdigit())


def _seconds(cluster: Cluster, count: int) -> float:
    """From the start of the first to the end of the last; nothing stays."""
    layout = cluster.layout
    config = configuration.load(layout.config(NODES[0]))
    hypervisor = guest.Libvirt(config.libvirt_uri)
    base = time.monotonic_ns() % 10**9
    keys = [f"slurm-{base + number}.bench" for number in range(count)]
    argv = [str(word) for word in (layout.python, "-I", ONCE, layout.config(NODES[0]), "minimal", layout.home(USER))]
    try:
        start = time.perf_counter()
        started = [
            subprocess.Popen(
                [*argv, str(base + number), "--paused"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            for number in range(count)
        ]
        said = [process.communicate()[1] for process in started]
        seconds = time.perf_counter() - start
    finally:
        left = [item for key in keys for item in _undone(lambda key=key: _teardown(config, hypervisor, key))]
    failed = [
        text.decode(errors="replace")[-500:] for process, text in zip(started, said, strict=True) if process.returncode
    ]
    if failed or left:
        raise DemoError(f"{len(failed)} of {count} prologues failed: {' '.join(failed[:1])}; {'; '.join(left)}")
    return seconds


def _teardown(config: configuration.Config, hypervisor: guest.Hypervisor, key: str) -> list[str]:
    with teardown.locked(config.places, key, deadline=time.monotonic() + 10):
        deadline = time.monotonic() + 60
        return [
            str(one) for one in teardown.teardown(key, places=config.places, hypervisor=hypervisor, deadline=deadline)
        ]


def _undone(action: Callable[[], list[str]]) -> list[str]:
    try:
        return action()
    except Exception as error:  # the others are undone all the same
        return [str(error)]


def main() -> int:
    """The load table alone: `python -m bench.load`."""
    from bench.measure import table
    from demo import site
    from demo.layout import default_base

    cluster = Cluster(default_base())
    site.bring_up(cluster, ["minimal"])
    try:
        print(table(measure(cluster)))
    finally:
        cluster.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
