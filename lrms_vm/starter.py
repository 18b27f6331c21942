"""What the payload is, from the way in which a batch system starts what stands in its place.

    Slurm           argv after `--`; the plugin says whether the first word is a script (--script)
    Grid Engine     starter_method: the spooled script or the command, and its arguments
    Torque, OpenPBS a shell, and the script with its arguments as one line on stdin; a task or an interactive shell
                    is its own words, and its stdin is not ours

Reading only; the job's user runs this, and everything in it is theirs.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence

from lrms_vm.lrms import gridengine, openpbs, torque
from lrms_vm.lrms.base import Command


def command_of(lrms: str, words: Sequence[str], environ: Mapping[str, str], *, script: bool) -> Command:
    """The payload. Raises `UsageError` where there is none."""
    if lrms == gridengine.NAME:
        return gridengine.command(words, environ)
    if lrms == torque.NAME:
        return torque.command(words, environ, _line(words, environ))
    if lrms == openpbs.NAME:
        return openpbs.command(words, environ, _line(words, environ))
    return Command(tuple(words), script_at=0 if script else None)


def _line(words: Sequence[str], environ: Mapping[str, str]) -> bytes | None:
    """What a pipe on stdin tells a shell that was started with nothing else. The payload's stdin is empty then."""
    if len(words) != 1 or not torque.is_first(environ) or not stat.S_ISFIFO(os.fstat(0).st_mode):
        return None
    line = b""
    while len(line) <= torque.MAX_LINE and (part := os.read(0, 1 << 16)):
        line += part
    return line
