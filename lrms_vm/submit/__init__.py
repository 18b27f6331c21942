"""Submit jobs to Slurm, Grid Engine, Torque or OpenPBS, into a VM image or not: one API, one meaning of every result.

    from lrms_vm.submit import JobDescription, Session

    with Session() as session:
        jobs = session.submit_bulk(JobDescription("./simulate", ("--events", "1000"), image="hep-jets"), 8)
        for result in session.wait_all(jobs):
            print(result.job_id, result.state.value, result.returncode)

The words are DRMAA's and PSI/J's; docs/submit.md has the tables. Never imported by a hook.
"""

from lrms_vm.submit.description import JobDescription, Resources, Vm
from lrms_vm.submit.result import JobResult, JobState, JobStatus
from lrms_vm.submit.session import Session

__all__ = ["JobDescription", "JobResult", "JobState", "JobStatus", "Resources", "Session", "Vm"]
