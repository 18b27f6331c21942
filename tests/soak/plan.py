"""What a soak does to which job, drawn from a seed, and how each may end. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass

PAYLOAD_EXIT = 3
IN_GUEST, ON_HOST = "in the guest", "ON THE HOST"
NO_PROLOG = "the node's Prolog did not run"


@dataclass(frozen=True)
class Kind:
    """`expected` is what the table says; `ends` are the (state, exit code) that are right."""

    name: str
    weight: int
    expected: str
    ends: frozenset[tuple[str, str]]
    restarts: int = 0  # at least


_DONE = ("FAILED", f"{PAYLOAD_EXIT}:0")  # the payload's own exit code, exactly
KINDS = (
    Kind("nothing", 3, "its own exit code", frozenset([_DONE])),
    Kind("an ordinary job", 3, "untouched", frozenset([("COMPLETED", "0:0")])),
    Kind("an unknown image", 2, "refused, 77", frozenset([("FAILED", "77:0")])),
    Kind("scancel", 3, "cancelled, or already done", frozenset([("CANCELLED", "0:15"), ("CANCELLED", "0:0"), _DONE])),
    Kind("qemu killed", 3, "guest lost, 70, or already done", frozenset([("FAILED", "70:0"), _DONE])),
    Kind("prologue killed", 2, "put back into the queue, then its own exit code", frozenset([_DONE])),
    Kind("libvirtd stopped 5 s", 2, "its own exit code", frozenset([_DONE])),
    Kind("slurmd killed", 2, "its own exit code", frozenset([_DONE])),
    Kind("requeue", 2, "ran again, its own exit code", frozenset([_DONE]), 1),
)


@dataclass(frozen=True)
class Planned:
    """One job: what befalls it, when, and how long its payload takes."""

    kind: Kind
    after_s: float
    payload_s: int

    @property
    def has_guest(self) -> bool:
        return self.kind.name != "an ordinary job"

    @property
    def script(self) -> str:
        where = f"test -d /run/lrms_vm/tasks && echo {IN_GUEST} || echo {ON_HOST}"
        code = PAYLOAD_EXIT if self.has_guest else 0
        return f"#!/bin/sh\n{where}\nsleep {self.payload_s}\nexit {code}\n"

    def wrong(self, state: str, exit_code: str, restarts: int, output: str, *, injected: bool = True) -> str:
        """Why this is no right end; "" if it is one. `injected`: the fault came before the job's own end.

        >>> job = Planned(KINDS[0], 0.0, 1)
        >>> job.wrong("FAILED", "3:0", 0, "in the guest")
        ''
        >>> job.wrong("COMPLETED", "0:0", 0, "ON THE HOST")
        'the payload ran on the host'
        >>> job.wrong("FAILED", "78:0", 1, "the node's Prolog did not run"), job.wrong("FAILED", "78:0", 1, "")
        ('', 'FAILED 78:0')
        >>> requeued = Planned(KINDS[-1], 0.0, 1)
        >>> requeued.wrong("FAILED", "3:0", 0, "in the guest"), requeued.wrong("FAILED", "3:0", 0, "in the guest", injected=False)
        ('it was never put back into the queue', '')
        """
        if self.has_guest and ON_HOST in output:
            return "the payload ran on the host"
        if not self.has_guest and IN_GUEST in output:
            return "an ordinary job ran in a guest"
        if (state, exit_code) == ("FAILED", "78:0") and restarts and NO_PROLOG in output:
            return ""  # slurmd took it for the job before, docs/slurm.md; it was not run on the host, and says why
        if (state, exit_code) not in self.kind.ends:
            return f"{state} {exit_code}"
        if (state, exit_code) == _DONE and IN_GUEST not in output:
            return "its output is not there"
        return "" if restarts >= self.kind.restarts or not injected else "it was never put back into the queue"


def plan(jobs: int, seed: int) -> list[Planned]:
    """The same for the same seed. Of few jobs, too, every kind comes, as far as they reach.

    >>> plan(30, 7) == plan(30, 7)
    True
    >>> {job.kind.name for job in plan(len(KINDS), 1)} == {kind.name for kind in KINDS}
    True
    """
    draw = random.Random(seed)
    weights = [kind.weight for kind in KINDS]
    kinds = [*KINDS, *draw.choices(KINDS, weights, k=max(jobs - len(KINDS), 0))]
    draw.shuffle(kinds)
    return [Planned(kind, draw.uniform(0, 15), draw.randint(1, 5)) for kind in kinds[:jobs]]
