"""A Slurm with one node, and that an emulated machine: slurmctld here, slurmd in the machine.

    with XenCluster.default() as cluster:
        job_id = cluster.client().sbatch("--vm-image=hep-jets", script="#!/bin/sh\\nhostname\\n")
        print(cluster.wait_job(job_id, timeout_s=300).output())

Own ports, state, munge key and lock: the demo's cluster may run beside it. Uses the demo's images, users and
certificates. `main` makes a command of one: start|stop|status|remove, or `run COMMAND` in the node.
"""

from __future__ import annotations

import secrets
import shlex
import shutil
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from demo import jobs, machine_image, machine_site, site, users
from demo.cluster import make_directories
from demo.hooks import PLUGIN
from demo.jobs import Client, JobInfo
from demo.layout import CHECKOUT, USER
from demo.machine import Machine, claim
from demo.machine_conf import Own
from demo.machine_image import Recipe
from demo.machine_layout import MachineLayout
from demo.programs import Daemon, DemoError, run, wait_until
from demo.progress import step


@dataclass(frozen=True)
class MachineCluster(ABC):
    """See above."""

    layout: MachineLayout

    @property
    @abstractmethod
    def node(self) -> Machine:
        """The machine."""

    @property
    @abstractmethod
    def recipe(self) -> Recipe:
        """What its disk is made from."""

    @property
    @abstractmethod
    def own(self) -> Own:
        """What its files say."""

    @property
    def name(self) -> str:
        """Of its only node."""
        return self.layout.identity.node

    # -- up and down

    def prepare(self) -> bool:
        """Everything on this machine, the node's disk included; return whether that disk was made anew."""
        layout, images = self.layout, self.layout.identity.images
        for each in (layout.site, layout):
            make_directories(each)
        layout.node.mkdir(mode=0o700, exist_ok=True)
        users.make(layout.site)
        site.make_images(layout.site, images, command=CHECKOUT / ".venv" / "bin" / "lrms-vm")
        with step("keys, directories, configuration"):
            _make_munge_key(layout)
            machine_site.make_keys(layout)
            machine_site.make_homes(layout)
            machine_site.login_node(layout, self.own, PLUGIN)
            (layout.state / "slurmctld").mkdir(mode=0o755, exist_ok=True)
            files = machine_site.node_files(layout, self.own)
            if self.node.running and machine_image.is_current(layout, self.recipe, files):
                return False
            self.stop()
        return machine_image.make(layout, self.recipe, files)

    def start(self) -> None:
        """Bring everything up and wait until the node is idle. What runs already stays. Raises `DemoError`."""
        self.prepare()
        fresh = not self.node.running
        with step(f"{self.layout.identity.kind} node up"):
            self.node.start()
        with step("Slurm up, the node idle"):
            for daemon in self.daemons():
                daemon.start()
            if fresh:  # what the controller remembers of a node whose plug was pulled
                self._cancel_all()
            try:
                wait_until(f"{self.name} in service", self._in_service, timeout_s=120, pause_s=0.5)
            except DemoError as error:
                said = self.node.call("tail -5 /var/log/slurmd.log; systemctl --failed --no-legend").stdout.decode()
                raise DemoError(f"{error}; {' '.join(self.node_state())}; in {self.name}: {said}") from error

    def stop(self) -> list[str]:
        """Cancel what runs, wait for its epilogues, stop everything; return what is left, in words."""
        left: list[str] = []
        munged, slurmctld = self.daemons()
        if slurmctld.pid is not None:
            left += self._end_jobs()
        self.node.stop()
        slurmctld.stop()
        munged.stop()
        return left

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def daemons(self) -> tuple[Daemon, Daemon]:
        """munged and slurmctld."""
        layout = self.layout
        munge = layout.munge_socket.parent
        munged = (
            *("setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "--", "/usr/sbin/munged"),
            f"--socket={layout.munge_socket}",
            f"--key-file={munge / 'munge.key'}",
            f"--pid-file={munge / 'munged.pid'}",
            f"--log-file={munge / 'munged.log'}",
            f"--seed-file={munge / 'munged.seed'}",
        )
        conf = str(layout.slurm_conf())
        return (
            Daemon("munged", munged, munge / "munged.pid", str(layout.munge_socket)),
            Daemon("slurmctld", ("/usr/sbin/slurmctld", "-f", conf), layout.run / "slurmctld.pid", conf),
        )

    # -- jobs

    def client(self, user: str = USER, *, plugin: bool = True) -> Client:
        return Client(self.layout, user, plugin)

    def job_info(self, job_id: int | str) -> JobInfo:
        return jobs.info(self.layout, job_id)

    def wait_job(
        self, job_id: int | str, *, timeout_s: float, on_look: Callable[[JobInfo], None] | None = None
    ) -> JobInfo:
        return jobs.wait(self.layout, job_id, timeout_s=timeout_s, on_look=on_look)

    def node_state(self) -> tuple[str, str]:
        return jobs.node_state(self.layout, self.name)

    def resume(self) -> None:
        """Take the drained or down node back and wait until it is idle."""
        jobs.control(self.layout, "update", f"nodename={self.name}", "state=resume")
        try:
            wait_until(f"{self.name} idle", lambda: self.node_state()[0] == "IDLE", timeout_s=60)
        except DemoError as error:
            raise DemoError(f"{error}: {' '.join(self.node_state())}") from error

    # -- inside

    def _in_service(self) -> bool:
        state = self.node_state()[0]
        registered = "*" not in state and "UNKNOWN" not in state
        if registered and ("DRAIN" in state or "DOWN" in state):
            jobs.control(self.layout, "update", f"nodename={self.name}", "state=resume")
        return state in ("IDLE", "MIXED", "ALLOCATED")

    def _cancel_all(self) -> None:
        for job_id in jobs.all_jobs(self.layout):
            self.client("root").cancel(int(job_id))

    def _end_jobs(self) -> list[str]:
        try:
            self._cancel_all()
            wait_until("all jobs ended", lambda: not jobs.all_jobs(self.layout), timeout_s=120, pause_s=0.5)
        except DemoError as error:
            return [str(error)]
        return []


def remove(cluster: MachineCluster) -> None:
    """Stop everything and remove all of it; images, users and certificates are the demo's. Raises `DemoError`."""
    if not cluster.layout.etc.exists():
        return
    if left := cluster.stop():
        raise DemoError("not removed, because of " + "; ".join(left))
    shutil.rmtree(cluster.layout.base)


def _make_munge_key(layout: MachineLayout) -> None:
    munge = layout.munge_socket.parent
    munge.mkdir(mode=0o755, exist_ok=True)
    key = munge / "munge.key"
    if not key.exists():
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
    run(["chown", "-R", "munge:munge", munge])


def main(cluster: MachineCluster, module: str, words: list[str]) -> int:
    """The command `python -m MODULE WORDS`."""
    verb, *rest = words or [""]
    started = time.monotonic()
    try:
        if verb == "start":
            cluster.layout.base.mkdir(mode=0o755, parents=True, exist_ok=True)
            with claim(cluster.layout.base / ".lock"):
                cluster.start()
            print(f"up after {time.monotonic() - started:.1f} s: export SLURM_CONF={cluster.layout.slurm_conf()}")
            print(f"commands in it, as root: .venv/bin/python -m {module} run COMMAND")
        elif verb == "stop":
            for line in (left := cluster.stop()):
                print(f"left: {line}", file=sys.stderr)
            return 1 if left else 0
        elif verb == "remove":
            remove(cluster)
        elif verb == "status":
            for daemon in (*cluster.daemons(), cluster.node.daemon):
                print(f"{daemon.name}: {daemon.pid or 'not running'}")
        elif verb == "run" and rest:
            done = cluster.node.call(rest[0] if len(rest) == 1 else shlex.join(rest), timeout_s=3600)
            sys.stdout.write(done.stdout.decode("utf-8", "replace"))
            sys.stderr.write(done.stderr.decode("utf-8", "replace"))
            return done.returncode
        else:
            print(f"usage: python -m {module} start|stop|status|remove|run COMMAND", file=sys.stderr)
            return 64
    except DemoError as error:
        print(f"{cluster.layout.identity.kind} node: {error}", file=sys.stderr)
        return 1
    return 0
