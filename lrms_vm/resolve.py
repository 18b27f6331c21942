"""From an image reference to what the site says of it. Says nothing about trust."""

from __future__ import annotations

from collections.abc import Callable

from lrms_vm.config import Config
from lrms_vm.errors import RequestError
from lrms_vm.image import ImageEntry, ImageReference

Find = Callable[[ImageReference], ImageEntry | None]  # in the signed lists that the site subscribes to
Sha256Of = Callable[[ImageEntry], str | None]  # of the bytes that an entry's signature is over, hex


def resolve(
    reference: ImageReference, config: Config, find: Find = lambda _: None, sha256_of: Sha256Of = lambda _: None
) -> ImageEntry:
    """Find the entry for a reference: the site's own [images.NAME] wins over a list's image of that name.

    Raises `RequestError` for a name or a place the site does not have, and what `find` raises.
    """
    if reference.url is not None:
        return _place(reference.url, config)
    own = config.images.get(reference.name or "")
    if own is not None and reference.version in (None, own.version):
        return own
    found = find(reference)
    if found is None and reference.sha256 is not None:
        found = next((one for one in config.images.values() if sha256_of(one) == reference.sha256), None)
    if found is not None:
        return found
    if reference.version is not None and (own is not None or find(ImageReference(reference.text, reference.name))):
        raise RequestError(
            f"--vm-image: {reference.name!r} has no version {reference.version} here",
            hint="see `lrms-vm image list`",
            code="image-version-unknown",
        )
    raise RequestError(
        f"--vm-image: {reference.text!r} is not in the site's image list ({config.source})"
        + (f", nor in the signed lists {', '.join(config.lists)}" if config.lists else ""),
        hint=f"see `lrms-vm image list`, or ask {config.contact}",
        code="image-unknown",
    )


def _place(url: str, config: Config) -> ImageEntry:
    if not any(url.startswith(prefix) for prefix in config.image_places):
        raise RequestError(
            f"--vm-image: {url!r} is not below a place from which this site allows images",
            hint=f"use a name from `lrms-vm image list`, or ask {config.contact} (image_places in {config.source})",
            code="image-place-not-allowed",
        )
    name = url.rpartition("/")[2]
    for suffix in (".img", ".raw", ".qcow2"):
        name = name.removesuffix(suffix)
    return ImageEntry(name=name, url=url)
