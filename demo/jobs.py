"""Slurm as a user meets it: submit, watch, cancel. Never `sbatch --wait`: it polls ever more slowly."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from demo import users
from demo.layout import USER, Layout
from demo.programs import ENVIRONMENT, DemoError, run

ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")
)


@dataclass(frozen=True)
class JobInfo:
    """What the controller says of a job (scontrol show job)."""

    job_id: int
    state: str
    exit_code: str  # "CODE:SIGNAL"
    reason: str
    nodes: str
    restarts: int
    stdout: str  # path
    fields: Mapping[str, str] = field(repr=False, default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def output(self) -> str:
        """What the job wrote, as far as it can be read as text; empty when it never wrote."""
        try:
            return Path(self.stdout).read_text(errors="replace")
        except FileNotFoundError:
            return ""


@dataclass(frozen=True)
class Client:
    """One user at the login node. Paths and arguments are passed as they are, never through a shell."""

    layout: Layout
    user: str = USER
    plugin: bool = True  # False: a login node without our SPANK plugin

    @property
    def home(self) -> Path:
        return self.layout.home(self.user) if self.user != "root" else Path("/root")

    @property
    def environment(self) -> dict[str, str]:
        name = "slurm.conf" if self.plugin else "slurm-noplugin.conf"
        return {
            **ENVIRONMENT,
            "SLURM_CONF": str(self.layout.etc / name),
            "HOME": str(self.home),
            "USER": self.user,
            "LOGNAME": self.user,
            "SHELL": "/bin/sh",
        }

    def argv(self, argv: Sequence[str | Path]) -> list[str]:
        """The command as this user."""
        words = [str(word) for word in argv]
        if self.user == "root":
            return words
        user = users.find(self.user)
        return ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--init-groups", "--", *words]

    def call(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        timeout_s: float = 120,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command as this user; its exit code is the caller's to judge."""
        return subprocess.run(
            self.argv(argv),
            cwd=cwd or self.home,
            env={**self.environment, **(env or {})},
            input=stdin if stdin is not None else b"",
            capture_output=True,
            timeout=timeout_s,
        )

    def popen(
        self, argv: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """The same, to go on with it: stdin, stdout and stderr are pipes, the process leads its own group."""
        return subprocess.Popen(
            self.argv(argv),
            cwd=cwd or self.home,
            env={**self.environment, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )

    def sbatch(
        self,
        *arguments: str | Path,
        script: str | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> int:
        """Submit; return the job's id. `script`: the text of a batch script, given on stdin."""
        stdin = script.encode() if script is not None else None
        done = self.call(["sbatch", "--parsable", *arguments], cwd=cwd, stdin=stdin, env=env)
        if done.returncode != 0:
            raise DemoError(f"sbatch: exit {done.returncode}: {done.stderr.decode(errors='replace').strip()}")
        return int(done.stdout.split(b";")[0])

    def cancel(self, job_id: int, *options: str) -> None:
        """scancel, with its own options before the job."""
        self.call(["scancel", *options, str(job_id)])


def info(layout: Layout, job_id: int | str) -> JobInfo:
    """Ask the controller. Raises `DemoError` when it does not know the job."""
    text = control(layout, "show", "job", "-o", str(job_id))
    fields = dict(re.findall(r"(?:^|\s)(\w[\w:/-]*)=(.*?)(?=\s\w[\w:/-]*=|\s*$)", text.strip().splitlines()[-1]))
    return JobInfo(
        job_id=int(fields["JobId"]),
        state=fields["JobState"],
        exit_code=fields["ExitCode"],
        reason=fields.get("Reason", ""),
        nodes=fields.get("NodeList", "").replace("(null)", ""),
        restarts=int(fields.get("Restarts", "0")),
        stdout=fields.get("StdOut", ""),
        fields=fields,
    )


def wait(
    layout: Layout,
    job_id: int | str,
    *,
    timeout_s: float,
    until: Callable[[JobInfo], bool] = lambda job: job.ended,
    on_look: Callable[[JobInfo], None] | None = None,
    pause_s: float = 0.3,
) -> JobInfo:
    """Look at a job until it ended, its epilogue too (or until `until`). Raises `DemoError` past the time."""
    deadline = time.monotonic() + timeout_s
    while True:
        job = info(layout, job_id)
        if on_look is not None:
            on_look(job)
        if until(job):
            return job
        if time.monotonic() >= deadline:
            raise DemoError(f"job {job_id}: still {job.state} ({job.reason}) on {job.nodes} after {timeout_s:.0f} s")
        time.sleep(pause_s)


def node_state(layout: Layout, node: str) -> tuple[str, str]:
    """A node's state ("IDLE", "IDLE+DRAIN", "DOWN*": does not answer, ...) and the reason an administrator reads."""
    text = control(layout, "show", "node", "-o", node)
    state = re.search(r"\bState=(\S+)", text)
    reason = re.search(r"\bReason=(.*?)(?= \w+=|\s*$)", text)
    return (state[1] if state else "", reason[1] if reason else "")


def control(layout: Layout, *words: str) -> str:
    """scontrol as root."""
    return run(["env", f"SLURM_CONF={layout.slurm_conf()}", "scontrol", *words], timeout_s=30)


def all_jobs(layout: Layout) -> list[str]:
    """The ids of jobs that have not ended, epilogues included."""
    return run(["env", f"SLURM_CONF={layout.slurm_conf()}", "squeue", "-h", "-o", "%A"], timeout_s=30).split()
