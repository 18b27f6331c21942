"""What the payload is, from the way in which a batch system starts what stands in its place.

    Slurm           argv after `--`; the plugin says whether the first word is a script (--script)
    Grid Engine     starter_method: the spooled script or the command, and its arguments

Reading only; the job's user runs this, and everything in it is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lrms_vm.lrms import gridengine
from lrms_vm.lrms.base import Command


def command_of(lrms: str, words: Sequence[str], environ: Mapping[str, str], *, script: bool) -> Command:
    """The payload. Raises `UsageError` where there is none."""
    if lrms == gridengine.NAME:
        return gridengine.command(words, environ)
    return Command(tuple(words), script_at=0 if script else None)
