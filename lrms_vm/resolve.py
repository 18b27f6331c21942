"""From an image reference to what the site says of it. Says nothing about trust."""

from __future__ import annotations

from lrms_vm.config import Config
from lrms_vm.errors import RequestError
from lrms_vm.image import ImageEntry, ImageReference


def resolve(reference: ImageReference, config: Config) -> ImageEntry:
    """Find the entry for a reference. Raises `RequestError` for a name or a place the site does not have."""
    if reference.url is not None:
        return _place(reference.url, config)
    if reference.name is None:
        raise RequestError(
            f"--vm-image: {reference.text!r}: images are not yet found by digest alone",
            hint="use a name from `lrms-vm image list`",
            code="image-unknown",
        )
    entry = config.images.get(reference.name)
    if entry is None:
        raise RequestError(
            f"--vm-image: {reference.name!r} is not in the site's image list ({config.source})",
            hint=f"see `lrms-vm image list`, or ask {config.contact}",
            code="image-unknown",
        )
    if reference.version is not None and reference.version != entry.version:
        raise RequestError(
            f"--vm-image: {reference.name!r} has version {entry.version or 'none'}, not {reference.version}",
            hint="see `lrms-vm image list`",
            code="image-version-unknown",
        )
    return entry


def _place(url: str, config: Config) -> ImageEntry:
    if not any(url.startswith(prefix) for prefix in config.image_places):
        raise RequestError(
            f"--vm-image: {url!r} is not below a place from which this site allows images",
            hint=f"use a name from `lrms-vm image list`, or ask {config.contact} (image_places in {config.source})",
            code="image-place-not-allowed",
        )
    name = url.rpartition("/")[2]
    for suffix in (".img", ".raw"):
        name = name.removesuffix(suffix)
    return ImageEntry(name=name, url=url)
