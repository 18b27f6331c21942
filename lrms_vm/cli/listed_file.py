"""What a signed list in a file claims of an image file: for `lrms-vm image verify --list`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from functools import cmp_to_key
from pathlib import Path
from typing import TYPE_CHECKING

from lrms_vm.errors import RequestError, UsageError

if TYPE_CHECKING:
    from lrms_vm.trust.imagelist import ListedImage
    from lrms_vm.trust.policy import Policy
    from lrms_vm.trust.verify import Claim, TrustAnchors

_MAX_BYTES = 2 << 20


def claim(
    path: Path,
    image: Path,
    *,
    name: str | None,
    policy: Policy,
    anchors: TrustAnchors,
    user: str | None,
    groups: Sequence[str],
    partition: str,
    account: str,
    at: datetime,
) -> Claim:
    """Of the image called `name`, else of the one that has as many bytes as the file, else of the file's own name.

    Raises `RequestError`, `SiteError`, `UsageError`.
    """
    from lrms_vm.trust import verify_list

    signed = verify_list.open_list(_read(path), anchors=anchors, policy=policy, at=at)
    return verify_list.claim_listed(
        signed,
        _chosen(signed.content.images, image, name, path),
        anchors=anchors,
        policy=policy,
        user=user,
        groups=groups,
        partition=partition,
        account=account,
        at=at,
    )


def _chosen(images: Sequence[ListedImage], file: Path, name: str | None, path: Path) -> ListedImage:
    from lrms_vm.trust.imagelist import compare_versions

    size_bytes = file.stat().st_size
    wanted, _, version = (name or "").partition("@")
    named = [one for one in images if wanted in (one.name, one.identifier) and version in ("", one.version)]
    found = named if name is not None else [one for one in images if one.size_bytes == size_bytes]
    if name is None and len({one.name for one in found}) > 1:
        found = [one for one in found if one.name.rpartition("/")[2] == file.stem]
    if not found:
        what = f"no image {name}" if name is not None else f"no image that {file} could be, of {size_bytes} bytes"
        raise RequestError(
            f"{path}: the list has {what}",
            hint="see `lrms-vm image show`, and say which with --name NAME or NAME@VERSION",
            code="image-not-listed",
        )
    of_size = [one for one in found if one.size_bytes == size_bytes]
    by_version = cmp_to_key(compare_versions)
    return max(of_size or found, key=lambda one: by_version(one.version))


def _read(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            return file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"--list: {path}: cannot read: {error.strerror}", code="file-unreadable") from error
