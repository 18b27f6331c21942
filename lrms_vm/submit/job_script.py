"""The command as a shell program that any carrier leaves alone. Pure.

Every batch system and every DRMAA library reads something in a job script or an argument: directives at the beginning
of a line, quotes, `$`-words of its own. slurm-drmaa and pbs-drmaa put each argument between single quotes as it is
(slurm_drmaa/job.c, pbs_drmaa/submit.c), sbatch refuses a script with CR LF in it. So the program here is printable
ASCII on one line, without a single quote, whatever the arguments are: the rest is written as octal for printf(1).

    set --; LRMS_VM_V=$(printf "a \\042b\\042."); set -- "$@" "${LRMS_VM_V%.}"; exec "$@"

The last character is a dot that goes again: `$(...)` drops newlines at the end. (The real thing is a little longer.)
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from lrms_vm.errors import EXIT_CONFIG

BULK_INDEX = "BULK_INDEX"
# Which of these a system sets: sbatch(1), qsub(1) of Grid Engine ("undefined" for a job that is no array), of Torque
# and of OpenPBS.
_INDEX_VARIABLES = ("SLURM_ARRAY_TASK_ID", "SGE_TASK_ID", "PBS_ARRAYID", "PBS_ARRAY_INDEX")
_PLAIN = re.compile(rb"[A-Za-z0-9_./:@+,=-]+")
_OCTAL = frozenset((*range(0x20), *b"\"'$`\\%", *range(0x7F, 0x100)))  # what a shell, printf or a library would read
_V = "LRMS_VM_V"  # ours alone: a description cannot set LRMS_VM_*


def program(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    directory: str | None = None,
    stdin: str | None = None,
    index: int | None = None,
    bulk: bool = False,
    in_guest: bool = False,
) -> str:
    """One line of POSIX shell that becomes `argv`.

    `directory`, `stdin`: where a system cannot be told. `index`: the bulk's, where no variable of the system has it;
    `bulk`: take it from the system's. `in_guest`: end with 78 if this is not a guest of ours, so that a node
    whose hooks are missing is noticed before the payload runs on the host.
    """
    words = ["set --"]
    if in_guest:
        words.append(
            'test -n "$LRMS_VM_IMAGE" || { echo "lrms-vm: a VM was asked for, but this is no guest: '
            f'has this node our hooks?" >&2; exit {EXIT_CONFIG}; }}'
        )
    for name, value in environment.items():
        words += [*_assigned(name, os.fsencode(value)), f"export {name}"]
    if index is not None:
        words += [f"{BULK_INDEX}={index}", f"export {BULK_INDEX}"]
    elif bulk:
        first, *rest = reversed(_INDEX_VARIABLES)
        value = f"${{{first}-}}"
        for name in rest:
            value = f"${{{name}-{value}}}"
        words += [f"{BULK_INDEX}={value}", f"export {BULK_INDEX}"]
    if directory is not None:
        words += [*_assigned(_V, os.fsencode(directory)), f'cd "${_V}" || exit 126']
    if stdin is not None:
        words += [*_assigned(_V, os.fsencode(stdin)), f'exec <"${_V}"']
    for argument in argv:
        words += _appended(os.fsencode(argument))
    return "; ".join([*words, f"unset {_V}", 'exec "$@"'])


def script(line: str) -> bytes:
    """A batch script of it. Not a directive in sight: the second line is no comment."""
    return f"#!/bin/sh\n{line}\n".encode("ascii")


def _appended(value: bytes) -> list[str]:
    if _PLAIN.fullmatch(value):
        return [f'set -- "$@" {value.decode()}']
    return [*_assigned(_V, value), f'set -- "$@" "${_V}"']


def _assigned(name: str, value: bytes) -> list[str]:
    if _PLAIN.fullmatch(value):
        return [f"{name}={value.decode()}"]
    if not value:
        return [f'{name}=""']
    octal = "".join(
        f"\\{byte:03o}" if byte in _OCTAL or at + byte == ord("-") else chr(byte) for at, byte in enumerate(value)
    )
    return [f'{name}=$(printf "{octal}.")', f'{name}="${{{name}%.}}"']
