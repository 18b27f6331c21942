"""`make soak`: a real Slurm with real guests, and random faults from a printed seed; every job is accounted for.

    python -m tests.soak --jobs 200 --seed 7

Ends with 0 when each job ended as its fault lets it end and nothing of any is left; build/soak/results.json has the
table. The same seed makes the same plan; when which fault meets which moment is the machine's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from demo import hypervisor, jobs, leftovers, site
from demo.cluster import Cluster
from demo.jobs import JobInfo
from demo.layout import CHECKOUT, NODES, USER, default_base
from demo.programs import DemoError
from demo.progress import say
from tests.soak.plan import Planned, plan

RESULTS = CHECKOUT / "build" / "soak" / "results.json"
AT_ONCE = 4
JOB_TIMEOUT_S = 420
POLL_S = 0.3


@dataclass
class Run:
    """A job that was submitted."""

    planned: Planned
    job_id: int
    since: float
    running_since: float = 0.0
    told: str = ""  # when the fault came; empty: not at all, or not yet
    info: JobInfo | None = None
    wrong: str = ""
    threads: list[threading.Thread] = field(default_factory=list)

    @property
    def key(self) -> str:
        return f"slurm-{self.job_id}.{self.info.nodes if self.info else ''}"


class Soak:
    def __init__(self, cluster: Cluster, planned: list[Planned]) -> None:
        self.cluster, self.waiting = cluster, list(planned)
        self.active: list[Run] = []
        self.ended: list[Run] = []
        self.drained: list[str] = []
        self.directory = cluster.layout.home(USER)

    def run(self) -> None:
        total = len(self.waiting)
        while self.waiting or self.active:
            while self.waiting and len(self.active) < AT_ONCE:
                self.submit(self.waiting.pop(0))
            for run in list(self.active):
                self.look(run)
                if run in self.ended:
                    self.active.remove(run)
                    said = f"{run.wrong or 'as expected'}"
                    say(f"  {len(self.ended):3}/{total} job {run.job_id}: {run.planned.kind.name} {run.told}: {said}")
            self.take_back()
            time.sleep(POLL_S)

    def submit(self, planned: Planned) -> None:
        image = {"an ordinary job": [], "an unknown image": ["--vm-image=no-such-image"]}
        options = image.get(planned.kind.name, ["--vm-image=minimal"])
        memory = "--mem=700" if planned.has_guest else "--mem=100"
        output = f"--output={self.directory}/soak-%j.out"
        job_id = self.cluster.client().sbatch(
            memory, "--time=15", output, *options, script=planned.script, cwd=self.directory
        )
        run = Run(planned, job_id, time.monotonic())
        if planned.kind.name == "prologue killed":
            run.threads.append(threading.Thread(target=self.kill_prologue, args=(run,), daemon=True))
            run.threads[0].start()
        self.active.append(run)

    def look(self, run: Run) -> None:
        with contextlib.suppress(DemoError):  # a controller that is busy
            run.info = self.cluster.job_info(run.job_id)
        info, now = run.info, time.monotonic()
        if info is None:
            return
        if info.state == "RUNNING" and not run.running_since:
            run.running_since = now
        if info.state == "PENDING" and info.restarts:
            self.start_again(run)
        elif now - run.since > JOB_TIMEOUT_S and not info.ended:
            run.wrong = f"still {info.state} ({info.reason}) after {JOB_TIMEOUT_S} s"
            self.cluster.client("root").cancel(run.job_id)
            run.since = now
        elif not run.told:
            self.inject(run, info)
        if info.ended:
            for thread in run.threads:
                thread.join(30)
            ended = (info.state, info.exit_code, info.restarts, info.output())
            run.wrong = run.wrong or run.planned.wrong(*ended, injected=bool(run.told))
            self.ended.append(run)

    def inject(self, run: Run, info: JobInfo) -> None:
        name, now = run.planned.kind.name, time.monotonic()
        if name == "scancel" and now > run.since + run.planned.after_s:
            self.cluster.client().cancel(run.job_id)
            self.told(run)
        if not run.running_since or now < run.running_since + run.planned.after_s or info.state != "RUNNING":
            return
        if name == "qemu killed" and (pid := _number(Path(f"/run/libvirt/qemu/lrms_vm-{run.key}.pid"))):
            os.kill(pid, signal.SIGKILL)
            self.told(run)
        elif name == "requeue":
            with contextlib.suppress(DemoError):  # it may have ended just now
                jobs.control(self.cluster.layout, "requeue", str(run.job_id))
                self.told(run)
        elif name == "libvirtd stopped 5 s" and (pid := _libvirtd(self.cluster)):
            os.kill(pid, signal.SIGSTOP)
            self.later(run, 5, lambda: os.kill(pid, signal.SIGCONT))
            self.told(run)
        elif name == "slurmd killed" and not self.a_prologue_runs():
            slurmd = self.cluster.slurmd(info.nodes)
            if (pid := slurmd.pid) is not None:
                os.kill(pid, signal.SIGKILL)
                self.later(run, 2, slurmd.start)
                self.told(run)

    def a_prologue_runs(self) -> bool:
        """A slurmd that dies then costs its job five minutes (reference/slurm-measured.md 4): a test of its own."""
        return any(
            run.info is not None and (run.info.state == "CONFIGURING" or run.info.reason == "Prolog")
            for run in self.active
        )

    def kill_prologue(self, run: Run) -> None:
        delay_s = random.Random(run.planned.after_s).uniform(0, 0.8)
        until = time.monotonic() + JOB_TIMEOUT_S
        while time.monotonic() < until and run not in self.ended:
            if pid := _prologue_of(run.job_id):
                time.sleep(delay_s)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    run.told = f"{delay_s * 1e3:.0f} ms after its start"
                    return
                run.told = "came too late"
                return
            time.sleep(0.02)

    def later(self, run: Run, seconds: float, action: Callable[[], object]) -> None:
        def wait() -> None:
            time.sleep(seconds)
            action()

        run.threads.append(threading.Thread(target=wait))
        run.threads[-1].start()

    def told(self, run: Run) -> None:
        run.told = f"{time.monotonic() - (run.running_since or run.since):.1f} s into it"

    def start_again(self, run: Run) -> None:
        """Slurm keeps a job that it put back until its credential is over, or for good. Not sooner: docs/slurm.md."""
        if run.info is not None and "held" in run.info.reason.lower():
            with contextlib.suppress(DemoError):
                jobs.control(self.cluster.layout, "release", str(run.job_id))

    def take_back(self) -> None:
        for node in NODES:
            with contextlib.suppress(DemoError):
                state, reason = self.cluster.node_state(node)
                if "DRAIN" in state or "DOWN" in state:
                    self.drained.append(f"{node}: {reason}")
                    jobs.control(self.cluster.layout, "update", f"nodename={node}", "state=resume")

    def left(self) -> list[str]:
        """Of all jobs, on both nodes."""
        found = [f"domain {name}" for name in hypervisor.domains() if name.startswith(hypervisor.DOMAIN_PREFIX)]
        for run in self.ended:
            found += leftovers.search(self.cluster.layout, run.job_id)
        return found


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _libvirtd(cluster: Cluster) -> int | None:
    return hypervisor.daemons(cluster.layout)[1].pid or _number(Path("/run/libvirtd.pid"))


def _prologue_of(job_id: int) -> int | None:
    for directory in leftovers.entries(Path("/proc")):
        with contextlib.suppress(OSError):
            if b"prologue" in (directory / "cmdline").read_bytes().split(b"\0"):
                environment = (directory / "environ").read_bytes().split(b"\0")
                if f"SLURM_JOB_ID={job_id}".encode() in environment:
                    return int(directory.name)
    return None


def table(runs: list[Run]) -> str:
    rows = [("job", "injected", "when", "ended", "expected", "")]
    for run in runs:
        info = run.info
        ended = (
            f"{info.state} {info.exit_code}" + (f", {info.restarts} restarts" if info.restarts else "") if info else "?"
        )
        rows.append(
            (str(run.job_id), run.planned.kind.name, run.told, ended, run.planned.kind.expected, run.wrong and "WRONG")
        )
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--slice", default=":", metavar="A:B", help="only these of the plan's jobs, counted from 0")
    args = parser.parse_args(words)
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(10**6)
    say(f"soak: {args.jobs} jobs, seed {seed}")
    cluster = Cluster(default_base())
    site.bring_up(cluster, ["minimal"])
    planned = plan(args.jobs, seed)[slice(*(int(word) if word else None for word in args.slice.split(":")))]
    soak, start = Soak(cluster, planned), time.monotonic()
    left: list[str] = []
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        soak.run()
        until, left = time.monotonic() + 60, soak.left()
        while left and time.monotonic() < until:
            time.sleep(1)
            left = soak.left()
    except KeyboardInterrupt:
        say("interrupted: what had ended by now")
        print(table(soak.ended), flush=True)
    finally:
        stayed = cluster.stop()
    wrong = [run for run in soak.ended if run.wrong]
    say("\n" + table(soak.ended))
    for line in soak.drained:
        say(f"drained: {line}")
    for line in [*left, *stayed]:
        say(f"LEFT: {line}")
    say(
        f"\n{len(soak.ended)} of {len(planned)} jobs accounted for, {len(wrong)} wrong, {len(left) + len(stayed)} leftovers, "
        f"{time.monotonic() - start:.0f} s; seed {seed}"
    )
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"job": run.job_id, "injected": run.planned.kind.name, "when": run.told, "wrong": run.wrong}
        | ({"state": run.info.state, "exit_code": run.info.exit_code} if run.info else {})
        for run in soak.ended
    ]
    RESULTS.write_text(
        json.dumps(
            {"seed": seed, "slice": args.slice, "jobs": rows, "left": left + stayed, "drained": soak.drained}, indent=1
        )
    )
    return 1 if wrong or left or stayed or len(soak.ended) != len(planned) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
