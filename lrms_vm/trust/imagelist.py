"""Signed image lists as HEPiX tools publish them (`hv:imagelist`), with our `lv:` keys: the native manifest.

Field names and forms are those of the HEPiX virtualisation working group's list and of the lists EGI's AppDB makes of
it; docs/image-lists.md has the table. What a list says is believed only after its signature (trust/verify_list.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lrms_vm.trust.tree import Tree

MAX_IMAGES = 1000
_RUNS = re.compile(r"[0-9]+|[A-Za-z]+", re.ASCII)


@dataclass(frozen=True)
class ListedImage:
    """One version of one image, as its list describes it. Digests and sizes are of the file at `urls`."""

    name: str  # at the site: lv:name, else dc:title where that is a name, else the identifier
    identifier: str
    version: str
    size_bytes: int
    digests: Mapping[str, bytes]  # by "sha256", "sha512"; at least one
    urls: tuple[str, ...]  # hv:uri, then lv:mirrors
    format: str = "raw"  # small letters; only "raw" and "qcow2" can be used
    virtual_size_bytes: int | None = None
    tree: Tree | None = None
    vo: tuple[str, ...] = ()  # its own, else its list's
    title: str = ""
    description: str = ""
    comments: str = ""
    expires: datetime | None = None
    kernel: str | None = None  # a site kernel's name
    kernel_sha256: bytes | None = None
    initrd_sha256: bytes | None = None
    min_version: str | None = None  # below it, no version of this name boots


@dataclass(frozen=True)
class Endorser:
    """Whom the list names as its endorser: text that is shown and never compared."""

    subject: str = ""
    issuer: str = ""
    creator: str = ""
    email: str = ""


@dataclass(frozen=True)
class ImageList:
    """The whole list. `expires` is what it says; what counts is computed by `verify_list.valid_until`."""

    identifier: str
    version: str
    title: str
    created: datetime
    expires: datetime
    images: tuple[ListedImage, ...]
    endorser: Endorser = field(default_factory=Endorser)
    vo: tuple[str, ...] = ()
    description: str = ""
    url: str | None = None


def parse_list(payload: bytes) -> ImageList:
    """Read the signed bytes of a list. Raises `RequestError`, whatever they are."""
    raise NotImplementedError


def compare_versions(a: str, b: str) -> int:
    """-1, 0 or 1: runs of digits as numbers, runs of letters as text, whatever stands between them.

    A version that goes on is the greater one, a number is greater than letters.

    >>> compare_versions("1.10", "1.9"), compare_versions("1.0", "1.0.1"), compare_versions("1.01", "1.1")
    (1, -1, 0)
    """
    for left, right in zip_longest(_runs(a), _runs(b), fillvalue=(-1, 0, "")):
        if left != right:
            return 1 if left > right else -1
    return 0


def _runs(version: str) -> list[tuple[int, int, str]]:
    return [(1, int(run), "") if run.isdigit() else (0, 0, run) for run in _RUNS.findall(version)]
