"""`lrms-vm doctor`: what would stop a VM job on this node, each with its remedy."""

from __future__ import annotations

import argparse
import json
import os
import socket
import time
from dataclasses import asdict
from pathlib import Path

from lrms_vm import config as configuration
from lrms_vm.errors import EXIT_UNAVAILABLE

TIMEOUT_S = 30.0
MEMINFO = Path("/proc/meminfo")


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "doctor",
        description="Asks everything a VM job needs on this node. Exit 69: something would stop a job.",
        epilog="examples:\n  lrms-vm doctor --json\n  lrms-vm doctor --slurm-conf",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument(
        "--slurm-conf", action="store_true", help="ask nothing: print what slurm.conf must say of this node's size"
    )
    parser.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    config = configuration.load(args.config or configuration.DEFAULT_PATH)
    if args.slurm_conf:
        return _slurm_conf(config)
    from lrms_vm.checks import all_findings

    findings = []
    for finding in all_findings(config):
        findings.append(finding)
        if not args.json:
            print(f"{'ok  ' if finding.ok else 'STOP'}  {finding.check:<26} {finding.found}")
            if finding.remedy:
                print(f"      -> {finding.remedy}")
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    return 0 if all(finding.ok for finding in findings) else EXIT_UNAVAILABLE


def _slurm_conf(config: configuration.Config) -> int:
    """The node's size for guests: on Xen it is not what slurmd in dom0 finds."""
    from lrms_vm import node, node_size

    if config.hypervisor == "xen":
        size = node_size.of_xen(node.hypervisor(config).xen_machine(deadline=time.monotonic() + TIMEOUT_S))
    else:
        size = node_size.of_linux(node_size.memory_total_mib(MEMINFO.read_text()), os.cpu_count() or 1)
    name = socket.gethostname().partition(".")[0]
    print("\n".join(node_size.slurm_lines(name, size, config.hypervisor)))
    return 0
