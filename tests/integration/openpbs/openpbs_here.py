"""The OpenPBS that runs on this host: its commands, and our hook in it for as long as the tests last."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from demo.jobs import Client
from demo.layout import USER, Layout
from demo.programs import DemoError, run, wait_until
from lrms_vm import install_pbs
from lrms_vm.lrms import pbs_text

PROGRAMS = ("qsub", "qstat", "qdel", "qrls", "qmgr", "pbsnodes", "pbs_rstat")
NODE = "pbs"  # names this node's directories beside those of n1 and n2
# The server is told what `lrms-vm install` prints, and not told again on another day
SETTINGS = ("set server flatuid=true", "set server job_history_enable=true", "set server scheduler_iteration=5")


def missing() -> list[str]:
    """What keeps an OpenPBS from being tested here."""
    if absent := [f"{name} on PATH" for name in PROGRAMS if shutil.which(name) is None]:
        return absent
    answers = subprocess.run(["qstat", "-B"], capture_output=True, timeout=60).returncode == 0
    return [] if answers else ["a server that answers"]


@dataclass(frozen=True)
class OpenPbs:
    """See above."""

    layout: Layout

    @property
    def host(self) -> str:
        return socket.gethostname().partition(".")[0]

    @property
    def targets(self) -> install_pbs.OpenPbsTargets:
        return install_pbs.OpenPbsTargets(self.layout.prefix(NODE))

    def client(self, user: str = USER) -> Client:
        return Client(self.layout, user)

    # -- our hook

    def install(self, guest: Path) -> None:
        """By the product's own `install`, and by the lines that it prints."""
        layout = self.layout
        verb = (layout.command, "--config", layout.config(NODE), "install", "--lrms=openpbs", "--guest", guest)
        said = run([*verb, "--prefix", layout.prefix(NODE)], timeout_s=120)
        lines = [line.strip() for line in said.splitlines() if line.startswith("    ") and " = " not in line]
        for line in (*SETTINGS, *lines):
            if not (line.startswith("create resource") and self.qmgr("list resource vm_image").returncode == 0):
                self.ask("qmgr", "-c", line)
        time.sleep(5)  # until the nodes have hook and resource

    def remove(self) -> None:
        self.qmgr("delete hook lrms_vm")

    def event(self, change: str) -> None:
        """`+=execjob_begin`, `-=execjob_begin`."""
        self.ask("qmgr", "-c", f"set hook lrms_vm event{change}")
        time.sleep(3)

    # -- its own commands

    def ask(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=60, cwd="/")
        if check and done.returncode != 0:
            raise DemoError(f"{' '.join(words)}: {done.stderr}")
        return done

    def qmgr(self, line: str) -> subprocess.CompletedProcess[str]:
        return self.ask("qmgr", "-c", line, check=False)

    def job(self, name: str) -> dict[str, str]:
        return pbs_text.parse_qstat(self.ask("qstat", "-xf", name).stdout)[name]

    def node(self) -> str:
        """What pbsnodes says of the node: its state and its comment."""
        lines = self.ask("pbsnodes", self.host).stdout.splitlines()
        return "\n".join(line.strip() for line in lines if line.strip().startswith(("state =", "comment =")))

    def in_service(self) -> None:
        """Take the node into service; a job waits until the scheduler has seen it."""
        self.ask("pbsnodes", "-C", "", self.host)
        self.ask("pbsnodes", "-r", self.host)
        wait_until("the node is free", lambda: "state = free" in self.node(), timeout_s=60, pause_s=0.5)

    def wait(self, name: str, *states: str, timeout_s: float) -> dict[str, str]:
        """Until it is in one of these states; what qstat says of it then."""
        deadline = time.monotonic() + timeout_s
        while (fields := self.job(name))["job_state"] not in states:
            if time.monotonic() > deadline:
                raise DemoError(f"job {name}: still {fields['job_state']} after {timeout_s:.0f} s")
            time.sleep(0.3)
        return fields

    def qsub(self, *words: str, script: str | None, cwd: Path) -> str:
        """Submit as the user; return the job's id."""
        client = self.client()
        argv = [shutil.which("qsub") or "qsub", *words]
        environ = {"PATH": os.environ["PATH"]}
        done = client.call(argv, cwd=cwd, stdin=None if script is None else script.encode(), env=environ)
        if done.returncode != 0:
            raise DemoError(f"qsub: {done.stderr.decode(errors='replace')}")
        return done.stdout.decode().strip()
