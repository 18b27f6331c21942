"""Torque's submit filter (qsub(1B)): `#VM` lines, and our options in `#PBS` lines, become what qsub knows.

    #VM --vm-image=NAME --vm-memory=2G            #PBS -l other=vm:NAME
    #PBS -N run7 --vm-image=NAME                  #PBS -v VM_MEMORY=2G

A convenience, never a check. It cannot take an option off qsub's own command line, so there it says what to write.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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
    given: dict[str, str] = {}
    for index, line in enumerate(lines):
        if line.strip() and not line.startswith((b"#", b":")):
            break  # qsub reads its options up to the first command
        if line.startswith((b"#VM", b"#PBS")):
            lines[index] = _directive(line, given)
    return b"\n".join(lines)


def _directive(line: bytes, given: dict[str, str]) -> bytes:
    head, _, rest = line.partition(b" ")
    found = [(word.decode(), value.decode("utf-8", "replace")) for word, value in _OPTION.findall(rest)]
    left = _OPTION.sub(b"", rest).strip()
    if head == b"#VM" and left:
        raise UsageError(f"#VM: cannot read {left[:60].decode('utf-8', 'replace')!r}", code="option-unknown")
    if not found:
        return line
    new = [b"#PBS " + left] if left else []
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
        words = f"-l other=vm:{value}" if word == "vm-image" else f"-v {VARIABLES[word]}={value}"
        new.append(f"#PBS {words}".encode())
    return b"\n".join(new)
