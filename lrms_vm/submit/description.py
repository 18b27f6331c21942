"""What is submitted, in the words of DRMAA and PSI/J, and what of it goes where.

What a batch system or its library cannot carry exactly is refused here, never mangled.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import field, fields
from datetime import timedelta

from lrms_vm.errors import UsageError
from lrms_vm.request import OPTIONS, parse_request
from lrms_vm.values import dataclass

SYSTEMS = ("slurm", "gridengine", "torque", "openpbs")
MAX_BULK = 100_000

# bash(1): read-only there; a job script that sets one ends
SHELLS_OWN = frozenset(("UID", "EUID", "PPID", "SHELLOPTS", "BASHOPTS", "BASH_VERSINFO"))

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._+-]{0,62}", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,254}", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)
_ATTRIBUTE = re.compile(r"([a-z]+)\.([A-Za-z][A-Za-z0-9-]*)", re.ASCII)
_PATH_NEVER = re.compile(r"[\x00-\x1f\x7f'\"\\$%,:;|&<>`]")  # one system or another reads each of these in a path


@dataclass(frozen=True)
class Vm:
    """The options of `sbatch --vm-...` beside the image, as texts (docs/users.md)."""

    memory: str | None = None
    cpus: str | None = None
    network: str | None = None
    share: str | None = None
    kernel: str | None = None
    env: str | None = None


@dataclass(frozen=True)
class Resources:
    """PSI/J's ResourceSpecV1. None: what the queue gives."""

    node_count: int | None = None
    process_count: int | None = None
    processes_per_node: int | None = None
    cpu_cores_per_process: int | None = None
    gpu_cores_per_process: int | None = None
    exclusive_node_use: bool = False
    memory_mib: int | None = None  # of each node


@dataclass(frozen=True)
class JobDescription:
    """One job, or each job of a bulk.

    `arguments` and `environment` reach the payload byte for byte: blanks, quotes, newlines, whatever UTF-8 has;
    bytes that are not UTF-8 as Python's surrogates (os.fsdecode). Each job of a bulk has `BULK_INDEX`, 1 to N.
    In paths `{job}` is the job's id and `{index}` the bulk index, where the system can say it.
    """

    executable: str  # looked up in the payload's PATH when it has no slash
    arguments: tuple[str, ...] = ()
    directory: str | None = None  # absolute; None: the submitter's
    environment: Mapping[str, str] = field(default_factory=dict)  # set for the payload, whatever the system sets
    inherit_environment: bool = False  # the submitter's variables too, but for those that describe the host
    stdin_path: str | None = None  # None: /dev/null
    stdout_path: str | None = None  # None: where the system puts it
    stderr_path: str | None = None  # None, with a stdout_path: together with stdout
    duration: timedelta | None = None  # wall clock limit
    queue: str | None = None  # Slurm: partition
    account: str | None = None
    name: str | None = None
    held: bool = False  # submit it held: `Session.control(job, "release")`
    resources: Resources = field(default_factory=Resources)
    custom_attributes: Mapping[str, str] = field(default_factory=dict)  # {"slurm.constraint": "vm", "gridengine.l": ..}
    image: str | None = None  # None: VM_IMAGE of `environment`, else an ordinary job on the host
    vm: Vm = field(default_factory=Vm)

    def __post_init__(self) -> None:
        _check_command(self)
        _check_words(self)
        for name in self.environment:
            if _VARIABLE.fullmatch(name) is None or name.startswith("LRMS_VM_") or name in SHELLS_OWN:
                raise _refused("environment", name, "letters, digits and _; LRMS_VM_ is ours, UID and such the shell's")
        for key in self.custom_attributes:
            match = _ATTRIBUTE.fullmatch(key)
            if match is None or match[1] not in SYSTEMS:
                raise _refused("custom_attributes", key, f"SYSTEM.OPTION, SYSTEM one of {', '.join(SYSTEMS)}")
        for text in (*self.environment.values(), *self.custom_attributes.values()):
            _require_text("environment or custom_attributes", text)
        parse_options(self)

    def attributes(self, system: str) -> dict[str, str]:
        """The custom attributes that are for this system, by option."""
        words = (key.partition(".") for key in self.custom_attributes)
        return {option: self.custom_attributes[f"{system}.{option}"] for whose, _, option in words if whose == system}


def vm_options(description: JobDescription) -> dict[str, str]:
    """The request as option words ("vm-image": "hep-jets", ...); empty for an ordinary job.

    What the job's environment says by VM_IMAGE, VM_MEMORY, ... counts as if it had been said here; two that differ
    are refused. Raises `UsageError`.
    """
    said = {"vm-image": description.image}
    said |= {f"vm-{f.name}": getattr(description.vm, f.name) for f in fields(Vm)}
    options = {word: text for word, text in said.items() if text is not None}
    for word in OPTIONS:
        variable = variable_of(word)
        text = description.environment.get(variable)
        if text is None:
            continue
        if options.setdefault(word, text) != text:
            raise UsageError(
                f"environment: {variable}={text[:60]!r}, but {word} is {options[word][:60]!r}",
                hint="say it once",
                code="image-twice",
            )
    return options


def parse_options(description: JobDescription) -> None:
    """Check the request as root's hook will. Raises `UsageError`."""
    if options := vm_options(description):
        parse_request(options, source="the job's description")


def variable_of(word: str) -> str:
    """
    >>> variable_of("vm-image")
    'VM_IMAGE'
    """
    return word.upper().replace("-", "_")


def _check_command(job: JobDescription) -> None:
    if isinstance(job.arguments, str):
        raise UsageError("arguments: one text, expected a list of texts", code="description-unreadable")
    for text in (job.executable, *job.arguments):
        _require_text("command", text)
    if not job.executable or job.executable.startswith("-"):
        raise _refused("executable", job.executable, "a program's name or path, not beginning with '-'")


def _check_words(job: JobDescription) -> None:
    for what, text, grammar in (
        ("name", job.name, _NAME),
        ("queue", job.queue, _WORD),
        ("account", job.account, _WORD),
    ):
        if text is not None and grammar.fullmatch(text) is None:
            raise _refused(what, text, "letters, digits and ._+-")
    for what in ("directory", "stdin_path", "stdout_path", "stderr_path"):
        path = getattr(job, what)
        if path is not None and (not path or _PATH_NEVER.search(path) or path != path.strip() or path.startswith("-")):
            raise _refused(what, path, "a path without quotes, control characters and $ % , : ; \\ | & < >")
    if job.directory is not None and not job.directory.startswith("/"):
        raise _refused("directory", job.directory, "an absolute path")
    if job.duration is not None and job.duration < timedelta(seconds=1):
        raise _refused("duration", str(job.duration), "1 s or more")
    for f in fields(Resources):
        number = getattr(job.resources, f.name)
        if type(number) is int and number < 1:
            raise _refused(f"resources.{f.name}", str(number), "1 or more")


def _require_text(where: str, text: str) -> None:
    if "\0" in text:
        raise UsageError(f"{where}: a NUL byte, which no program can be given", code="description-unreadable")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{where}: {text[:60]!r} is no text ({error.reason})", code="description-unreadable"
        ) from error


def _refused(where: str, text: str, expected: str) -> UsageError:
    return UsageError(f"{where}: got {text[:60]!r}, expected {expected}", code="description-unreadable")
