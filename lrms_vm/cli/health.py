"""`lrms-vm health`: whether this node can run VMs, in the words of its batch system."""

from __future__ import annotations

import argparse
import os
import socket
import sys

from lrms_vm import config as configuration
from lrms_vm import journal
from lrms_vm.config import Config
from lrms_vm.errors import EXIT_UNAVAILABLE, LrmsVmError
from lrms_vm.lrms import gridengine, torque


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "health",
        description="Asks what would stop every VM job on this node, for the batch system's own health check.\n"
        'Slurm: drains a sick node, or (sick_node = "no-vm") takes its VM features off until it is well again.',
        epilog="example:\n  lrms-vm health --lrms=gridengine",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--lrms", choices=["slurm", "gridengine", "torque"], required=True, help="the batch system that asks"
    )
    parser.add_argument("--node", help="this node's name there (default: SLURMD_NODENAME, else the host's name)")
    parser.set_defaults(run=_health)


def _health(args: argparse.Namespace) -> int:
    wrong = _first_problem(args)
    if wrong is not None:
        journal.say("warning", "health", wrong)  # batch systems have no place for a reason, or a short one
    if args.lrms == "torque":
        print(torque.health_report(wrong), end="")
    elif args.lrms == "gridengine":
        print(gridengine.load_report(args.node or socket.gethostname(), capable=wrong is None), end="")
    else:
        return _tell_slurm(args, wrong or "")
    return EXIT_UNAVAILABLE if wrong else 0


def _first_problem(args: argparse.Namespace) -> str | None:
    """None on a healthy node. What is wrong with images or CRLs is not this node's."""
    from lrms_vm.checks import node_findings

    try:
        config = _config(args)
        comes_back = args.lrms != "slurm" or config.sick_node == "no-vm"
        findings = node_findings(config, comes_back=comes_back)
        return next((f"{one.check}: {one.found}" for one in findings if not one.ok), None)
    except LrmsVmError as error:
        return str(error)


def _config(args: argparse.Namespace) -> Config:
    return configuration.load(args.config or configuration.DEFAULT_PATH)


def _tell_slurm(args: argparse.Namespace, wrong: str) -> int:
    """The features come back only on a node that has nothing left of its ended jobs. Raises `LrmsVmError`."""
    from lrms_vm import slurm_node
    from lrms_vm.cli import hooks

    node = args.node or os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]
    config, call = _config(args), slurm_node.call(())
    if config.sick_node == "drain":
        if wrong and slurm_node.drain(node, wrong, call, config):
            journal.say("warning", "health", f"{node} drained: {wrong}")
    else:
        if not wrong and (left := hooks.reap(node, slurm_node, config, call)):
            wrong = f"left behind: {left[0]}"
        if slurm_node.set_vm(node, wrong, call, config):
            journal.say("warning", "health", f"{node}: VM features {'off: ' + wrong if wrong else 'on again'}")
    print(f"{node}: {wrong or 'can run VMs'}", file=sys.stderr if wrong else sys.stdout)
    return EXIT_UNAVAILABLE if wrong else 0
