"""What the OpenPBS adapter must do on a node: tell the hook file, which does all that concerns jobs and nodes.

The facts of the event come on stdin, the instructions go to stdout; lrms/openpbs.py has both, which is pure. This is a
`batch_system.BatchSystem`.
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Sequence

from lrms_vm.config import Config
from lrms_vm.errors import LrmsVmError, SiteError, UsageError
from lrms_vm.lrms import openpbs
from lrms_vm.lrms.base import PROLOGUE, Action, Call, Outcome, Told
from lrms_vm.request import Allocation

NAME = openpbs.NAME


def call(words: Sequence[str]) -> Call:
    """`words`: how many seconds the hook may take (its alarm)."""
    if len(words) != 1 or not words[0].isdecimal() or len(words[0]) > 6:
        raise SiteError(f"{list(words)!r:.80}: expected the hook's seconds", code="hook-environment")
    return Call(argv=tuple(words), environ=os.environ, files={openpbs.FACTS: sys.stdin.buffer.read(openpbs.MAX_FACTS)})


def identify(call: Call) -> Allocation:
    name = openpbs.owner(call)
    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        raise SiteError(f"{name}: no such user on this node", code="user-unknown") from error
    if entry.pw_uid == 0:
        raise SiteError(f"{name}: is root", code="hook-environment")
    return openpbs.identify(call, uid=entry.pw_uid, gid=entry.pw_gid)


def unready(hook: str, error: LrmsVmError) -> int:
    """Held: without a configuration nothing could be counted."""
    if hook != PROLOGUE:
        return 0
    print(openpbs.instruction(Action.HOLD, f"{error.code}: {error.message}"), end="")
    return openpbs.REJECT


def prologue_limit_s(call: Call) -> float:
    return float(call.argv[0]) * 0.9


def require_way_in(call: Call, config: Config) -> None:
    """The way in is the same hook's execjob_launch."""


def parse_options(call: Call) -> tuple[dict[str, str], str]:
    return openpbs.parse_options(call)


def allocation(call: Call, config: Config) -> Allocation:
    return identify(call)


def outcome(hook: str, outcome: Outcome, *, retries: int) -> Told:
    return openpbs.outcome(hook, outcome, retries=retries)


def act(action: Action, why: str, job: Allocation, call: Call, config: Config) -> None:
    print(openpbs.instruction(action, why), end="", flush=True)


def started(allocation: Allocation, call: Call, config: Config) -> None:
    return None


def lost(key: str, call: Call, config: Config) -> None:
    return None


def node_name(call: Call) -> str | None:
    return os.uname().nodename.partition(".")[0]


def active_keys(node: str, call: Call, config: Config) -> set[str]:
    """In a hook: as its facts say. `lrms-vm reap` is told: a restarted pbs_mom may still have its jobs."""
    jobs = call.argv if openpbs.FACTS not in call.files else openpbs.jobs_here(call)
    if not jobs:
        raise UsageError(
            "which jobs has pbs_mom on this node?",
            hint="lrms-vm reap --lrms=openpbs -- JOBID ..., or -- none",
            code="jobs-unknown",
        )
    return openpbs.keys([job for job in jobs if job != "none"], node)
