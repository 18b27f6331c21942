"""Three stages of an image, three types: a reference is text, an entry is what the site says of it, a
`VerifiedImage` is bytes in the cache that may boot. Only `cache.py` makes the last (tests/test_imports.py).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lrms_vm.errors import UsageError
from lrms_vm.values import dataclass

if TYPE_CHECKING:
    from lrms_vm.trust.imagelist import ListedImage
    from lrms_vm.trust.verify_list import SignedList

MAX_REFERENCE_LENGTH = 1024
# Commas, "=", blanks and quotes are mangled by one carrier or another (reference/slurm-measured.md 2).
_REFERENCE = re.compile(r"[A-Za-z0-9/][A-Za-z0-9._:/@+-]*", re.ASCII)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)
_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._+/-]{0,199})(?:@([A-Za-z0-9][A-Za-z0-9._+-]{0,63}))?", re.ASCII)


@dataclass(frozen=True)
class ImageReference:
    """How a job names an image: by name (and version), by digest, or by place. Exactly one of them is set."""

    text: str
    name: str | None = None
    version: str | None = None
    sha256: str | None = None
    url: str | None = None  # an absolute path, or http(s)://


@dataclass(frozen=True)
class Listed:
    """What a signed image list that this site subscribes to says of one image."""

    subscription: str  # NAME of [lists.NAME]
    signed: SignedList
    image: ListedImage


@dataclass(frozen=True)
class ImageEntry:
    """Where the site, or a list it subscribes to, says an image and its signature are. Says nothing about trust."""

    name: str
    url: str  # an absolute path, or http(s)://
    signature_url: str | None = None  # None: beside the image
    certificate_url: str | None = None  # for bare dgst signatures; None: beside the image
    version: str | None = None
    mirrors: tuple[str, ...] = ()  # where the same bytes are too, in the order in which to ask
    listed: Listed | None = None  # None: an [images.NAME] or a place; its signature is beside it

    @property
    def urls(self) -> tuple[str, ...]:
        """Every place of the bytes, the first to ask first."""
        return (self.url, *self.mirrors)


@dataclass(frozen=True)
class VerifiedImage:
    """A file in the cache whose bytes were hashed here and whose signature policy accepts for this job now."""

    name: str
    path: str  # read-only, raw, root-owned
    sha256: str
    size_bytes: int
    signer: str  # RFC 4514 subject of the builder's certificate
    issuer: str
    rule: str  # name of the builder rule that let it pass


def parse_reference(text: str, *, source: str) -> ImageReference:
    """Read an image reference. Raises `UsageError`.

    >>> parse_reference("atlas/sim@13.0.10", source="--vm-image").version
    '13.0.10'
    """
    if len(text) > MAX_REFERENCE_LENGTH or _REFERENCE.fullmatch(text) is None:
        raise UsageError(
            f"{source}: {text[:80]!r} is not an image reference",
            hint="use NAME, NAME@VERSION, sha256:HEX, an absolute path or an http(s) URL; letters, digits and ._:/@+-",
            code="reference-unreadable",
        )
    if digest := _DIGEST.fullmatch(text):
        return ImageReference(text, sha256=digest[1])
    if text.startswith("/"):
        if ".." in text.split("/"):
            raise UsageError(f"{source}: {text[:80]!r} has '..' in it", code="reference-unreadable")
        return ImageReference(text, url=text)
    if text.startswith(("http://", "https://")):
        return ImageReference(text, url=text)
    if (named := _NAME.fullmatch(text)) and ".." not in text and "//" not in text:
        return ImageReference(text, name=named[1], version=named[2])
    raise UsageError(f"{source}: {text[:80]!r} is not an image reference", code="reference-unreadable")
