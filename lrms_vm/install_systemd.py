"""systemd's part of `install`: units and a line for tmpfiles.d, where systemd is; enabled by their links.

    <etc>/systemd/system/lrms-vm-reap@.service        at boot, before slurmd: what a crash left goes
    <etc>/systemd/system/lrms-vm-scrub.service, .timer     once a night: stored images are read again
    <etc>/systemd/system/lrms-vm-lists.service, .timer     once an hour: the newest version of each image list
    <etc>/systemd/system/lrms-vm-metrics.service, .timer   once a minute, where node_exporter is: its text file
    <etc>/tmpfiles.d/lrms_vm.conf                     run_dir, from boot on

Those that a package brought are not written again; the links then name the package's. Nothing is rotated: everything
is said to syslog, and what a job writes (console.log) goes with the job.
"""

from __future__ import annotations

from pathlib import Path

from lrms_vm import command
from lrms_vm.errors import LrmsVmError
from lrms_vm.install import Planned, check_plain
from lrms_vm.installed_from import SOURCES
from lrms_vm.values import dataclass

REAP = "lrms-vm-reap@.service"
METRICS = "lrms-vm-metrics.timer"
UNITS = (
    REAP,
    "lrms-vm-scrub.service",
    "lrms-vm-scrub.timer",
    "lrms-vm-lists.service",
    "lrms-vm-lists.timer",
    "lrms-vm-metrics.service",
    METRICS,
)
TMPFILES = "lrms_vm.conf"
TIMERS = ("lrms-vm-scrub.timer", "lrms-vm-lists.timer")
EXPORTER = Path("/var/lib/prometheus/node-exporter")  # Debian's prometheus-node-exporter reads *.prom there
TIMEOUT_S = 60.0
REAPED_AT_BOOT = ("slurm",)  # whose `reap` needs no more than the node's name


def booted() -> bool:
    """sd_booted(3)."""
    return Path("/run/systemd/system").is_dir()


@dataclass(frozen=True)
class SystemdTargets:
    """Where everything goes."""

    etc: Path = Path("/etc")
    packaged: Path = Path("/lib")  # systemd/system/, tmpfiles.d/: Debian's packages put theirs here
    exporter: Path = EXPORTER

    @property
    def tmpfiles(self) -> Path:
        return self.etc / "tmpfiles.d" / TMPFILES

    def unit(self, name: str) -> Path:
        return self.etc / "systemd/system" / name

    def named(self, name: str) -> str:
        """What a link names: the package's unit where there is one."""
        packaged = self.packaged / "systemd/system" / name
        return str(packaged if packaged.is_file() else self.unit(name))

    def links(self, lrms: str) -> dict[Path, str]:
        """What `systemctl enable` would make, and the unit that each names."""
        timers = (*TIMERS, METRICS) if self.exporter.is_dir() else TIMERS
        found = {self.unit("timers.target.wants") / name: name for name in timers}
        if lrms in REAPED_AT_BOOT:
            found[self.unit("multi-user.target.wants") / f"lrms-vm-reap@{lrms}.service"] = REAP
        return found


def plan(targets: SystemdTargets, lrms: str, *, python: str, config: Path, run_dir: Path) -> tuple[Planned, ...]:
    """Every file and link. Raises `UsageError` for a path that systemd would cut in two."""
    check_plain(python, config, run_dir)
    names = {"PYTHON": python, "CONFIG": str(config), "RUN_DIR": str(run_dir), "EXPORTER": str(EXPORTER)}
    packaged = {targets.unit(name): targets.packaged / "systemd/system" / name for name in UNITS}
    packaged[targets.tmpfiles] = targets.packaged / "tmpfiles.d" / TMPFILES
    return (
        *(Planned(path, text(path.name, names), 0o644) for path, theirs in packaged.items() if not theirs.is_file()),
        *(Planned(link, b"", link=targets.named(name)) for link, name in targets.links(lrms).items()),
    )


def text(name: str, names: dict[str, str]) -> bytes:
    """A unit with its @NAMES@ filled in. The names are plain: `check_plain` saw to it."""
    found = (SOURCES / "systemd" / name).read_text()
    for key, value in names.items():
        found = found.replace(f"@{key}@", value)
    return found.encode()


# ---- effects: only where systemd runs


def settle(targets: SystemdTargets) -> list[str]:
    """Have systemd read its units again; start the timers that are enabled, stop the others.

    Returns what is left to do by hand where that fails: the files are right anyway.
    """
    said: list[str] = []

    def systemctl(*words: str) -> str:
        try:
            return command.run(["systemctl", *words], timeout_s=TIMEOUT_S).decode("utf-8", "replace")
        except LrmsVmError as error:
            said.append(f"by hand: systemctl {' '.join(words)} ({error.message})")
            return ""

    timers = (*TIMERS, METRICS)
    enabled = [name for name in timers if (targets.unit("timers.target.wants") / name).is_symlink()]
    active = systemctl("list-units", "--plain", "--no-legend", *timers).split()
    for name in timers:
        if name in active and name not in enabled:  # stopping one that systemd does not know is an error there
            systemctl("stop", name)
    systemctl("daemon-reload")  # only now: a timer that runs and whose file is gone would be a failed unit
    for name in enabled:
        systemctl("start", name)
    return said
