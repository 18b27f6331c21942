"""`make demo`: the mission in one command.

Builds and signs a HEP image, brings up a two-node Slurm, submits `sbatch --vm-image=hep-jets examples/jets/job.sh` as
an ordinary user, shows what happens, and compares the result with the same payload outside, bit for bit.
Writes build/demo/report.json. Ends with 0 only if all of it held.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from demo import leftovers, site, timeline, users, validation
from demo.cluster import Cluster
from demo.jobs import JobInfo
from demo.layout import CHECKOUT, NODES, USER, Layout, default_base
from demo.programs import DemoError, run
from demo.progress import Waiting, elapsed_s, say, step
from demo.validation import Validation

IMAGE = "hep-jets"
JOB_SCRIPT = CHECKOUT / "examples" / "jets" / "job.sh"
REPORT = CHECKOUT / "build" / "demo" / "report.json"
JOB_TIMEOUT_S = 600


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", action="store_true", help="leave the cluster up (make demo KEEP=1)")
    args = parser.parse_args(words)
    if os.geteuid() != 0:
        print("demo: needs root, for users, daemons and the hypervisor: sudo make demo", file=sys.stderr)
        return 77
    signal.signal(signal.SIGTERM, _interrupt)
    cluster = Cluster(default_base())
    keep = interrupted = False
    try:
        problems = demonstrate(cluster)
        keep = args.keep
    except DemoError as error:
        problems = [str(error)]
    except KeyboardInterrupt:
        say("\ninterrupted: cleaning up")
        problems = ["interrupted"]
        interrupted = True
    finally:
        if not keep:
            with step("stop what was started"):
                left = cluster.stop()
    if keep:
        say(how_to_use(cluster.layout))
    else:
        problems += [f"left after the end: {line}" for line in left]
    for problem in problems:
        print(f"demo: {problem}", file=sys.stderr)
    say(f"{'demo failed' if problems else 'all of it held'} after {elapsed_s():.0f} s; report: {REPORT}")
    return 130 if interrupted else 1 if problems else 0


def demonstrate(cluster: Cluster) -> list[str]:
    """Everything up to the report; return what did not hold."""
    layout = cluster.layout
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.unlink(missing_ok=True)
    site.bring_up(cluster, [IMAGE])
    with step("the payload's packages outside any guest, to compare with"):
        validation.make_outside(layout)
    directory = _work_directory(layout)
    job = _run_job(cluster, directory)
    say("\n--- the job's own output " + "-" * 55)
    say(job.output().rstrip())
    say("-" * 80 + "\n")
    history = _history(layout, job.job_id)
    phases_ms: dict[str, float] = history.get("phases_ms", {})
    say(timeline.render(phases_ms) + "\n")
    problems = (
        [] if (job.state, job.exit_code) == ("COMPLETED", "0:0") else [f"job {job.job_id}: {job.state} {job.exit_code}"]
    )
    problems += [f"left by job {job.job_id}: {line}" for line in leftovers.search(layout, job.job_id)]
    result = directory / "jets.json"
    found = Validation(0, 0, False, "")
    picture = REPORT.with_name("jets.png")
    if result.exists():
        with step("the same payload outside"):
            outside = validation.run_outside(layout, like=result)
        found = validation.compare(result, outside)
        validation.plot(result, outside, picture)
        say(
            f"validation: {found.jets} jets in {found.events} events, in the guest and outside: "
            + ("identical, bit for bit" if found.identical else "DIFFERENT")
        )
        say(f"plot: {picture}")
    if not found.identical:
        problems.append("the result of the guest is not that of the same payload outside")
    report = {
        "job": {"id": job.job_id, "state": job.state, "exit_code": job.exit_code},
        "image": history.get("image", {}),
        "phases_ms": phases_ms,
        "validation": {"jets": found.jets, "identical": found.identical, "events": found.events},
        "plot": str(picture.relative_to(CHECKOUT)),
    }
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
    return problems


def _run_job(cluster: Cluster, directory: Path) -> JobInfo:
    """Submit as an ordinary user and watch until the epilogue is done."""
    client = cluster.client()
    job_id = client.sbatch(f"--vm-image={IMAGE}", JOB_SCRIPT, cwd=directory)
    say(f"       $ sbatch --vm-image={IMAGE} {JOB_SCRIPT.relative_to(CHECKOUT)}      # as {USER}: job {job_id}")
    waiting = Waiting(f"job {job_id}")
    try:
        return cluster.wait_job(
            job_id,
            timeout_s=JOB_TIMEOUT_S,
            on_look=lambda job: waiting.show(_where_it_is(cluster.layout, job)),
        )
    finally:
        waiting.done()


def _where_it_is(layout: Layout, job: JobInfo) -> str:
    """The job's state in Slurm's words, and its guest's in ours."""
    if not job.nodes:
        return f"{job.state.lower()} ({job.reason})"
    phases = [f"{job.state.lower()} on {job.nodes}"]
    if job.state == "COMPLETING":
        return phases[0]
    for node in NODES:
        text = run([layout.command, "--config", layout.config(node), "status", "--json"], timeout_s=30)
        rows: list[dict[str, Any]] = json.loads(text)
        phases += [str(row["phase"]) for row in rows if row["job_id"] == str(job.job_id)]
    return ", ".join(phases)


def _work_directory(layout: Layout) -> Path:
    """Fresh, the user's own: what the job finds in it, the guest must have from there."""
    user = users.find(USER)
    directory = layout.home(USER) / "jets"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(JOB_SCRIPT.parent, directory)
    run(["chown", "-R", f"{user.uid}:{user.gid}", directory])
    return directory


def _history(layout: Layout, job_id: int) -> dict[str, Any]:
    """What the teardown kept of the job, on whichever node it ran."""
    for node in NODES:
        path = layout.places(node).history / f"slurm-{job_id}.{node}.json"
        if path.exists():
            kept: dict[str, Any] = json.loads(path.read_text())
            return kept
    raise DemoError(f"job {job_id}: no history on {', '.join(NODES)}; was it in a guest at all?")


def how_to_use(layout: Layout) -> str:
    return f"""
The cluster is up. As its ordinary user, on this machine:

    su - {USER}                                 (or: setpriv --reuid={USER} --regid={USER} --init-groups sh)
    export SLURM_CONF={layout.slurm_conf()}
    srun --vm-image={IMAGE} uname -a            a command in a guest
    salloc --vm-image={IMAGE}                   a guest for a while; srun in it
    sinfo; squeue; {layout.command} --config {layout.config(NODES[0])} status

Logs: {layout.log}. Stop it with `make demo-stop`; remove everything with `make clean-demo`.
"""


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
