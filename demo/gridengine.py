"""A Grid Engine of one host on this machine: its own cell, ports and spool below the demo's directory.

    with GridEngine(default_base()) as engine:
        job_id = engine.client().qsub("-v", "VM_IMAGE=minimal", script="hostname\\n")
        print(engine.wait(job_id, timeout_s=300).output())

The distribution's own cell is left alone. Stops only what it started, by the pid files in its own directory. Also a
command: `python -m demo.gridengine start|stop|status`. Uses the demo's site (package, images, certificates, users) and
waits for the same lock: one program at a time uses libvirt here.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo import hypervisor, site
from demo.cluster import Cluster
from demo.gridengine_conf import CELL, GLOBAL, HOST_GROUP, PORTS, QUEUE, SCHEDULER, edited, queue_text
from demo.hooks import GUEST
from demo.jobs import Client
from demo.layout import USER, Layout, default_base
from demo.programs import Daemon, DemoError, run, wait_until
from demo.progress import step
from lrms_vm import install_gridengine

DEBIAN = Path("/var/lib/gridengine")  # its links to programs and libraries by architecture
RESOURCES = Path("/usr/share/gridengine/util/resources")
PROGRAMS = Path("/usr/lib/gridengine")
DRMAA_LIBRARY = Path("/usr/lib/gridengine-drmaa/lib/libdrmaa.so.1.0")
NODE = "ge"  # names this host's directories beside those of n1 and n2


@dataclass(frozen=True)
class GridEngine:
    """See above."""

    base: Path

    @property
    def layout(self) -> Layout:
        return Layout(self.base)

    @property
    def root(self) -> Path:
        """SGE_ROOT."""
        return self.base / "gridengine"

    @property
    def common(self) -> Path:
        return self.root / CELL / "common"

    @property
    def spool(self) -> Path:
        return self.root / CELL / "spool"

    @property
    def host(self) -> str:
        """Grid Engine's name of this host. lrms_vm calls the node the same."""
        return socket.gethostname()

    @property
    def targets(self) -> install_gridengine.GridEngineTargets:
        """What `lrms-vm install` put in place for this host."""
        return install_gridengine.GridEngineTargets(self.layout.prefix(NODE))

    @property
    def environment(self) -> dict[str, str]:
        """What tells every program of Grid Engine which cell it belongs to."""
        return {"SGE_ROOT": str(self.root), "SGE_CELL": CELL, **PORTS}

    # -- up and down

    def start(self) -> None:
        """Bring everything up and wait until the queue takes jobs. What runs already stays. Raises `DemoError`."""
        Cluster(self.base).prepare()
        if not self.layout.config(NODE).exists():
            raise DemoError(f"{self.base}: nothing is installed there yet for Grid Engine")
        self._make_cell()
        hypervisor.start(self.layout)
        link = self.layout.libvirt_socket(NODE)
        if not link.is_symlink():
            link.symlink_to(hypervisor.SOCKET)
        qmaster, execd = self.daemons()
        qmaster.start()
        wait_until("sge_qmaster answers", lambda: self.succeeds("qconf", "-sh"), timeout_s=30)
        self._configure()
        execd.start()
        wait_until("the host reports its load", self._in_service, timeout_s=60, pause_s=0.2)

    def stop(self) -> list[str]:
        """Delete what runs, wait for the epilogs, stop what `start` started; return what is left, in words."""
        left: list[str] = []
        qmaster, execd = self.daemons()
        if qmaster.pid is None and execd.pid is None:
            return left  # and libvirt is somebody else's
        if qmaster.pid is not None and execd.pid is not None:
            try:
                self.succeeds("qdel", "-u", "*")
                wait_until("all jobs ended", lambda: not self.jobs(), timeout_s=60, pause_s=0.3)
            except DemoError as error:
                left.append(str(error))
        for daemon in (execd, qmaster):
            daemon.stop()
        left += [f"domain {name}" for name in hypervisor.domains() if name.endswith(f".{self.host}")]
        if others := hypervisor.stop(self.layout):
            left.append(f"libvirtd, because of domains {', '.join(others)}")
        self.layout.libvirt_socket(NODE).unlink(missing_ok=True)
        return left

    def __enter__(self) -> GridEngine:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def daemons(self) -> tuple[Daemon, Daemon]:
        """sge_qmaster, sge_execd: in the order they start."""
        environ = ("/usr/bin/env", *(f"{name}={value}" for name, value in self.environment.items()))
        qmaster_pid = self.spool / "qmaster" / "qmaster.pid"
        execd_pid = self.spool / "execd" / (_other_name(self.host) or self.host) / "execd.pid"
        return (
            Daemon("sge_qmaster", (*environ, "/usr/sbin/sge_qmaster"), qmaster_pid, "sge_qmaster"),
            Daemon("sge_execd", (*environ, "/usr/sbin/sge_execd"), execd_pid, "sge_execd"),
        )

    # -- its own commands

    def ask(self, program: str, *words: str | Path) -> str:
        """Run one of its commands as root. Raises `DemoError`."""
        environ = [f"{name}={value}" for name, value in self.environment.items()]
        return run(["/usr/bin/env", *environ, PROGRAMS / program, *words], timeout_s=30)

    def succeeds(self, program: str, *words: str) -> bool:
        try:
            self.ask(program, *words)
        except DemoError:
            return False
        return True

    def jobs(self) -> list[str]:
        """The ids of all jobs it still has, waiting ones too."""
        return sorted({line.split()[0] for line in self.ask("qstat", "-u", "*").splitlines()[2:]})

    def queue_state(self) -> str:
        """The letters of qstat(1): "" in service, "d" disabled, "E" error."""
        line = next(line for line in self.ask("qstat", "-f", "-q", QUEUE).splitlines() if line.startswith(QUEUE))
        return line.split()[5] if len(line.split()) > 5 else ""

    def set_queue(self, settings: Mapping[str, str]) -> None:
        """Change attributes of the queue, as `lrms-vm install` prints them."""
        for name, value in settings.items():
            self.ask("qconf", "-mattr", "queue", name, value, QUEUE)

    def enable(self) -> None:
        """Take the host's queue back into service."""
        self.succeeds("qmod", "-e", f"*@{self.host}")
        self.succeeds("qmod", "-cq", f"*@{self.host}")

    # -- jobs

    def client(self, user: str = USER) -> Client:
        """One user at the submit host; `Client.call` runs a command as that user."""
        return Client(self.layout, user)

    def qsub(
        self,
        *arguments: str | Path,
        script: str | None = None,
        user: str = USER,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> int:
        """Submit as `user`; return the job's number. `script`: the text of a batch script, given on stdin."""
        argv = [PROGRAMS / "qsub", "-terse", *arguments]
        stdin = script.encode() if script is not None else None
        done = self.client(user).call(argv, cwd=cwd, stdin=stdin, env={**self.environment, **(env or {})})
        if done.returncode != 0:
            raise DemoError(f"qsub: exit {done.returncode}: {(done.stderr + done.stdout).decode(errors='replace')}")
        return int(done.stdout.split(b".")[0])

    def state(self, job_id: int) -> str:
        """The letters of qstat(1), of all its tasks: "r", "qw", "Eqw", "ERq"; empty when it has ended."""
        lines = [line.split() for line in self.ask("qstat", "-u", "*").splitlines()[2:]]
        return " ".join(words[4] for words in lines if words[0] == str(job_id))

    def wait(self, job_id: int, *, timeout_s: float) -> None:
        """Until it has ended, its epilog too, or waits in an error state. Raises `DemoError` past the time."""
        wait_until(f"job {job_id} ended", lambda: self.state(job_id)[:1] in ("", "E"), timeout_s=timeout_s, pause_s=0.3)

    def accounting(self, job_id: int, task: int | None = None) -> dict[str, str]:
        """What qacct(1) says of an ended job: exit_status, failed, ... Raises `DemoError` where it says nothing."""
        words = ["-j", str(job_id), *(["-t", str(task)] if task else [])]
        wait_until(f"job {job_id} accounted", lambda: self.succeeds("qacct", *words), timeout_s=10)
        pairs = (line.split(None, 1) for line in self.ask("qacct", *words).splitlines() if not line.startswith("="))
        return {pair[0]: pair[1].strip() if len(pair) > 1 else "" for pair in pairs if pair}

    def why(self, job_id: int) -> str:
        """What qstat -j says of a waiting job."""
        return self.ask("qstat", "-j", str(job_id))

    # -- inside

    def _make_cell(self) -> None:
        if (self.spool / "spooldb" / "sge").exists():
            return
        for path in (self.common, self.spool / "qmaster" / "job_scripts", self.spool / "spooldb", self.spool / "execd"):
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
        for name in ("bin", "lib", "util", "utilbin"):
            link = self.root / name
            if not link.is_symlink():
                link.symlink_to(DEBIAN / name)
        bootstrap = Path("/usr/share/gridengine/default-bootstrap").read_text()
        changed = {"qmaster_spool_dir": self.spool / "qmaster", "spooling_params": self.spool / "spooldb"}
        (self.common / "bootstrap").write_text(edited(bootstrap, {key: str(value) for key, value in changed.items()}))
        (self.common / "act_qmaster").write_text(f"{self.host}\n")
        if alias := _other_name(self.host):
            (self.common / "host_aliases").write_text(f"{self.host} {alias}\n")
        run(["chown", "-R", "sgeadmin:sgeadmin", self.root / CELL])
        start = self.common / "configuration"
        default = Path("/usr/share/gridengine/default-configuration").read_text()
        sensor = install_gridengine.load_sensor(self.targets)  # sge_execd starts it only if it is there before
        own = {"execd_spool_dir": str(self.spool / "execd"), "load_sensor": sensor}
        start.write_text(edited(default, {**GLOBAL, **own}))
        self._as_admin("spoolinit", "berkeleydb", "libspoolb", self.spool / "spooldb", "init")
        for what, where in (
            ("configuration", start),
            ("complexes", RESOURCES / "centry"),
            ("usersets", RESOURCES / "usersets"),
        ):
            self._as_admin("spooldefaults", what, where)
        self._as_admin("spooldefaults", "managers", "sgeadmin")

    def _as_admin(self, program: str, *words: str | Path) -> None:
        environ = [f"{name}={value}" for name, value in self.environment.items()]
        who = ["setpriv", "--reuid=sgeadmin", "--regid=sgeadmin", "--clear-groups", "--"]
        run([*who, "/usr/bin/env", *environ, PROGRAMS / program, *words], timeout_s=60)

    def _configure(self) -> None:
        """Host, scheduler and queue. Each command says what is there already and changes nothing then."""
        self.succeeds("qconf", "-ah", self.host)
        self.succeeds("qconf", "-as", self.host)
        self._from_file("-Ahgrp", HOST_GROUP.format(host=self.host))
        self._from_file("-Msconf", edited(self.ask("qconf", "-ssconf"), SCHEDULER))
        complexes = self.ask("qconf", "-sc")
        if "vm_capable" not in complexes:
            self._from_file("-Mc", f"{complexes}{install_gridengine.COMPLEX}\n")
        if not self.succeeds("qconf", "-sq", QUEUE):
            self._from_file("-Aq", queue_text())
        self.set_queue(install_gridengine.queue_settings(self.targets))

    def _from_file(self, option: str, text: str) -> None:
        path = self.common / "qconf.txt"
        path.write_text(text)
        self.succeeds("qconf", option, str(path))
        path.unlink()

    def _in_service(self) -> bool:
        last = self.ask("qhost", "-h", self.host).splitlines()[-1].split()
        return last[0] == self.host and last[3] != "-" and "u" not in self.queue_state()


def _other_name(host: str) -> str | None:
    """The name to which the host's address resolves back, if it is another: Grid Engine refuses such a host."""
    try:
        back = socket.gethostbyaddr(socket.gethostbyname(host))[0]
    except OSError:
        return None
    return back if back != host else None


def bring_up(engine: GridEngine, names: Sequence[str]) -> None:
    """Everything a job with one of these images needs, up to a queue in service. Raises `DemoError`."""
    layout = engine.layout
    site.make(Cluster(engine.base), names)
    with step("Grid Engine up, its queue in service"):
        site.configure(layout, [NODE], plugin=False)
        install(engine)
        engine.start()


def install(engine: GridEngine) -> None:
    """Our hooks, by the product's own `install`."""
    layout = engine.layout
    environ = [f"{name}={value}" for name, value in engine.environment.items()]
    verb = (layout.command, "--config", layout.config(NODE), "install", "--lrms=gridengine")
    run(["/usr/bin/env", *environ, *verb, "--prefix", layout.prefix(NODE), "--guest", GUEST], timeout_s=120)


def main(words: list[str]) -> int:
    engine = GridEngine(default_base())
    verb = words[0] if words else ""
    started = time.monotonic()
    try:
        if verb == "start":
            bring_up(engine, ["minimal"])
            settings = " ".join(f"{name}={value}" for name, value in engine.environment.items())
            print(f"up after {time.monotonic() - started:.1f} s: export {settings}")
        elif verb == "stop":
            for line in (left := engine.stop()):
                print(f"left: {line}", file=sys.stderr)
            return 1 if left else 0
        elif verb == "status":
            for daemon in engine.daemons():
                print(f"{daemon.name}: {daemon.pid or 'not running'}")
        else:
            print("usage: python -m demo.gridengine start|stop|status", file=sys.stderr)
            return 64
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
