"""A node as an emulated machine, and the way into it: QEMU with its pid file, a tap, ssh as root.

    node.start()                       # seconds later: ssh answers
    print(node.run("systemctl is-system-running"))
    node.stop()

What machine that is, a kind of node says in its `argv`. No hardware virtualisation is needed.
"""

from __future__ import annotations

import contextlib
import fcntl
import shlex
import subprocess
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from demo import programs
from demo.machine_layout import PREFIX_LENGTH, Identity, MachineLayout
from demo.programs import ENVIRONMENT, Daemon, DemoError

CPUS = 2
BOOT_S = 240
SSH_FAILED = 255  # ssh's own exit code; a command may have it too


@dataclass(frozen=True)
class Machine(ABC):
    """The machine, by its pid file: whoever knows the layout can use a running one."""

    layout: MachineLayout

    @abstractmethod
    def argv(self) -> list[str]:
        """The emulator's command line: with the layout's disk, pid file and tap; it puts itself into the background."""

    @property
    def identity(self) -> Identity:
        return self.layout.identity

    @property
    def daemon(self) -> Daemon:
        pid_file = self.layout.pid_file
        return Daemon(f"the {self.identity.kind} node", tuple(self.argv()), pid_file, str(pid_file))

    @property
    def running(self) -> bool:
        return self.daemon.pid is not None

    def start(self) -> None:
        """Boot it, unless it runs, and wait until ssh answers. Raises `DemoError`."""
        if self.running:
            return
        make_tap(self.identity)
        self.layout.console.unlink(missing_ok=True)
        self.daemon.start()
        deadline = time.monotonic() + BOOT_S
        while not self.answers():
            if not self.running or time.monotonic() > deadline:
                said = f"{self.daemon.name} does not come up; it said, in {self.layout.console}:\n{self.said()}"
                raise DemoError(said)
            time.sleep(0.5)

    def stop(self) -> None:
        """Pull the plug: what it wrote is thrown away in any case."""
        self.hang_up()
        self.daemon.stop()
        if self.identity.tap in taps():
            programs.run(["ip", "link", "delete", self.identity.tap])

    def hang_up(self) -> None:
        """End the connection that all commands share."""
        with contextlib.suppress(DemoError):
            programs.run([*self._ssh(), "-O", "exit", self.identity.node_address], timeout_s=20)

    # -- the way in

    def call(
        self, command: str, *, stdin: bytes = b"", timeout_s: float = 120, check: bool = False
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a shell command as the node's root.

        Raises `DemoError` past the time, when the machine has ended, and with `check` for a failure.
        """
        argv, node = [*self._ssh(), f"root@{self.identity.node_address}", command], self.identity.node
        try:
            done = subprocess.run(argv, input=stdin, capture_output=True, timeout=timeout_s, env=dict(ENVIRONMENT))
        except subprocess.TimeoutExpired as error:
            raise DemoError(f"{node}: no end within {timeout_s:.0f} s: {command}") from error
        if done.returncode == SSH_FAILED and not self.running:
            raise DemoError(f"{node}: the machine has ended; it said, in {self.layout.console}:\n{self.said()}")
        if check and done.returncode != 0:
            said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()[-2000:]
            raise DemoError(f"{node}: exit {done.returncode} from: {command}\n{said}")
        return done

    def run(self, command: str, *, stdin: bytes = b"", timeout_s: float = 120) -> str:
        """The same; its stdout. Raises `DemoError` for a failure too."""
        return self.call(command, stdin=stdin, timeout_s=timeout_s, check=True).stdout.decode("utf-8", "replace")

    def write(self, path: str, text: str) -> None:
        """Put a text where the node has that file: the same owner and mode."""
        self.run(f"cat > {shlex.quote(path)}", stdin=text.encode())

    def answers(self) -> bool:
        try:
            return self.call("true", timeout_s=20).returncode == 0
        except DemoError:
            return False

    def _ssh(self) -> list[str]:
        """One connection for all commands: a new one costs a second under emulation."""
        options = {
            "IdentitiesOnly": "yes",
            "IdentityFile": self.layout.key,
            "UserKnownHostsFile": self.layout.known_hosts,
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "ConnectTimeout": "15",
            "ControlMaster": "auto",
            "ControlPath": self.layout.ssh_socket,
            "ControlPersist": "300",
            "ServerAliveInterval": "15",
            "LogLevel": "ERROR",
        }
        return ["ssh", "-F", "/dev/null", *(word for k, v in options.items() for word in ("-o", f"{k}={v}"))]

    def said(self) -> str:
        try:
            return self.layout.console.read_text(errors="replace")[-4000:]  # a panic as a whole
        except FileNotFoundError:
            return "(nothing)"


def common_argv(
    layout: MachineLayout, *, cpu: str, memory_mib: int, cpus: int = CPUS, virtio: str = "", threads: str = "multi"
) -> list[str]:
    """What every such machine has: emulated processors, a console in a file, the cable, the shared directories.

    `virtio`: properties of each device, with a comma before them. `threads`: of the emulator, "multi" or "single".
    """
    identity = layout.identity
    shared = [
        word
        for number, (tag, place) in enumerate(shared_directories(layout).items())
        for word in (
            *("-fsdev", f"local,id=f{number},path={place},security_model=passthrough"),
            *("-device", f"virtio-9p-pci,fsdev=f{number},mount_tag={tag}{virtio}"),
        )
    ]
    return [
        *("qemu-system-x86_64", "-name", identity.tap, "-accel", f"tcg,thread={threads},tb-size=512"),
        *("-cpu", cpu, "-smp", str(cpus), "-m", str(memory_mib)),
        *("-nodefaults", "-display", "none", "-no-reboot", "-daemonize", "-pidfile", str(layout.pid_file)),
        *("-serial", f"file:{layout.console}"),
        *("-netdev", f"tap,id=net,ifname={identity.tap},script=no,downscript=no"),
        *("-device", f"virtio-net-pci,netdev=net{virtio}"),
        *("-device", f"virtio-rng-pci{virtio}"),
        *shared,
    ]


def shared_directories(layout: MachineLayout) -> dict[str, Path]:
    """What the node has of this machine's directories, at the same paths: by 9p mount tag."""
    return {"homes": layout.homes, "images": layout.site.images}


def taps() -> list[str]:
    """Names of this machine's network interfaces."""
    return [path.name for path in Path("/sys/class/net").iterdir()]


def make_tap(identity: Identity) -> None:
    """Our end of the cable to the node."""
    if identity.tap not in taps():
        programs.run(["ip", "tuntap", "add", "dev", identity.tap, "mode", "tap"])
    programs.run(["ip", "address", "replace", f"{identity.host_address}/{PREFIX_LENGTH}", "dev", identity.tap])
    programs.run(["ip", "link", "set", identity.tap, "up"])


def claim(path: Path) -> contextlib.AbstractContextManager[object]:
    """One program at a time uses the node; released when closed, or with the process. Waits."""
    file = path.open("a")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file
