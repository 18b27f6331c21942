"""The verdict: the one root-owned file per job and node that the SPANK plugin and `exec` believe.

The prologue writes it, nothing else does. Its mere presence sends the payload to the guest (or to a refusal);
where a VM was asked for and there is no verdict, nothing runs.
"""

from __future__ import annotations

import json
from dataclasses import asdict, field

from lrms_vm.errors import NodeError
from lrms_vm.values import dataclass

VERSION = 1
READY = "ready"  # the guest was started for this job
REFUSED = "refused"  # the request's or the site's fault: print `message`, end with `exit_code`


@dataclass(frozen=True)
class Verdict:
    """Values in, values out; `exec` gets everything it needs from here and reads no configuration."""

    state: str
    key: str
    uid: int
    exit_code: int = 0  # of a refusal
    code: str = ""  # stable word of a refusal
    message: str = ""
    hint: str = ""
    job_dir: str = ""  # JobPlaces.run
    work_dir: str = ""
    shares: tuple[str, ...] = ()  # host directories mounted at the same place in the guest, work_dir's among them
    env_names: tuple[str, ...] = ()
    user_name: str = ""
    home: str = ""  # in the guest
    boot_timeout_s: int = 300
    started_at: float = 0.0  # time.time() of the prologue's start, to be shown
    handed_over: float = 0.0  # time.monotonic(), which all processes share, when this was written; 0: not said
    handed_over_after_s: float = 0.0  # the prologue's start
    image: dict[str, str] = field(default_factory=dict)  # name, digest, signer, rule
    memory_cgroup: str = ""  # where the kernel counts the guest's memory; "": nowhere of its own

    def since_start_ms(self, now: float) -> float:
        """Of a time.monotonic() value, since the prologue's start: by the clock that nobody sets.

        >>> Verdict(READY, "k", 1, handed_over=100.0, handed_over_after_s=2.0).since_start_ms(103.5)
        5500.0

        0 where the verdict does not say.
        """
        if not self.handed_over:
            return 0.0
        return round((now - self.handed_over + self.handed_over_after_s) * 1e3, 1)


def write_verdict(verdict: Verdict) -> bytes:
    """The file's bytes."""
    return json.dumps({"version": VERSION, **asdict(verdict)}, sort_keys=True).encode()


def read_verdict(text: bytes, *, source: str) -> Verdict:
    """Read back what `write_verdict` wrote. Raises `NodeError`: only root writes there."""
    try:
        values = json.loads(text)
        version = values.pop("version")
        if type(version) is not int or not 1 <= version <= VERSION:
            raise ValueError(f"version {version!r}, expected at most {VERSION}: a newer lrms_vm wrote it")
        values["shares"] = tuple(values["shares"])
        values["env_names"] = tuple(values["env_names"])
        verdict = Verdict(**values)
        if verdict.state not in (READY, REFUSED):
            raise ValueError(f"state {verdict.state!r}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise NodeError(f"{source}: not a verdict of this version: {error}", code="verdict-unreadable") from error
    return verdict
