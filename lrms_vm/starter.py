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

from lrms_vm.lrms.command import MAX_LINE_BYTES, Command


def command_of(lrms: str, words: Sequence[str], environ: Mapping[str, str], *, script: bool) -> Command:
    """The payload. Raises `UsageError` where there is none. Loads the one adapter: this starts with every task."""
    if lrms == "gridengine":
        from lrms_vm.lrms import gridengine

        return gridengine.command(words, environ)
    if lrms == "torque":
        from lrms_vm.lrms import torque

        return torque.command(words, environ, _line(words, torque.is_first(environ)))
    if lrms == "openpbs":
        from lrms_vm.lrms import openpbs, torque

        return openpbs.command(words, environ, _line(words, torque.is_first(environ)))
    return Command(tuple(words), script_at=0 if script else None)


def _line(words: Sequence[str], is_first: bool) -> bytes | None:
    """What a pipe on stdin tells a shell that was started with nothing else. The payload's stdin is empty then."""
    if len(words) != 1 or not is_first or not stat.S_ISFIFO(os.fstat(0).st_mode):
        return None
    line = b""
    while len(line) <= MAX_LINE_BYTES and (part := os.read(0, 1 << 16)):
        line += part
    return line
