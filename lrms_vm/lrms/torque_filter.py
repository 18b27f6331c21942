"""Torque's submit filter (qsub(1B)): `#VM` lines, and our options in `#PBS` lines, become what qsub knows.

    #VM --vm-image=NAME --vm-memory=2G            #PBS -l other=vm:NAME
    #PBS -N run7 --vm-cpus=1                      #PBS -N run7
                                                  #PBS -v VM_MEMORY=2G,VM_CPUS=1

A convenience, never a check. It cannot take an option off qsub's own command line, so there it says what to write; and
qsub forgets all lists of variables but the last (measured), so beside one of the user's it says so too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import IO

from lrms_vm.errors import RequestError, UsageError
from lrms_vm.lrms.pbs_text import VARIABLES

REJECT = 255  # qsub: "administratively rejected", with what we say on stderr
MAX_SCRIPT_BYTES = 256 << 20

_OPTION = re.compile(rb"(?:^|(?<=[ \t]))--(vm-[a-z]+)(?:=|[ \t]+)([^ \t]*)")
_VALUE = re.compile(r"[A-Za-z0-9._:/@+-]+", re.ASCII)  # what a list of variables and a resource carry unharmed


def main(argv: Sequence[str], stdin: IO[bytes], stdout: IO[bytes], stderr: IO[str]) -> int:
    """As qsub runs it: its arguments, the script in, the script out."""
    try:
        stdout.write(filtered(stdin.read(MAX_SCRIPT_BYTES), argv))
        stdout.flush()
    except RequestError as error:
        stderr.write(f"lrms-vm: {error}\n")
        return REJECT
    return 0


def filtered(script: bytes, argv: Sequence[str]) -> bytes:
    """The script with our options in Torque's words. Raises `UsageError`.

    >>> filtered(b"#!/bin/sh\\n#VM --vm-image=hep-jets\\nhostname\\n", [])
    b'#!/bin/sh\\n#PBS -l other=vm:hep-jets\\nhostname\\n'
    """
    ours = [word for word in argv if word.startswith("--vm-")]
    if ours:
        raise UsageError(
            f"{ours[0][:60]}: Torque's qsub has no such option",
            hint="write `#VM --vm-image=NAME` into the script, or `qsub -l other=vm:NAME`",
            code="option-unknown",
        )
    if b"--vm-" not in script:
        return script
    lines = script.split(b"\n")
    end = next((at for at, line in enumerate(lines) if line.strip() and not line.startswith((b"#", b":"))), len(lines))
    given: dict[str, str] = {}  # qsub reads its options up to the first command
    for at, line in enumerate(lines[:end]):
        if line.startswith((b"#VM", b"#PBS")):
            lines[at] = _directive(line, given)
    if not given:
        return script
    variables = {VARIABLES[word]: value for word, value in given.items() if word != "vm-image"}
    new = [f"#PBS -l other=vm:{given['vm-image']}"] if "vm-image" in given else []
    if variables:
        _only_list(argv, lines[:end], variables)
        new.append("#PBS -v " + ",".join(f"{name}={value}" for name, value in variables.items()))
    kept = [line for line in lines[:end] if line != b"#PBS"]
    last = len(kept) - (1 if kept and not kept[-1] else 0)  # before the empty line after the last newline
    return b"\n".join([*kept[:last], *(line.encode() for line in new), *kept[last:], *lines[end:]])


def _only_list(argv: Sequence[str], header: Sequence[bytes], ours: Mapping[str, str]) -> None:
    """Raises `UsageError` where the user has a list of variables as well."""
    words = [
        *argv,
        *(word.decode("utf-8", "replace") for line in header if line[:4] == b"#PBS" for word in line.split()),
    ]
    if any(word.startswith("-v") for word in words):
        text = ",".join(f"{name}={value}" for name, value in ours.items())
        raise UsageError(
            "qsub takes one -v only", hint=f"put {text} into yours, and take the options out", code="carrier-unfit"
        )


def _directive(line: bytes, given: dict[str, str]) -> bytes:
    """The line without our options, which go to `given`."""
    head, _, rest = line.partition(b" ")
    found = [(word.decode(), value.decode("utf-8", "replace")) for word, value in _OPTION.findall(rest)]
    left = _OPTION.sub(b"", rest).strip()
    if head == b"#VM" and left:
        raise UsageError(f"#VM: cannot read {left[:60].decode('utf-8', 'replace')!r}", code="option-unknown")
    if not found:
        return line
    for word, value in found:
        if word not in VARIABLES:
            raise UsageError(f"unknown option --{word[:40]}", code="option-unknown")
        if _VALUE.fullmatch(value) is None:
            raise UsageError(
                f"--{word}: {value[:60]!r} cannot travel through Torque",
                hint="only letters, digits and ._:/@+- do",
                code="carrier-unfit",
            )
        if given.setdefault(word, value) != value:
            raise UsageError(f"--{word} is there twice: {given[word]!r} and {value!r}", code="option-unreadable")
    return b"#PBS " + left if left else b"#PBS"
