"""What the job asked for (`Request`) and what the batch system gave it on this node (`Allocation`).

Every value arrives as hostile text and is parsed once, here, whatever the submit side checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from lrms_vm.errors import UsageError
from lrms_vm.image import ImageReference, parse_reference
from lrms_vm.units import parse_memory_mib
from lrms_vm.values import dataclass

# The words of the options, the same for every batch system, without the leading "--".
OPTIONS = ("vm-image", "vm-memory", "vm-cpus", "vm-network", "vm-share", "vm-kernel", "vm-env")

MAX_OPTION_LENGTH = 4096
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}", re.ASCII)  # IFNAMSIZ - 1, netdevice(7)
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\[\]-]{0,63}", re.ASCII)


@dataclass(frozen=True)
class Request:
    """What the job asked for. Nothing in it has been granted yet."""

    image: ImageReference
    memory_mib: int | None = None  # at most the allocation's; None: all of it
    cpus: int | None = None  # at most the allocation's; None: all of them
    network: str | None = None  # "none", "nat", "bridge:NAME"; None: what policy gives
    shares: tuple[str, ...] = ()  # absolute host directories beside the working directory
    kernel: str | None = None  # a site kernel's name; None: the site's default
    env_names: tuple[str, ...] = ()  # variables to pass although the rule of payload.py drops them


@dataclass(frozen=True)
class Allocation:
    """What the batch system gave this job on this node. Comes from the batch system, never from the user."""

    lrms: str  # "slurm", "local", ...
    job_id: str
    node: str
    uid: int
    gid: int
    user: str
    work_dir: str
    cpus: int
    memory_mib: int | None  # None: the batch system does not count memory
    partition: str = ""
    account: str = ""  # whom the batch system charges; believed only where it checks that the user may (docs/trust.md)
    restart_count: int = 0

    def __post_init__(self) -> None:
        for what, value in (("job id", self.job_id), ("node name", self.node)):
            if _JOB_ID.fullmatch(value) is None or ".." in value:
                raise UsageError(f"{self.lrms}: {what} {value[:80]!r} is not a plain name", code="job-id-unreadable")

    @property
    def key(self) -> str:
        """Names everything we make for this job on this node: records, disks, the domain. Safe as a file name."""
        return f"{self.lrms}-{self.job_id}.{self.node}"


def parse_request(options: Mapping[str, str], *, source: str) -> Request:
    """Read the option texts (keys are `OPTIONS` words) into a `Request`. Raises `UsageError`.

    `source` says which carrier they came by ("--vm-image", "job comment") and opens every message.
    """
    for word, text in options.items():
        if word not in OPTIONS:
            raise UsageError(f"{source}: unknown option --{word[:40]!s}", code="option-unknown")
        if len(text) > MAX_OPTION_LENGTH or not text.isprintable():
            raise UsageError(
                f"--{word}: {len(text)} characters with control characters or over {MAX_OPTION_LENGTH}",
                code="option-unreadable",
            )
    if "vm-image" not in options:
        raise UsageError(f"{source}: options for a VM but no --vm-image", code="image-missing")
    return Request(
        image=parse_reference(options["vm-image"], source=source),
        memory_mib=_memory(options.get("vm-memory")),
        cpus=_cpus(options.get("vm-cpus")),
        network=_network(options.get("vm-network")),
        shares=_shares(options.get("vm-share")),
        kernel=_named("vm-kernel", options.get("vm-kernel"), _NAME),
        env_names=_names("vm-env", options.get("vm-env"), _ENV_NAME),
    )


def _memory(text: str | None) -> int | None:
    if text is None:
        return None
    memory_mib = parse_memory_mib(text, bare="M", source="--vm-memory")
    if memory_mib < 1:
        raise UsageError(
            "--vm-memory: 0 is no memory", hint="leave it out for the whole allocation", code="option-unreadable"
        )
    return memory_mib


def _cpus(text: str | None) -> int | None:
    if text is None:
        return None
    if re.fullmatch(r"[1-9][0-9]{0,3}", text, re.ASCII) is None:
        raise UsageError(
            f"--vm-cpus: cannot read {text[:40]!r} as a number of cpus", hint="1 or more", code="option-unreadable"
        )
    return int(text)


def _network(text: str | None) -> str | None:
    if text is None or text in ("none", "nat"):
        return text
    kind, _, name = text.partition(":")
    if kind == "bridge" and _INTERFACE.fullmatch(name):
        return text
    raise UsageError(f"--vm-network: {text[:40]!r} is not one of none, nat, bridge:NAME", code="option-unreadable")


def _shares(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    shares = tuple(text.split(","))
    for share in shares:
        if not share.startswith("/") or ".." in share.split("/") or "//" in share or len(share) > 1024:
            raise UsageError(f"--vm-share: {share[:80]!r} is not a clean absolute directory", code="option-unreadable")
    return shares


def _named(word: str, text: str | None, grammar: re.Pattern[str]) -> str | None:
    if text is None:
        return None
    if grammar.fullmatch(text) is None:
        raise UsageError(
            f"--{word}: {text[:80]!r} is not a plain name", hint=f"use {grammar.pattern}", code="option-unreadable"
        )
    return text


def _names(word: str, text: str | None, grammar: re.Pattern[str]) -> tuple[str, ...]:
    if text is None:
        return ()
    return tuple(name for part in text.split(",") if (name := _named(word, part, grammar)))
