"""One image of a signed list, as the node keeps it for its jobs: a page instead of a megabyte to read.

The extract is our own file, written after `open_list` by root where only root writes; it carries no proof of its own.
"""

from __future__ import annotations

from lrms_vm.trust.imagelist import ListedImage
from lrms_vm.trust.verify_list import SignedList


def write_extract(signed: SignedList, image: ListedImage) -> bytes:
    """The file's bytes."""
    raise NotImplementedError


def read_extract(data: bytes, *, source: str) -> tuple[SignedList, ListedImage]:
    """Read back what `write_extract` wrote. Raises `SiteError` "extract-damaged"."""
    raise NotImplementedError
