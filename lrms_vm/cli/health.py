"""`lrms-vm health`: whether this node can run VMs, in the words of its batch system."""

from __future__ import annotations

import argparse
import socket

from lrms_vm import config as configuration
from lrms_vm import journal
from lrms_vm.errors import EXIT_UNAVAILABLE, LrmsVmError
from lrms_vm.lrms import gridengine, torque


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "health",
        description="Asks what would stop every VM job on this node, for the batch system's own health check.",
        epilog="example:\n  lrms-vm health --lrms=gridengine",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--lrms", choices=["gridengine", "torque"], required=True, help="the batch system that asks")
    parser.add_argument("--node", default=socket.gethostname(), help="this node's name there (default: %(default)s)")
    parser.set_defaults(run=_health)


def _health(args: argparse.Namespace) -> int:
    wrong = _first_problem(args)
    if wrong is not None:
        journal.say("warning", "health", wrong)  # batch systems have no place for a reason, or a short one
    if args.lrms == "torque":
        print(torque.health_report(wrong), end="")
    else:
        print(gridengine.load_report(args.node, capable=wrong is None), end="")
    return EXIT_UNAVAILABLE if wrong else 0


def _first_problem(args: argparse.Namespace) -> str | None:
    """None on a healthy node. What is wrong with images or CRLs is not this node's."""
    from lrms_vm.checks import node_findings

    try:
        config = configuration.load(args.config or configuration.DEFAULT_PATH)
        return next((f"{one.check}: {one.found}" for one in node_findings(config) if not one.ok), None)
    except LrmsVmError as error:
        return str(error)
