"""A Slurm of two nodes on this machine: its own munge, slurmctld and two slurmd, with our hooks and plugin.

    with Cluster(default_base()) as cluster:
        job_id = cluster.client().sbatch("--vm-image=hep-jets", script="#!/bin/sh\nhostname\n")
        print(cluster.wait_job(job_id, timeout_s=300).output())

Own ports, sockets and state: the distribution's daemons are left alone. Stops only what it started, by the pid files
in its own directory. Also a command: `python -m demo.cluster start|stop|status`.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from demo import hypervisor, jobs, users
from demo.jobs import Client, JobInfo
from demo.layout import NODES, USER, Layout, default_base
from demo.programs import Daemon, DemoError, run, wait_until
from demo.slurm_conf import CGROUP_CONF, slurm_conf

LOCK = Path("/run/lock/lrms_vm-demo")


@dataclass(frozen=True)
class Cluster:
    """See above. `base` must be reachable by users and by the hypervisor's user."""

    base: Path
    cgroups: bool = False  # Slurm holds jobs in cgroups: needs a machine whose cgroups can be written

    @property
    def layout(self) -> Layout:
        return Layout(self.base)

    # -- up and down

    def prepare(self) -> None:
        """Directories and users: what installing and building need. Waits while another program uses this cluster."""
        _claim(self.base)
        _forget_before_boot(self.layout)
        make_directories(self.layout)
        _make_places(self.layout)
        users.make(self.layout)

    def start(self) -> None:
        """Bring everything up and wait until both nodes are idle. What runs already stays. Raises `DemoError`."""
        layout = self.layout
        self.prepare()
        if not layout.plugin(NODES[0]).exists():
            raise DemoError(f"{layout.base}: nothing is installed there yet: run `make demo`")
        _write_configuration(layout, self.cgroups)
        hypervisor.start(layout)
        for node in NODES:
            link = layout.libvirt_socket(node)
            if not link.is_symlink():
                link.symlink_to(hypervisor.SOCKET)
        for daemon in self.daemons():
            daemon.start()
        try:
            wait_until("both nodes in service", self._in_service, timeout_s=30)
        except DemoError as error:
            raise DemoError(f"{error}; see {layout.log}: " + self._last_words()) from error

    def stop(self) -> list[str]:
        """Cancel what runs, wait for its epilogues, stop what `start` started; return what is left, in words."""
        layout = self.layout
        left: list[str] = []
        controller = self.daemons()[1]
        if controller.pid is not None:
            left += self._end_jobs()
        for daemon in reversed(self.daemons()):
            daemon.stop()
        left += [f"domain {name}" for name in hypervisor.domains() if name.endswith(NODES)]
        if others := hypervisor.stop(layout):
            left.append(f"libvirtd, because of domains {', '.join(others)}")
        for node in NODES:
            layout.libvirt_socket(node).unlink(missing_ok=True)
        return left

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether all our daemons run."""
        return all(daemon.pid is not None for daemon in self.daemons())

    def daemons(self) -> tuple[Daemon, ...]:
        """munged, slurmctld, slurmd n1, slurmd n2: in the order they start."""
        layout = self.layout
        munge = layout.munge_socket.parent
        as_munge = ("setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "--")
        munged = (
            *as_munge,
            "/usr/sbin/munged",
            f"--socket={layout.munge_socket}",
            f"--key-file={munge / 'munge.key'}",
            f"--pid-file={munge / 'munged.pid'}",
            f"--log-file={munge / 'munged.log'}",
            f"--seed-file={munge / 'munged.seed'}",
        )
        return (
            Daemon("munged", munged, munge / "munged.pid", str(layout.munge_socket)),
            Daemon(
                "slurmctld",
                ("/usr/sbin/slurmctld", "-f", str(layout.slurm_conf())),
                layout.run / "slurmctld.pid",
                str(layout.slurm_conf()),
            ),
            *(self.slurmd(node) for node in NODES),
        )

    def slurmd(self, node: str) -> Daemon:
        """One node's daemon; tests kill and start it."""
        conf = str(self.layout.slurm_conf(node))
        pid_file = self.layout.run / f"slurmd.{node}.pid"
        return Daemon(f"slurmd {node}", ("/usr/sbin/slurmd", "-N", node, "-f", conf), pid_file, conf)

    # -- jobs

    def client(self, user: str = USER, *, plugin: bool = True) -> Client:
        return Client(self.layout, user, plugin)

    def job_info(self, job_id: int | str) -> JobInfo:
        return jobs.info(self.layout, job_id)

    def wait_job(
        self, job_id: int | str, *, timeout_s: float, on_look: Callable[[JobInfo], None] | None = None
    ) -> JobInfo:
        return jobs.wait(self.layout, job_id, timeout_s=timeout_s, on_look=on_look)

    def node_state(self, node: str) -> tuple[str, str]:
        return jobs.node_state(self.layout, node)

    def resume(self, node: str) -> None:
        """Take a drained or down node back and wait until it is idle."""
        jobs.control(self.layout, "update", f"nodename={node}", "state=resume")
        try:
            wait_until(f"{node} idle", lambda: self.node_state(node)[0] == "IDLE", timeout_s=30)
        except DemoError as error:
            raise DemoError(f"{error}: {' '.join(self.node_state(node))}") from error

    def logs(self, node: str | None = None) -> str:
        """slurmctld's log, or a node's."""
        name = f"slurmd.{node}.log" if node else "slurmctld.log"
        path = self.layout.log / name
        return path.read_text(errors="replace") if path.exists() else ""

    # -- inside

    def _in_service(self) -> bool:
        """Looks, and takes back what an earlier run left drained."""
        states = {node: self.node_state(node)[0] for node in NODES}
        for node, state in states.items():
            registered = "*" not in state and "UNKNOWN" not in state
            if registered and ("DRAIN" in state or "DOWN" in state):
                jobs.control(self.layout, "update", f"nodename={node}", "state=resume")
        return all(state in ("IDLE", "MIXED", "ALLOCATED") for state in states.values())

    def _end_jobs(self) -> list[str]:
        try:
            for job_id in jobs.all_jobs(self.layout):
                self.client("root").cancel(int(job_id))
            wait_until("all jobs ended", lambda: not jobs.all_jobs(self.layout), timeout_s=60, pause_s=0.3)
        except DemoError as error:
            return [str(error)]
        return []

    def _last_words(self) -> str:
        lines = [line for node in (None, *NODES) for line in self.logs(node).splitlines() if "error" in line]
        return " | ".join(lines[-6:])


def remove(base: Path) -> None:
    """Stop everything and remove all the demo ever made outside the checkout."""
    cluster = Cluster(base)
    if not cluster.layout.etc.exists():
        return
    if left := cluster.stop():
        raise DemoError("not removed, because of " + "; ".join(left))
    users.remove(cluster.layout)
    shutil.rmtree(base)


def make_directories(layout: Layout) -> None:
    """The tree that everybody may enter and read."""
    for path in (layout.base, *layout.directories):
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.chmod(0o755)


def _make_places(layout: Layout) -> None:
    for node in NODES:
        (layout.etc / node).mkdir(mode=0o755, exist_ok=True)
    for path in (layout.state / "slurmctld", *(layout.state / f"slurmd.{node}" for node in NODES)):
        path.mkdir(mode=0o755, exist_ok=True)
    munge = layout.munge_socket.parent
    munge.mkdir(mode=0o755, exist_ok=True)
    key = munge / "munge.key"
    if not key.exists():
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
    run(["chown", "-R", "munge:munge", munge])


def _write_configuration(layout: Layout, cgroups: bool) -> None:
    host = socket.gethostname().partition(".")[0]
    kind = os.environ.get("LRMS_VM_DEMO_HYPERVISOR", "qemu")
    texts = {
        layout.slurm_conf(node): slurm_conf(layout, host=host, node=node, cgroups=cgroups, hypervisor=kind)
        for node in (None, *NODES)
    }
    texts |= {path.with_name("cgroup.conf"): CGROUP_CONF for path in list(texts)}
    texts[layout.etc / "slurm-noplugin.conf"] = slurm_conf(layout, host=host, node=None, plugstack=False)
    for path, text in texts.items():
        path.write_text(text)


def _claim(base: Path) -> None:
    """One program at a time on this machine, until it ends: a test run would stop the cluster under a benchmark."""
    if _claimed:
        return
    file = LOCK.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        print(f"waiting: another program uses the demo's cluster: {file.read().strip()}", file=sys.stderr, flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
    file.truncate(0)
    file.write(f"process {os.getpid()}, {base}")
    file.flush()
    _claimed.append(file)


_claimed: list[TextIO] = []


def _forget_before_boot(layout: Layout) -> None:
    """A reboot ends every daemon and guest: pid files and records from before it mean nothing."""
    now = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    stamp = layout.run / "boot-id"
    if layout.run.exists() and (not stamp.exists() or stamp.read_text() != now):
        shutil.rmtree(layout.run)
    layout.run.mkdir(mode=0o755, parents=True, exist_ok=True)
    stamp.write_text(now)


def main(words: list[str]) -> int:
    cluster = Cluster(default_base())
    verb = words[0] if words else ""
    started = time.monotonic()
    try:
        if verb == "start":
            cluster.start()
            print(f"up after {time.monotonic() - started:.1f} s: export SLURM_CONF={cluster.layout.slurm_conf()}")
        elif verb == "stop":
            for line in (left := cluster.stop()):
                print(f"left: {line}", file=sys.stderr)
            return 1 if left else 0
        elif verb == "remove":
            remove(cluster.base)
        elif verb == "status":
            for daemon in cluster.daemons():
                print(f"{daemon.name}: {daemon.pid or 'not running'}")
        else:
            print("usage: python -m demo.cluster start|stop|status|remove", file=sys.stderr)
            return 64
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
