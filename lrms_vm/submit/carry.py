"""Which words bring the request to root's hook on each system, merged with what the user says there. Pure.

    system       by its commands                          by its DRMAA library
    Slurm        --vm-image=NAME ... with the plugin,     --comment, the same
                 else --comment, lrms_vm:NAME in it
    Grid Engine  VM_IMAGE, ... and -l vm_capable=TRUE     the same
    Torque       -l other=vm:NAME and VM_IMAGE, ...       VM_IMAGE, ... (pbs-drmaa refuses -l other)
    OpenPBS      -l vm_image=NAME and VM_IMAGE, ...       VM_IMAGE, ...

What the user says is kept, and where it contradicts the request, the job is refused: nothing is overwritten.
The hooks' side of the Slurm comment is lrms/slurm.py.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping

from lrms_vm.errors import UsageError
from lrms_vm.submit.description import JobDescription, variable_of, vm_options
from lrms_vm.values import dataclass

COMMENT = "lrms_vm:"
CAPABLE = "vm_capable=TRUE"

_CARRIED = re.compile(r"(?:^|[ \t\n,;])lrms_vm:([^ \t\n,;]*)", re.ASCII)
_IN_COMMENT = re.compile(r"[^\s,;=\x00-\x1f\x7f]+")
# `-v NAME=VALUE` breaks at commas, and pbs-drmaa joins jobEnvironment to such a list; Grid Engine's library loses all
# from a value's second "=" (measured); its qsub is given names only, and takes any value from its environment
_IN_LIST = re.compile(r"[A-Za-z0-9._:/@+-]+", re.ASCII)
_IN_VECTOR = re.compile(r"[A-Za-z0-9._:/@+,-]+", re.ASCII)


class Way(enum.Enum):
    """How the system is reached."""

    COMMANDS = "commands"
    PLUGIN = "commands with our plugin"  # Slurm: sbatch knows --vm-image
    LIBRARY = "DRMAA library"


@dataclass(frozen=True)
class Carried:
    """A description and what brings its request along."""

    description: JobDescription
    options: tuple[tuple[str, str], ...] = ()  # the system's own, the user's among them: ("comment", "lrms_vm:NAME")
    variables: tuple[tuple[str, str], ...] = ()  # for the batch system itself to see

    @property
    def in_guest(self) -> bool:
        return bool(vm_options(self.description))


def carry(description: JobDescription, system: str, way: Way) -> Carried:
    """Add the request to the system's options and variables. Raises `UsageError` where the two contradict, or where
    this way cannot bring a value along exactly."""
    options = description.attributes(system)
    request = vm_options(description)
    variables: dict[str, str] = {}
    if request and system == "slurm":
        if way is Way.PLUGIN:
            options = _with_options(options, request)
        else:
            options["comment"] = comment(options.get("comment", ""), request)
    elif request:
        variables = {variable_of(word): _listed(word, text, system, way) for word, text in request.items()}
        extra = _resources(request["vm-image"], system, way)
        if extra:
            options["l"] = _with_resource(options.get("l", ""), extra)
    if system != "slurm":
        variables = _with_variables(options.pop("v", ""), variables)
    if way is Way.LIBRARY:
        _check_native(options)
    return Carried(description, tuple(options.items()), tuple(variables.items()))


def comment(own: str, request: Mapping[str, str]) -> str:
    """The user's comment with the request as words of it. Raises `UsageError`.

    >>> comment("run 7", {"vm-image": "hep-jets", "vm-cpus": "2"})
    'run 7,lrms_vm:hep-jets,lrms_vm-cpus:2'
    """
    words = []
    for word, text in request.items():
        for value in text.split(",") if word in ("vm-share", "vm-env") else (text,):
            if _IN_COMMENT.fullmatch(value) is None:
                raise UsageError(f"--{word}: {value[:60]!r} cannot travel in a job's comment", code="carrier-unfit")
            words.append(f"lrms_{word.removesuffix('-image')}:{value}")
    named = set(_CARRIED.findall(own))
    if named - {request["vm-image"]}:
        raise _contradicts("comment", own, f"--vm-image={request['vm-image']}")
    if named:
        words = [word for word in words if not word.startswith(COMMENT)]
    return ",".join([own, *words] if own else words)


def _with_options(options: Mapping[str, str], request: Mapping[str, str]) -> dict[str, str]:
    for word, text in request.items():
        if options.get(word, text) != text:
            raise _contradicts(f"slurm.{word}", options[word], f"--{word}={text}")
    named = set(_CARRIED.findall(options.get("comment", "")))
    if named - {request["vm-image"]}:
        raise _contradicts("slurm.comment", options["comment"], f"--vm-image={request['vm-image']}")
    return {**options, **request}


def _resources(image: str, system: str, way: Way) -> str:
    if system == "gridengine":
        return CAPABLE
    if way is Way.LIBRARY:
        return ""  # pbs-drmaa has a closed list of resources
    return f"other=vm:{image}" if system == "torque" else f"vm_image={image}"


def _with_resource(own: str, extra: str) -> str:
    """
    >>> _with_resource("mem=2gb", "other=vm:a")
    'mem=2gb,other=vm:a'
    """
    name = extra.partition("=")[0]
    mine = [part for part in own.split(",") if part.partition("=")[0] == name]
    if any(part.lower() != extra.lower() if name == "vm_capable" else part != extra for part in mine):
        raise _contradicts("l", own, f"-l {extra}")
    return own if mine else ",".join(filter(None, (own, extra)))


def _with_variables(own: str, request: Mapping[str, str]) -> dict[str, str]:
    """The user's `-v` list and the request's. A name without a value is taken from the submitter's environment."""
    variables: dict[str, str] = {}
    for part in filter(None, own.split(",")):
        name, equals, value = part.partition("=")
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name, re.ASCII) is None or not equals:
            raise UsageError(f"custom_attributes: -v {part[:60]!r} is not NAME=VALUE", code="description-unreadable")
        if request.get(name, value) != value:
            raise _contradicts("v", own, f"{name}={request[name]}")
        variables[name] = value
    return variables | dict(request)


def _listed(word: str, text: str, system: str, way: Way) -> str:
    """A value as it can travel among the variables. Raises `UsageError`."""
    if system == "gridengine" and way is Way.COMMANDS:
        return text
    if (_IN_VECTOR if system == "gridengine" else _IN_LIST).fullmatch(text) is None:
        raise UsageError(
            f"--{word}: {text[:60]!r} cannot travel in this system's list of variables",
            hint="only letters, digits and ._:/@+- do",
            code="carrier-unfit",
        )
    return text


def _check_native(options: Mapping[str, str]) -> None:
    """DRMAA's nativeSpecification is one text; the libraries split it at blanks, slurm-drmaa cuts at a second "="."""
    for name, value in options.items():
        if re.search(r"[\s'\"\\]", value) or (len(name) > 1 and "=" in value):
            raise UsageError(
                f"custom_attributes: {name}: {value[:60]!r} has a blank, a quote or '=', which a DRMAA library mangles",
                hint="--library=commands passes it exactly",
                code="carrier-unfit",
            )


def _contradicts(where: str, own: str, ours: str) -> UsageError:
    return UsageError(
        f"custom_attributes: {where}: {own[:80]!r} contradicts {ours[:80]}", hint="leave one out", code="image-twice"
    )
