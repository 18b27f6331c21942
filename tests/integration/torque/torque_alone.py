"""A Torque of one node on this machine: the pbs_server and pbs_mom that are on PATH, with a home of their own.

A second one, `server` of which is the first's host, is a pbs_mom only: on a host of its own in name spaces (hosts.py). Jobs are started by `qrun`, so that no scheduler is needed. Stops only what it started.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from demo.jobs import Client
from demo.layout import USER, Layout
from demo.programs import DemoError, run, wait_until
from lrms_vm import install_pbs
from lrms_vm.lrms import pbs_text

PROGRAMS = ("pbs_server", "pbs_mom", "trqauthd", "pbsnodes")
TRQAUTHD_SOCKET = "/tmp/trqauthd-unix"
NODE = "torque"  # names this node's directories beside those of n1 and n2
_DIRECTORIES = """\
0755 mom_logs server_logs client_logs job_logs aux server_priv/accounting
0751 mom_priv mom_priv/jobs
0750 server_priv server_priv/jobs server_priv/arrays server_priv/queues server_priv/acl_svr server_priv/acl_hosts
0750 server_priv/acl_users server_priv/acl_groups server_priv/hostlist server_priv/credentials
0750 server_priv/disallowed_types
1777 spool undelivered checkpoint
"""


def missing() -> list[str]:
    """What keeps this Torque from being tested here: programs that are not on PATH, or a home of another host."""
    if absent := [f"{name} on PATH" for name in PROGRAMS if shutil.which(name) is None]:
        return absent
    name_file = server_name()
    if not name_file.is_file() or name_file.read_text().strip() != socket.gethostname():
        return [f"{socket.gethostname()!r} in {name_file}"]
    return []


def server_name() -> Path:
    """The file that trqauthd, and what our hooks call, read whatever -d says."""
    about = subprocess.run(["pbs_server", "--about"], capture_output=True, text=True, timeout=30).stdout
    home = next((line.split()[-1] for line in about.splitlines() if line.startswith("Serverhome:")), "")
    return Path(home) / "server_name"


def _is_listening(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


@dataclass(frozen=True)
class Torque:
    """See above."""

    layout: Layout
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)
    name: str = NODE
    host: str = field(default_factory=socket.gethostname)
    inside: tuple[str, ...] = ()  # the words before a command that is to run on `host`; none: this machine's
    server: str = ""  # another host than ours

    @property
    def home(self) -> Path:
        return self.layout.base / self.name

    @property
    def commands(self) -> Path:
        """Where its qsub is: Grid Engine has one too, but no pbsnodes."""
        return Path(shutil.which("pbsnodes") or "").parent

    @property
    def targets(self) -> install_pbs.TorqueTargets:
        return install_pbs.TorqueTargets(self.layout.prefix(self.name), self.home, self.commands)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PBS_DEFAULT": self.server or self.host,
            "PATH": f"{self.commands}:{os.environ['PATH']}",
            "LANG": "C.UTF-8",
        }

    # -- up and down

    def make_home(self) -> None:
        for line in _DIRECTORIES.splitlines():
            mode, *names = line.split()
            for name in names:
                (self.home / name).mkdir(parents=True, exist_ok=True)
                (self.home / name).chmod(int(mode, 8))
        for digit in range(10):
            for name in ("jobs", "arrays"):
                (self.home / "server_priv" / name / str(digit)).mkdir(mode=0o750, exist_ok=True)
        (self.home / "pbs_environment").write_text("PATH=/bin:/usr/bin\nLANG=C.UTF-8\n")
        (self.home / "server_name").write_text(f"{self.server or self.host}\n")
        starter = self.targets.libexec / "torque.starter"
        (self.home / "mom_priv" / "config").write_text(
            f"$pbsserver {self.server or self.host}\n$usecp *:/ /\n$job_starter {starter}\n$prologalarm 300\n"
        )

    def start(self) -> None:
        self.make_home()
        self.authorize()
        created = (self.home / "server_priv" / "serverdb").exists()
        here = ("-d", str(self.home), "-D")
        self._daemon("pbs_server", *here, *([] if created else ["-t", "create"]))
        wait_until("pbs_server answers", lambda: self.qmgr("list server").returncode == 0, timeout_s=30)
        for line in (
            f"set server managers += root@{self.host}",
            f"set server submit_hosts = {self.host}",
            "set server submit_hosts += localhost",  # what a library's connection resolves to on one host
            "create queue batch queue_type=execution",
            "set queue batch started=true",
            "set queue batch enabled=true",
            "set server default_queue=batch",
            "set server keep_completed=600",
            f"create node {self.host} np=4",
        ):
            self.qmgr(line)
        self.start_mom()
        self.in_service()

    def authorize(self) -> None:
        """A trqauthd on this host; one is enough for it."""
        if self.inside or not _is_listening(TRQAUTHD_SOCKET):
            self._daemon("trqauthd", "-F")
            time.sleep(1 if self.inside else 0)
            wait_until("trqauthd listens", lambda: bool(self.inside) or _is_listening(TRQAUTHD_SOCKET), timeout_s=10)

    def start_mom(self) -> None:
        self._daemon("pbs_mom", "-d", str(self.home), "-D")

    def _daemon(self, name: str, *words: str) -> None:
        """In the foreground: its pid file may be in the home it was built for, whatever -d says."""
        argv = [*self.inside, shutil.which(name) or name, *words]
        with open(self.home / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd="/",
                start_new_session=True,
            )
        assert process.stdin is not None
        process.stdin.write(b"y\n")  # -t create asks
        process.stdin.close()
        self.daemons.append(process)

    def stop(self) -> list[str]:
        """Delete what runs, stop what `start` started; return what is left."""
        if self.daemons:
            for name in self.jobs():
                self.ask("qdel", name, check=False)
            wait_until("all jobs ended", lambda: not self.jobs(), timeout_s=60, pause_s=0.5)
        for process in reversed(self.daemons):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)
        self.daemons.clear()
        return []

    def install(self, guest: Path) -> None:
        """Our hooks, by the product's own `install`."""
        layout = self.layout
        node = self.name
        verb = (layout.command, "--config", layout.config(node), "install", "--lrms=torque", "--guest", guest)
        run(
            [*verb, "--prefix", layout.prefix(node), "--pbs-home", self.home, "--pbs-bin", self.commands], timeout_s=120
        )

    # -- its own commands

    def ask(
        self, program: str, *words: str, stdin: bytes = b"", check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [*self.inside, program, *words], input=stdin, capture_output=True, timeout=30, env=self.environment, cwd="/"
        )
        if check and done.returncode != 0:
            raise DemoError(f"{program} {' '.join(words)}: {done.stderr.decode(errors='replace')}")
        return done

    def qmgr(self, line: str) -> subprocess.CompletedProcess[bytes]:
        return self.ask("qmgr", "-c", line, self.host, check=False)

    def node(self) -> str:
        """What pbsnodes says of the node: its state and its note."""
        lines = self.ask("pbsnodes", self.host).stdout.decode().splitlines()
        return "\n".join(line.strip() for line in lines if line.strip().startswith(("state =", "note =")))

    def in_service(self) -> None:
        """Take the node into service. A new one comes up "offline" and once more "MOM-list-not-sent"."""

        def free() -> bool:
            self.ask("pbsnodes", "-c", "-N", "", self.host, check=False)
            return "state = free" in self.node()

        wait_until("the node is free", free, timeout_s=120, pause_s=2)

    def jobs(self) -> dict[str, dict[str, str]]:
        done = self.ask("qstat", "-f", "-1", "-t", check=False)
        found = pbs_text.parse_qstat(done.stdout.decode(errors="replace"))
        return {name: fields for name, fields in found.items() if fields.get("job_state") != "C"}

    def job(self, name: str) -> dict[str, str]:
        return pbs_text.parse_qstat(self.ask("qstat", "-f", "-1", name).stdout.decode(errors="replace"))[name]

    # -- jobs

    def client(self, user: str = USER) -> Client:
        """One user at the submit host; `Client.call` runs a command as that user."""
        return Client(self.layout, user)

    def qsub(
        self,
        *words: str,
        script: str,
        cwd: Path,
        user: str = USER,
        env: Mapping[str, str] | None = None,
        start: bool = True,
    ) -> str:
        """Submit and start; return the job's id."""
        argv = [self.commands / "qsub", "-S", "/bin/sh", *words]
        client = self.client(user)
        there = [*self.inside, f"--wdns={cwd}"] if self.inside else []
        done = subprocess.run(
            [*there, *client.argv(argv)],
            input=script.encode(),
            capture_output=True,
            timeout=120,
            cwd=cwd,
            env={**client.environment, **self.environment, **(env or {})},
        )
        if done.returncode != 0:
            raise DemoError(f"qsub: {done.stderr.decode(errors='replace')}")
        name = done.stdout.decode().strip()
        if start:
            self.run(name)
        return name

    def run(self, name: str) -> None:
        self.ask("qrun", name)

    def wait(self, name: str, *states: str, timeout_s: float) -> dict[str, str]:
        """Until it is in one of these states; what qstat says of it then."""
        deadline = time.monotonic() + timeout_s
        while (fields := self.job(name))["job_state"] not in states:
            if time.monotonic() > deadline:
                raise DemoError(f"job {name}: still {fields['job_state']} after {timeout_s:.0f} s")
            time.sleep(0.3)
        return fields
