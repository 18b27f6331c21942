"""`lrms-vm install`: hooks, and what they need, in place for a batch system; and out again."""

from __future__ import annotations

import argparse
import os
import socket
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from lrms_vm import config as configuration
from lrms_vm import install, install_gridengine, install_pbs, install_systemd, installed, installed_from
from lrms_vm.errors import UsageError

DESCRIPTION = """\
Puts our hooks and what they need (for Slurm the SPANK plugin; where systemd runs, units) in place on a node.
Says what it changes, changes only what differs; --undo leaves what was there before.
The batch system's own configuration is not touched: the lines it needs are printed.
"""
EXAMPLE = """\
examples:
  lrms-vm install --lrms=slurm --dry-run     what would change?
  lrms-vm install --lrms=slurm               then restart slurmd
  lrms-vm install --lrms=slurm --undo
  lrms-vm install --lrms=gridengine --sge-root /var/lib/gridengine
  lrms-vm install --lrms=torque --pbs-home /var/spool/torque --pbs-bin /usr/local/bin
  lrms-vm install --lrms=openpbs
"""


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "install", description=DESCRIPTION, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--lrms", choices=["slurm", "gridengine", "torque", "openpbs"], required=True, help="the batch system"
    )
    parser.add_argument("--prefix", type=Path, default=Path("/opt/lrms_vm"), help="(default %(default)s)")
    parser.add_argument("--slurm-conf-dir", type=Path, default=Path("/etc/slurm"), help="(default %(default)s)")
    parser.add_argument(
        "--sge-root", default=os.environ.get("SGE_ROOT") or "/var/lib/gridengine", help="(default %(default)s)"
    )
    parser.add_argument("--sge-cell", default=os.environ.get("SGE_CELL") or "default", help="(default %(default)s)")
    parser.add_argument(
        "--pbs-home",
        type=Path,
        default=Path("/var/spool/torque"),
        help="Torque: where mom_priv is (default %(default)s)",
    )
    parser.add_argument(
        "--pbs-bin", type=Path, default=Path("/usr/local/bin"), help="Torque: where qstat is (default %(default)s)"
    )
    parser.add_argument(
        "--systemd",
        choices=["auto", "yes", "no"],
        default="auto",
        help="units: reap at boot, scrub, lists (default: where systemd runs)",
    )
    parser.add_argument("--systemd-dir", type=Path, default=Path("/etc"), metavar="DIR", help="(default %(default)s)")
    parser.add_argument("--plugin", type=Path, metavar="FILE.so", help="a built plugin; nothing is compiled then")
    parser.add_argument("--guest", type=Path, metavar="FILE", help="a built guest program, likewise")
    parser.add_argument("--dry-run", action="store_true", help="say what would change, change nothing")
    parser.add_argument("--undo", action="store_true", help="remove what an install put in place")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if os.geteuid() != 0 and not args.dry_run:
        raise UsageError("install: needs root", hint="sudo lrms-vm install ..., or --dry-run", code="not-root")
    prefix = args.prefix.absolute()
    targets: install.Targets
    if args.lrms == "gridengine":
        targets = install_gridengine.GridEngineTargets(prefix)
    elif args.lrms == "torque":
        targets = install_pbs.TorqueTargets(prefix, args.pbs_home.absolute(), args.pbs_bin.absolute())
    elif args.lrms == "openpbs":
        targets = install_pbs.OpenPbsTargets(prefix)
    else:
        targets = install.SlurmTargets(prefix, args.slurm_conf_dir.absolute())
    systemd = install_systemd.SystemdTargets(args.systemd_dir.absolute())
    if args.undo:
        return _undo(targets, systemd, args.lrms, dry_run=args.dry_run)
    install.check_python()
    config_path = (args.config or configuration.DEFAULT_PATH).absolute()
    known = configuration.load(config_path) if config_path.exists() else configuration.Config()
    guest = _read(args.guest) if args.guest else install.program("guest", "lrms-vm-guest")
    note = installed.at(prefix, args.lrms)
    units: tuple[install.Planned, ...] = ()
    if args.systemd == "yes" or (args.systemd == "auto" and install_systemd.booted()):
        units = install_systemd.plan(
            systemd, args.lrms, python=sys.executable, config=config_path, run_dir=Path(known.run_dir)
        )
    if isinstance(targets, install_gridengine.GridEngineTargets):
        _put((*_gridengine_files(targets, config_path, known, guest, args), *units), note, dry_run=args.dry_run)
        _print_gridengine(targets, config_path)
    elif isinstance(targets, install_pbs.TorqueTargets | install_pbs.OpenPbsTargets):
        _put_pbs(targets, config_path, Path(known.run_dir), guest, units, note, dry_run=args.dry_run)
    elif isinstance(targets, install.SlurmTargets):
        plugin = _read(args.plugin) if args.plugin else install.program("spank", "lrms_vm.so")
        files = install.plan(
            targets,
            python=sys.executable,
            config=config_path,
            run_dir=Path(known.run_dir),
            plugin=plugin,
            guest=guest,
        )
        _put((*files, *units), note, dry_run=args.dry_run)
        _print_rest(targets, config_path, known)
    if units and not args.dry_run and install_systemd.booted():
        _say(install_systemd.settle(systemd))
    return 0


def _put(files: Sequence[install.Planned], note: Path, *, dry_run: bool) -> None:
    for verb, file in install.changes(files):
        print(f"{verb:<8}{file.path}{f' -> {file.link}' if file.link else ''}")
    if not dry_run:
        install.apply(files, note=note)
        installed_from.stamp(note)


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        print(line)


def _put_pbs(
    targets: install_pbs.TorqueTargets | install_pbs.OpenPbsTargets,
    config_path: Path,
    run_dir: Path,
    guest: bytes,
    units: tuple[install.Planned, ...],
    note: Path,
    *,
    dry_run: bool,
) -> None:
    if isinstance(targets, install_pbs.TorqueTargets):
        files = install_pbs.plan_torque(
            targets, python=sys.executable, config=config_path, run_dir=run_dir, guest=guest
        )
        said = install_pbs.torque_instructions(targets)
        for path in install_pbs.site_hooks(targets):
            print(f"keep    {path} as {targets.site / path.name}, which ours will call")
        if not dry_run:
            installed.prepare(note, [file.path for file in files])  # before theirs are copied
            install_pbs.keep_site_hooks(targets)
    else:
        files = install_pbs.plan_openpbs(
            targets, python=sys.executable, config=config_path, run_dir=run_dir, guest=guest
        )
        said = install_pbs.openpbs_instructions(targets)
    _put((*files, *units), note, dry_run=dry_run)
    print()
    for line in (*said, f"{config_path} must say:", *(f"    {line}" for line in install_pbs.node_settings(targets))):
        print(line)


def _gridengine_files(
    targets: install_gridengine.GridEngineTargets,
    config_path: Path,
    known: configuration.Config,
    guest: bytes,
    args: argparse.Namespace,
) -> tuple[install.Planned, ...]:
    ports = (os.environ.get("SGE_QMASTER_PORT", ""), os.environ.get("SGE_EXECD_PORT", ""))
    cell = install_gridengine.Cell(args.sge_root, args.sge_cell, *ports)
    return install_gridengine.plan(
        targets, python=sys.executable, config=config_path, run_dir=Path(known.run_dir), cell=cell, guest=guest
    )


def _print_gridengine(targets: install_gridengine.GridEngineTargets, config_path: Path) -> None:
    print()
    for line in install_gridengine.instructions(targets):
        print(line)
    print(f"{config_path} must say:")
    for line in install_gridengine.node_settings(targets):
        print(f"    {line}")


_AFTER_UNDO = {
    "slurm": "Take our lines out of slurm.conf and job_submit.lua as well, then restart slurmctld and slurmd.",
    "torque": "Take our lines out of mom_priv/config as well, then restart pbs_mom.",
    "openpbs": "Take the hook out of the server as well: qmgr -c 'delete hook lrms_vm'.",
    "gridengine": "Take our settings out of the queue and of the host as well (qconf -mq, qconf -mconf HOST).",
}


def _undo(targets: install.Targets, systemd: install_systemd.SystemdTargets, lrms: str, *, dry_run: bool) -> int:
    note = installed.at(targets.prefix, lrms)
    known = installed.read(note)
    if known is None:
        if not dry_run:
            installed.undo(note)
        print(f"nothing is noted in {note}: nothing to undo")
        return 0
    if dry_run:
        for path, copy in reversed(known.was.items()):
            print(f"would {'restore' if copy else 'remove'}  {path}")
        return 0
    theirs: Sequence[Path] = ()
    if isinstance(targets, install_pbs.TorqueTargets):
        theirs = [targets.mom_priv / name for name in install_pbs.MOM_HOOKS]
        restored, removed = install_pbs.undo_torque(targets)
        for hook in restored:
            if kept := known.was.get(str(hook)):
                hook.chmod(stat.S_IMODE(os.lstat(kept).st_mode))
        _print_undone(restored, removed)
    _print_undone(*installed.undo(note, leave=theirs))
    if install_systemd.booted():
        _say(install_systemd.settle(systemd))
    print(_AFTER_UNDO[lrms])
    return 0


def _print_undone(restored: Sequence[Path], removed: Sequence[Path]) -> None:
    for path in restored:
        print(f"restored  {path}, the site's own")
    for path in removed:
        print(f"removed  {path}")


def _print_rest(targets: install.SlurmTargets, config_path: Path, known: configuration.Config) -> None:
    print("\nslurm.conf must say, on the controller and on all nodes (then restart slurmctld and slurmd):")
    for line in install.slurm_conf_lines(targets):
        print(f"    {line}")
    node, guests = socket.gethostname().partition(".")[0], os.cpu_count() or 1
    print("and, where guests are to be counted and nodes found by their hypervisor (docs/slurm.md, Scheduling):")
    lines = install.scheduling_lines(targets, node=node, hypervisor=known.hypervisor, guests=guests)
    _say([f"    {line}" for line in lines])
    plugstack = targets.slurm_conf_dir / "plugstack.conf"
    include = f"include {targets.plugstack.parent}/*.conf"
    if not plugstack.exists() or "plugstack.conf.d" not in plugstack.read_text(errors="replace"):
        print(f"{plugstack} must say:\n    {include}")
    print(f"{config_path} must say:")
    for line in install.node_settings(targets):
        print(f"    {line}")
    print(f"Login nodes need the plugin only, for the options:\n    optional {targets.plugin}")
    own = targets.job_submit.read_text(errors="replace") if targets.job_submit.exists() else None
    if lines := install.job_submit_lines(targets, own):
        print("The controller, where jobs come by DRMAA, REST or from login nodes without the plugin:")
        _say(lines)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot read: {error.strerror}", code="file-unreadable") from error
