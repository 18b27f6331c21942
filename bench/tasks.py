"""What a task in a guest that is up costs beyond the same task on the host."""

from __future__ import annotations

from bench.measure import Result, paired_medians_s
from demo.cluster import Cluster
from demo.programs import DemoError, wait_until

TIMES = 15


def measure(cluster: Cluster) -> list[Result]:
    """`srun true` into an allocation with a guest, against one without, in turn."""
    client = cluster.client()
    sleeper = "#!/bin/sh\nsleep 900\n"
    guest = client.sbatch("--vm-image=minimal", "-n1", "--mem=1000", script=sleeper)
    plain = client.sbatch("-n1", "--mem=500", script=sleeper)
    try:
        wait_until(
            "both jobs run", lambda: all(cluster.job_info(j).state == "RUNNING" for j in (guest, plain)), timeout_s=120
        )

        def task(job_id: int) -> None:
            done = client.call(["srun", f"--jobid={job_id}", "--overlap", "-n1", "true"], timeout_s=300)
            if done.returncode != 0:
                raise DemoError(f"srun in job {job_id}: exit {done.returncode}: {done.stderr.decode(errors='replace')}")

        task(guest)  # waits until the guest is up
        inside, outside = paired_medians_s(lambda: task(guest), lambda: task(plain), times=TIMES)
    finally:
        for job_id in (guest, plain):
            client.cancel(job_id)
            cluster.wait_job(job_id, timeout_s=60)
    return [
        Result("task-in-guest", inside - outside, "s", 0.3, "srun true in an up guest, beyond srun true on the host")
    ]
