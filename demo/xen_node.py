"""A Xen node as an emulated machine: Xen 4.17, a PV dom0 of Debian, libvirtd and slurmd; and the way into it.

    node = Node(layout)
    node.start()                       # seconds later: ssh answers
    print(node.run("xl list"))
    node.stop()

No hardware virtualisation is needed. Facts behind the choices: docs/xen.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import shlex
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from demo import programs
from demo.programs import ENVIRONMENT, Daemon, DemoError
from demo.xen_layout import HOST_ADDRESS, NODE_ADDRESS, PREFIX_LENGTH, TAP, XenLayout

MACHINE_MIB = 6144
DOM0_MIB = 2048
CPUS = 2
BOOT_S = 240
# A CPU that Xen, a PV dom0 and libvirt's table of CPUs all accept; newer ones crash the dom0 in early boot.
CPU_MODEL = "Westmere"
# What a PV dom0 can drive: its pages are not where the machine's are, so devices must not bypass its DMA layer.
VIRTIO = "iommu_platform=on,disable-legacy=on"


@dataclass(frozen=True)
class Node:
    """The machine, by its pid file: whoever knows the layout can use a running one."""

    layout: XenLayout

    @property
    def daemon(self) -> Daemon:
        return Daemon("the Xen node", tuple(self._argv()), self.layout.pid_file, str(self.layout.pid_file))

    @property
    def running(self) -> bool:
        return self.daemon.pid is not None

    def start(self) -> None:
        """Boot it, unless it runs, and wait until ssh answers. Raises `DemoError`."""
        if self.running:
            return
        make_tap()
        self.layout.console.unlink(missing_ok=True)
        self.daemon.start()
        deadline = time.monotonic() + BOOT_S
        while not self.answers():
            if not self.running or time.monotonic() > deadline:
                raise DemoError(f"the Xen node does not come up; it said, in {self.layout.console}:\n{self._said()}")
            time.sleep(0.5)

    def stop(self) -> None:
        """Pull the plug: what it wrote is thrown away in any case."""
        with contextlib.suppress(DemoError):
            programs.run([*self._ssh(), "-O", "exit", NODE_ADDRESS], timeout_s=20)
        self.daemon.stop()
        if TAP in taps():
            programs.run(["ip", "link", "delete", TAP])

    # -- the way in

    def call(
        self, command: str, *, stdin: bytes = b"", timeout_s: float = 120, check: bool = False
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a shell command as dom0's root. Raises `DemoError` past the time, and with `check` for a failure."""
        argv = [*self._ssh(), f"root@{NODE_ADDRESS}", command]
        try:
            done = subprocess.run(argv, input=stdin, capture_output=True, timeout=timeout_s, env=dict(ENVIRONMENT))
        except subprocess.TimeoutExpired as error:
            raise DemoError(f"x1: no end within {timeout_s:.0f} s: {command}") from error
        if check and done.returncode != 0:
            said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()[-2000:]
            raise DemoError(f"x1: exit {done.returncode} from: {command}\n{said}")
        return done

    def run(self, command: str, *, stdin: bytes = b"", timeout_s: float = 120) -> str:
        """The same; its stdout. Raises `DemoError` for a failure too."""
        return self.call(command, stdin=stdin, timeout_s=timeout_s, check=True).stdout.decode("utf-8", "replace")

    def write(self, path: str, text: str) -> None:
        """Put a text where dom0 has that file: the same owner and mode."""
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
            "ControlPath": self.layout.run / "x1.ssh",
            "ControlPersist": "300",
            "ServerAliveInterval": "15",
            "LogLevel": "ERROR",
        }
        return ["ssh", "-F", "/dev/null", *(word for k, v in options.items() for word in ("-o", f"{k}={v}"))]

    # -- the machine

    def _argv(self) -> list[str]:
        layout = self.layout
        xen = f"dom0_mem={DOM0_MIB}M,max:{DOM0_MIB}M dom0_max_vcpus={CPUS} console=com1 com1=115200,8n1 noreboot=1"
        xen += " loglvl=warning bootscrub=0 spec-ctrl=no xpti=no"
        dom0 = "root=/dev/vda rw console=hvc0 net.ifnames=0 quiet mitigations=off"
        shared = [
            word
            for number, (tag, place) in enumerate(shared_directories(layout).items())
            for word in (
                *("-fsdev", f"local,id=f{number},path={place},security_model=passthrough"),
                *("-device", f"virtio-9p-pci,fsdev=f{number},mount_tag={tag},{VIRTIO}"),
            )
        ]
        return [
            *("qemu-system-x86_64", "-name", "lrms-vm-x1", "-accel", "tcg,thread=multi,tb-size=512"),
            *("-cpu", CPU_MODEL, "-smp", str(CPUS), "-m", str(MACHINE_MIB)),
            *("-nodefaults", "-display", "none", "-no-reboot", "-daemonize", "-pidfile", str(layout.pid_file)),
            *("-serial", f"file:{layout.console}"),
            *("-kernel", str(layout.node / "xen.elf"), "-append", xen),
            *("-initrd", f"{layout.node / 'vmlinuz'} {dom0},{layout.node / 'initrd.img'}"),
            *("-drive", f"file={layout.disk},if=none,id=disk,format=raw,cache=unsafe,snapshot=on"),
            *("-device", f"virtio-blk-pci,drive=disk,{VIRTIO}"),
            *("-netdev", f"tap,id=net,ifname={TAP},script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev=net,{VIRTIO}"),
            *("-device", f"virtio-rng-pci,{VIRTIO}"),
            *shared,
        ]

    def _said(self) -> str:
        try:
            return self.layout.console.read_text(errors="replace")[-2000:]
        except FileNotFoundError:
            return "(nothing)"


def shared_directories(layout: XenLayout) -> dict[str, Path]:
    """What dom0 has of this machine's directories, at the same paths: by 9p mount tag."""
    return {"homes": layout.homes, "images": layout.site.images}


def taps() -> list[str]:
    """Names of this machine's network interfaces."""
    return [path.name for path in Path("/sys/class/net").iterdir()]


def make_tap() -> None:
    """Our end of the cable to the node."""
    if TAP not in taps():
        programs.run(["ip", "tuntap", "add", "dev", TAP, "mode", "tap"])
    programs.run(["ip", "address", "replace", f"{HOST_ADDRESS}/{PREFIX_LENGTH}", "dev", TAP])
    programs.run(["ip", "link", "set", TAP, "up"])


def claim(path: Path) -> contextlib.AbstractContextManager[object]:
    """One program at a time uses the node; released when closed, or with the process. Waits."""
    file = path.open("a")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file
