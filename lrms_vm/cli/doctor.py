"""`lrms-vm doctor`: what would stop a VM job on this node, each with its remedy."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from lrms_vm import config as configuration
from lrms_vm.errors import EXIT_UNAVAILABLE


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "doctor",
        description="Asks everything a VM job needs on this node. Exit 69: something would stop a job.",
        epilog="example:\n  lrms-vm doctor --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    config = configuration.load(args.config or configuration.DEFAULT_PATH)
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
