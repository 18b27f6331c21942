"""Torque's and OpenPBS's part of `install`: which files, and what the site's own settings must say.

Torque:
    <prefix>/libexec/torque.prologue, .epilogue ...   the hooks; pbs_mom finds them by four fixed names:
    <pbs home>/mom_priv/prologue, epilogue, prologue.parallel, epilogue.parallel      copies, 0500 root
    <prefix>/site/<name>                              the site's own of these names, if it had one: ours call them
    <prefix>/libexec/torque.starter, .node_check      for mom_priv/config
    <prefix>/libexec/torque.submit_filter             for torque.cfg on login nodes

OpenPBS:
    <prefix>/libexec/openpbs.hook.py                  for qmgr's `import hook`

epilogue.precancel is not installed: it runs as the job's user, and where it fails the node goes down. Beyond these
files nothing of the batch system's configuration is touched: its lines are printed.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from lrms_vm import install
from lrms_vm.errors import NodeError
from lrms_vm.install import EXEC, Planned, check_plain, hook
from lrms_vm.installed_from import SOURCES
from lrms_vm.values import dataclass

MOM_HOOKS = {
    "prologue": "prologue/torque.prologue",
    "prologue.parallel": "prologue/torque.prologue.parallel",
    "epilogue": "epilogue/torque.epilogue",
    "epilogue.parallel": "epilogue/torque.epilogue.parallel",
}
PROGRAMS = {
    "torque.prologue": "prologue/torque.prologue",
    "torque.starter": "prologue/torque.starter",
    "torque.node_check": "prologue/torque.node_check",
    "torque.submit_filter": "prologue/torque.submit_filter",
}
OURS = b"`lrms-vm install` fills in"  # stands in each of our hooks: one that did not would be kept, and call itself
PROLOGALARM_S = 300
HOOK_ALARM_S = 300


@dataclass(frozen=True)
class TorqueTargets:
    """Where everything goes. `home` is PBS_SERVER_HOME, `commands` the directory of qstat and its like."""

    prefix: Path
    home: Path
    commands: Path

    @property
    def libexec(self) -> Path:
        return self.prefix / "libexec"

    @property
    def site(self) -> Path:
        return self.prefix / "site"

    @property
    def mom_priv(self) -> Path:
        return self.home / "mom_priv"

    @property
    def exec(self) -> Path:
        return self.libexec / "lrms-vm-exec"

    @property
    def guest(self) -> Path:
        return self.libexec / "lrms-vm-guest"

    @property
    def all(self) -> tuple[Path, ...]:
        return (
            self.exec,
            self.guest,
            *(self.libexec / name for name in PROGRAMS),
            *(self.mom_priv / name for name in MOM_HOOKS),
        )


@dataclass(frozen=True)
class OpenPbsTargets:
    """Where everything goes."""

    prefix: Path

    @property
    def libexec(self) -> Path:
        return self.prefix / "libexec"

    @property
    def exec(self) -> Path:
        return self.libexec / "lrms-vm-exec"

    @property
    def guest(self) -> Path:
        return self.libexec / "lrms-vm-guest"

    @property
    def hook(self) -> Path:
        return self.libexec / "openpbs.hook.py"

    @property
    def all(self) -> tuple[Path, ...]:
        return (self.exec, self.guest, self.hook)


def plan_torque(
    targets: TorqueTargets, *, python: str, config: Path, run_dir: Path, guest: bytes
) -> tuple[Planned, ...]:
    """Every file of a node. Raises `UsageError` for a path that its reader would cut in two."""
    check_plain(python, config, run_dir, targets.commands, targets.site, *targets.all)
    names = {
        "PYTHON": python,
        "CONFIG": str(config),
        "RUN_DIR": str(run_dir),
        "EXEC": str(targets.exec),
        "COMMANDS": str(targets.commands),
        "SITE": str(targets.site),
        "MOM_PRIV": str(targets.mom_priv),
        "PROLOGUE": str(targets.libexec / "torque.prologue"),
        "WAIT_S": str(PROLOGALARM_S),
    }
    hooks = [Planned(targets.mom_priv / name, hook(source, names), 0o500) for name, source in MOM_HOOKS.items()]
    assert all(OURS in one.content for one in hooks)
    return (
        Planned(targets.exec, EXEC.format(python=python).encode()),
        Planned(targets.guest, guest),
        *(Planned(targets.libexec / name, hook(source, names)) for name, source in PROGRAMS.items()),
        *hooks,
    )


def plan_openpbs(
    targets: OpenPbsTargets, *, python: str, config: Path, run_dir: Path, guest: bytes
) -> tuple[Planned, ...]:
    """Every file of a node, and the hook that the server gets. Raises as `plan_torque`."""
    check_plain(python, config, run_dir, *targets.all)
    names = {
        "PYTHON": repr(python),
        "CONFIG": repr(str(config)),
        "RUN_DIR": repr(str(run_dir)),
        "EXEC": repr(str(targets.exec)),
        "ALARM_S": str(HOOK_ALARM_S),
    }
    text = (SOURCES / "prologue/openpbs.hook.py").read_text()
    for name, value in names.items():
        text = text.replace(f'"@{name}@"', value)
    return (
        Planned(targets.exec, EXEC.format(python=python).encode()),
        Planned(targets.guest, guest),
        Planned(targets.hook, text.encode(), 0o644),
    )


def torque_instructions(targets: TorqueTargets) -> tuple[str, ...]:
    """What the administrator does, once, by hand."""
    libexec = targets.libexec
    return (
        f"{targets.mom_priv}/config must say (then restart pbs_mom):",
        f"    $job_starter {libexec}/torque.starter",
        f"    $prologalarm {PROLOGALARM_S}",
        f"    $node_check_script {libexec}/torque.node_check",
        "    $node_check_interval 10,jobstart",
        "trqauthd must run on the node, and the server must let it speak of nodes and jobs (qmgr):",
        "    set server managers += root@NODE",
        "For `#VM --vm-image=NAME` in job scripts, on login nodes, in torque.cfg:",
        f"    SUBMITFILTER {libexec}/torque.submit_filter",
    )


def openpbs_instructions(targets: OpenPbsTargets) -> tuple[str, ...]:
    """The same, in qmgr's words."""
    events = [*(f"execjob_{name}" for name in ("begin", "prologue", "launch", "epilogue", "end")), "exechost_startup"]
    return (
        "On the server, as root, once (qmgr):",
        "    create resource vm_image type=string,flag=m",
        "    create hook lrms_vm",
        "    set hook lrms_vm event=queuejob",
        *(f"    set hook lrms_vm event+={event}" for event in events),
        f"    set hook lrms_vm alarm={HOOK_ALARM_S}",
        f"    import hook lrms_vm application/x-python default {targets.hook}",
        "The files must be at the same places on all nodes. To undo: delete hook lrms_vm",
    )


def node_settings(targets: TorqueTargets | OpenPbsTargets) -> tuple[str, ...]:
    """What the node's lrms_vm.toml must say."""
    return (f'guest_program = "{targets.guest}"',)


# ---- effects


def site_hooks(targets: TorqueTargets) -> list[Path]:
    """Those of the site's own hooks that ours would replace. Raises `NodeError` for one that pbs_mom would not run."""
    found = []
    for name in MOM_HOOKS:
        path = targets.mom_priv / name
        try:
            state = path.lstat()
            if not stat.S_ISREG(state.st_mode):
                raise NodeError(
                    f"{path}: not a regular file", hint="replace the link by what it names", code="site-hook-odd"
                )
            if OURS not in path.read_bytes():
                found.append(path)
        except FileNotFoundError:
            continue
    return found


def keep_site_hooks(targets: TorqueTargets) -> list[Path]:
    """Copy them to where ours call them; nothing is removed. Returns the copies. Raises `NodeError`."""
    kept = []
    for path in site_hooks(targets):
        copy = targets.site / path.name
        fresh = copy.with_name(f".{copy.name}.new")
        try:
            targets.site.mkdir(mode=0o755, parents=True, exist_ok=True)
            if copy.exists():
                copy.replace(copy.with_name(f"{copy.name}.before"))
            shutil.copy2(path, fresh, follow_symlinks=False)
            os.chmod(fresh, 0o700)
            fresh.replace(copy)
        except OSError as error:
            raise NodeError(f"{copy}: cannot write: {error.strerror}", code="install-failed") from error
        kept.append(copy)
    return kept


def undo_torque(targets: TorqueTargets) -> tuple[list[Path], list[Path]]:
    """Put the site's own hooks back in place of ours, then remove the rest. Returns what was restored and removed."""
    restored = []
    for name in MOM_HOOKS:
        copy, path = targets.site / name, targets.mom_priv / name
        if not copy.exists() or path in site_hooks(targets):
            continue
        fresh = path.with_name(f".{name}.new")
        try:
            shutil.copy2(copy, fresh)
            os.chmod(fresh, 0o500)
            fresh.replace(path)
            copy.unlink()
        except OSError as error:
            raise NodeError(f"{path}: cannot restore: {error.strerror}", code="install-failed") from error
        restored.append(path)
    theirs = {*restored, *site_hooks(targets)}
    removed = install.undo(_Without(targets, tuple(path for path in targets.all if path not in theirs)))
    for directory in (targets.site, targets.prefix):
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()
    return restored, removed


@dataclass(frozen=True)
class _Without:
    """`targets` without the files that are the site's."""

    targets: TorqueTargets
    all: tuple[Path, ...]

    @property
    def prefix(self) -> Path:
        return self.targets.prefix
