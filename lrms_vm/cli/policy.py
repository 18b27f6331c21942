"""`lrms-vm policy check`: does trust.toml say what it is meant to say? (`policy explain`: cli/policy_explain.py)"""

from __future__ import annotations

import argparse
import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lrms_vm import config as configuration
from lrms_vm.cli import policy_explain, site_trust
from lrms_vm.errors import EXIT_CONFIG, ConfigError, LrmsVmError, UsageError

if TYPE_CHECKING:
    from lrms_vm.trust.policy import Policy
    from lrms_vm.trust.policy_lint import Finding

EXAMPLES = """\
examples:
  lrms-vm policy check                      the site's own trust.toml, its CA directory and mapfiles
  lrms-vm policy check draft.toml --json    before it is put in place

exit codes: 0 nothing wrong (warnings and notes may be), 78 it is not read at all, or says less than it seems to
"""


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = verbs.add_parser(
        "check",
        help="read trust.toml as a job would, and look for rules that do nothing",
        description="Read trust.toml, its CA directory and mapfiles; say what is wrong, by line.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("file", type=Path, nargs="?", metavar="FILE", help="default: the site's trust.toml")
    check.add_argument("--json", action="store_true", help="for machines")
    check.set_defaults(run=_check)
    policy_explain.register(verbs)


def _check(args: argparse.Namespace) -> int:
    path = args.file or site_trust.site_policy(args.config)
    found = _findings(path, is_draft=args.file is not None)
    wrong = sum(one.level == "error" for one in found)
    if args.json:
        listed = [{"level": one.level, "code": one.code, "where": one.where, "message": one.message} for one in found]
        print(json.dumps({"file": str(path), "good": not wrong, "findings": listed}, indent=1))
    else:
        for one in found:
            print(f"{one.where}: {one.level}: {one.message} [{one.code}]")
        others = len(found) - wrong
        print(f"{path}: {wrong} errors, {others} other findings" if found else f"{path}: nothing to say")
    return EXIT_CONFIG if wrong else 0


def _findings(path: Path, *, is_draft: bool) -> list[Finding]:
    from lrms_vm.trust import policy as reading
    from lrms_vm.trust.policy_lint import ERROR, WARNING, Finding

    found = []
    try:
        text = configuration.read_trusted(path.absolute())
    except ConfigError as error:
        if error.code != "config-unsafe":
            raise UsageError(error.message, code="file-unreadable") from error
        found.append(Finding(WARNING if is_draft else ERROR, error.code, str(path), str(error)))
        text = configuration.read_trusted(path.absolute(), must_be_root_owned=False)
    try:
        problems = reading.problems_of(text, source=str(path))
    except ConfigError as error:
        return [*found, Finding(ERROR, error.code, str(path), error.message)]
    for problem in problems:
        line = re.match(r"line ([0-9]+), ", problem)
        where = f"{path}:{line[1]}" if line else str(path)
        found.append(Finding(ERROR, "policy-invalid", where, problem[line.end() :] if line else problem))
    if problems:
        return found
    return found + _linted(reading.parse_policy(text, source=str(path)))


def _linted(policy: Policy) -> list[Finding]:
    """What is wrong with a policy that can be read, and with the files that it names."""
    from lrms_vm.anchors import read_anchors
    from lrms_vm.site_policy import with_mapping
    from lrms_vm.trust.ca_lint import lint_anchors
    from lrms_vm.trust.policy_lint import ERROR, Finding, lint

    found = []
    at = datetime.now(UTC)
    must_be_root_owned = os.geteuid() == 0
    try:
        policy = with_mapping(policy, must_be_root_owned=must_be_root_owned)
    except LrmsVmError as error:
        found.append(Finding(ERROR, error.code, policy.defaults_where, str(error)))
    found += lint(policy, today=at.date(), strangers=_strangers(policy))
    try:
        anchors = read_anchors(Path(policy.ca_dir), must_be_root_owned=must_be_root_owned)
    except LrmsVmError as error:
        return [*found, Finding(ERROR, error.code, policy.defaults_where, str(error))]
    return found + lint_anchors(policy, anchors, at=at)


def _strangers(policy: Policy) -> set[str]:
    """Users and groups of the rules that this machine does not know."""
    import grp
    import pwd

    strangers = set()
    for rule in policy.runners:
        for user in rule.users:
            try:
                pwd.getpwnam(user)
            except KeyError:
                strangers.add(f"user:{user}")
        for group in rule.groups:
            try:
                grp.getgrnam(group)
            except KeyError:
                strangers.add(f"group:{group}")
    return strangers - {"user:*"}
