"""What an ordinary job pays for our hooks being there."""

from __future__ import annotations

from bench.measure import Result, paired_medians_s, program
from demo.cluster import Cluster
from demo.layout import NODES

TIMES = 300


def measure(cluster: Cluster) -> list[Result]:
    """The prolog of a job that asks for no VM, with the environment slurmd gives it, against /bin/true."""
    hook = cluster.layout.prefix(NODES[0]) / "libexec" / "slurm.prolog"
    environment = {
        "SLURMD_NODENAME": NODES[0],
        "SLURM_CLUSTER_NAME": "bench",
        "SLURM_CONF": str(cluster.layout.slurm_conf()),
        "SLURM_JOBID": "1",
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_COMMENT": "an ordinary job",
        "SLURM_JOB_UID": "1000",
        "SLURM_JOB_USER": "physicist",
        "SLURM_SCRIPT_CONTEXT": "prolog_slurmd",
    }
    ours, theirs = paired_medians_s(program([str(hook)], environment), program(["/bin/true"], environment), times=TIMES)
    return [Result("plain-job-hook", ours / theirs, "ratio", 3.0, "prolog of a job without a VM / /bin/true")]
