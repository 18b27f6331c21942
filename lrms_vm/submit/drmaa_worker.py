"""The process a DRMAA library lives in: JSON lines on stdin, an answer each on stdout. The only importer of drmaa.

A process of its own because such a library is loaded when `drmaa` is imported and once a process, has one session and
one error buffer, needs its preloads before the process starts (Debian's Grid Engine: jemalloc's static TLS), and
because one of them has been seen to die by SIGSEGV (Torque's own, at a look at a running job).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any


def main() -> int:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the parent's affair; it closes our stdin
    session: Any = None
    answer: Any
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "open":
                session, answer = _open(request["library"])
            else:
                answer = _DO[request["do"]](session, request)
            answers.write(json.dumps({"answer": answer}) + "\n")
        except Exception as error:  # whatever the library raises is told, by its name
            answers.write(json.dumps({"error": type(error).__name__, "text": str(error)}) + "\n")
        answers.flush()
    if session is not None:
        session.exit()
    return 0


def _open(library: str) -> tuple[Any, str]:
    os.environ["DRMAA_LIBRARY_PATH"] = library
    import drmaa

    for name in ("DRMAA_LIBRARY_PATH", "PYTHONPATH", "GLIBC_TUNABLES"):
        os.environ.pop(name, None)  # slurm-drmaa gives its jobs our environment
    session = drmaa.Session()
    session.initialize()
    return session, f"{session.drmsInfo}; {session.drmaaImplementation}"


def _run(session: Any, request: dict[str, Any]) -> list[str]:
    job_ids: list[str] = []
    for values in request["templates"]:
        template = session.createJobTemplate()
        try:
            for name, value in values.items():
                setattr(template, name, os.fsencode(value) if isinstance(value, str) else value)
            if request["count"] is None or len(request["templates"]) > 1:
                job_ids.append(session.runJob(template))
            else:
                job_ids += session.runBulkJobs(template, 1, request["count"], 1)
        finally:
            session.deleteJobTemplate(template)
    return job_ids


def _look(session: Any, request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {job_id: _look_at(session, job_id) for job_id in request["jobs"]}


def _look_at(session: Any, job_id: str) -> dict[str, Any]:
    import drmaa

    try:
        state = session.jobStatus(job_id)
    except drmaa.errors.InvalidJobException:
        return {"state": "undetermined"}
    if state not in (drmaa.JobState.DONE, drmaa.JobState.FAILED):
        return {"state": state}
    try:
        info = session.wait(job_id, drmaa.Session.TIMEOUT_NO_WAIT)
    except (drmaa.errors.ExitTimeoutException, drmaa.errors.InvalidJobException):
        return {"state": state}
    except Exception as error:
        if "code 24" not in str(error):  # DRMAA_ERRNO_NO_RUSAGE: deleted before it ran
            raise
        return {"state": state, "info": {"hasExited": False, "hasSignal": False, "wasAborted": True, "exitStatus": 0}}
    told = {name: getattr(info, name) for name in ("hasExited", "hasSignal", "wasAborted", "exitStatus")}
    return {"state": state, "info": {**told, "signal": _number(info.terminatedSignal) if info.hasSignal else None}}


def _number(name: str | bytes) -> int | None:
    text = name.decode() if isinstance(name, bytes) else str(name)
    return int(signal.Signals[text]) if text in signal.Signals.__members__ else None


def _control(session: Any, request: dict[str, Any]) -> None:
    session.control(request["job"], request["action"])


_DO = {"run": _run, "look": _look, "control": _control}

if __name__ == "__main__":
    sys.exit(main())
