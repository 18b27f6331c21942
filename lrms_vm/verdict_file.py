"""The verdict as its readers get it: exec and attach run as the job's user, and believe a file of root's or nothing."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lrms_vm.errors import NodeError, RequestError
from lrms_vm.verdict import Verdict, read_verdict

MAX_BYTES = 1 << 20


def believe(path: Path, *, owner: int = 0, uid: int | None = None) -> Verdict:
    """The verdict, believed only if `owner` (root) wrote it and nobody else can, and it is about us.

    Raises `NodeError` for anything else: where a guest was asked for and there is no verdict, nothing runs.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise NodeError(f"{path}: no verdict to go by: {error.strerror}", code="verdict-missing") from error
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != owner or status.st_mode & 0o022:
            raise NodeError(f"{path}: not a file that only root can write; not believed", code="verdict-unsafe")
        verdict = read_verdict(file.read(MAX_BYTES), source=str(path))
    if verdict.uid != (os.getuid() if uid is None else uid):
        raise RequestError(f"{path}: this job belongs to user {verdict.uid}", code="verdict-not-ours")
    return verdict
