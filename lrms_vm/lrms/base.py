"""What all batch systems share: how a hook was called, what became of its work, and what the batch system is told.

Each system is two modules. `lrms/<system>.py` is pure: the hook's arguments, environment and files come in as values,
so that every odd variable of every release is a unit test with a dict. `<system>_node.py` does what must be done on
a node: it is a `batch_system.BatchSystem`, and the hooks (cli/hooks.py) know nothing else of it.

Which outcome tells the batch system what is one table per adapter, with its manual's section above it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import field
from typing import Protocol

from lrms_vm.errors import ConfigError, LrmsVmError, NodeError, RequestError, SiteError
from lrms_vm.request import Allocation
from lrms_vm.values import dataclass

PROLOGUE, EPILOGUE = "prologue", "epilogue"
LAUNCHER_NAMES = {"slurm": "srun", "torque": "pbsdsh", "openpbs": "pbsdsh"}  # what starts a job's tasks, from within it
PATIENCE_S, LONGEST_QUESTION_S, SHORTEST_QUESTION_S = 40.0, 20.0, 1.0
MAX_RETRIES = 3  # how often a job is sent back by our own hand; a batch system may start it sixteen times in 4 s


class Patience:
    """How long one hook, reap or check waits for the batch system: seconds that all of its questions share.

    A server that hangs would else cost a reap so much for each of its jobs. No question gets all of it: one that came
    to nothing leaves time to have the node taken out of service.
    """

    def __init__(self, total_s: float = PATIENCE_S) -> None:
        self.left_s, self.spent_s = total_s, 0.0

    def at_most(self, limit_s: float) -> None:
        """For a hook that may not take as long as that at all."""
        self.left_s = min(self.left_s, limit_s)

    @property
    def next_s(self) -> float:
        """Seconds for the next question; 0: it is not worth asking."""
        return min(self.left_s, LONGEST_QUESTION_S) if self.left_s >= SHORTEST_QUESTION_S else 0.0

    def spend(self, seconds: float) -> None:
        """On a question, answered or not."""
        self.left_s -= seconds
        self.spent_s += seconds


@dataclass(frozen=True)
class Call:
    """How a hook was called. Every byte is hostile until its adapter says who wrote it."""

    argv: tuple[str, ...] = ()  # the hook's own arguments, without its name
    environ: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)  # what the node's half read for it, by a short name
    patience: Patience = field(default_factory=Patience, compare=False, repr=False)


class Outcome(enum.Enum):
    """What became of a hook's work."""

    READY = "ready"
    REQUEST = "request"  # the job must change
    SITE = "site"  # something all nodes share is down: later may be better
    CONFIG = "config"  # the site's configuration, or a bug of ours: trying again gains nothing
    NODE = "node"  # another node may succeed
    SICK = "sick"  # as NODE or LEFTOVERS, where the site would rather lose the node's VM capability than the node
    LEFTOVERS = "leftovers"  # teardown could not undo something


class Action(enum.Enum):
    """What is done beside the exit code."""

    VERDICT = "verdict"  # leave a refused verdict: what stands in the payload's place prints it and ends with its code
    COUNT = "count"  # one more on our counter of this job's retries; without it the counter is forgotten
    TAKE_OUT = "take out"  # the node, out of service, with our reason
    NO_VM = "take the VM capability off"  # the node, which stays in service for other jobs
    SEND_BACK = "send back"  # the job, to run elsewhere
    HOLD = "hold"  # the job, until somebody releases it
    EXPLAIN = "explain"  # put the reason on the job, where its user looks


@dataclass(frozen=True)
class Told:
    """What a hook does and with which code it ends."""

    exit_code: int
    actions: tuple[Action, ...] = ()  # in this order
    otherwise: int | Told | None = None  # the exit code, or what is done, where an action failed; None: the same


class Lrms(Protocol):
    """A module under `lrms_vm.lrms` has these, over a `Call` or the part of it that the system fills."""

    def identify(self, call: Call) -> Allocation:
        """Which job, user and node the hook was called for; cpus and memory may not be known yet.
        Raises `SiteError` when this is no hook's call."""

    def parse_options(self, call: Call) -> tuple[dict[str, str], str]:
        """The option texts by their words (`request.OPTIONS`), and which carrier they came by. Hostile, unread.
        Raises `UsageError` when the job asks for no VM."""

    def outcome(self, hook: str, outcome: Outcome, *, retries: int) -> Told:
        """The adapter's table. `retries`: how often this job was sent back here already."""


def outcome_of(error: LrmsVmError | None) -> Outcome:
    """Whose fault it is, as far as a batch system can be told."""
    match error:
        case None:
            return Outcome.READY
        case RequestError():
            return Outcome.REQUEST
        case ConfigError():
            return Outcome.CONFIG
        case SiteError():
            return Outcome.SITE
        case NodeError():
            return Outcome.NODE
    return Outcome.CONFIG
