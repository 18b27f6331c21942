"""One image of a signed list, as the node keeps it for its jobs: a page to read instead of a megabyte.

The extract is our own file, written after `open_list` by root where only root writes; it carries no proof of its own.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from lrms_vm.trust import sealed_json
from lrms_vm.trust.imagelist import Endorser, ImageList, ListedImage
from lrms_vm.trust.json_object import parse_time, show_time
from lrms_vm.trust.tree import Tree
from lrms_vm.trust.verify_list import SignedList
from lrms_vm.trust.x509 import parse_der


def write_extract(signed: SignedList, image: ListedImage) -> bytes:
    """The file's bytes."""
    content = signed.content
    tree = image.tree
    return sealed_json.write(
        {
            "list": {
                "identifier": content.identifier,
                "version": content.version,
                "title": content.title,
                "created": show_time(content.created),
                "expires": show_time(content.expires),
                "endorser": vars(content.endorser),
                "vo": content.vo,
                "description": content.description,
                "url": content.url,
            },
            "certificates": [
                base64.b64encode(one.public_bytes(Encoding.DER)).decode() for one in (signed.signer, *signed.others)
            ],
            "form": signed.form,
            "digest_algorithm": signed.digest_algorithm,
            "content_sha256": signed.content_sha256.hex(),
            "valid_until": show_time(signed.valid_until),
            "image": {
                **vars(image),
                "digests": {algorithm: digest.hex() for algorithm, digest in image.digests.items()},
                "tree": tree and {name: _hex(value) for name, value in vars(tree).items()},
                "expires": image.expires and show_time(image.expires),
                "kernel_sha256": _hex(image.kernel_sha256),
                "initrd_sha256": _hex(image.initrd_sha256),
            },
        }
    )


def read_extract(data: bytes, *, source: str) -> tuple[SignedList, ListedImage]:
    """Read back what `write_extract` wrote. Raises `SiteError` "extract-damaged"."""
    try:
        return _extract(sealed_json.read(data, source=source), source)
    except sealed_json.UNREADABLE as error:
        raise sealed_json.damaged(source, error, code="extract-damaged") from error


def _extract(state: Any, source: str) -> tuple[SignedList, ListedImage]:
    image = _image(state["image"])
    head = state["list"]
    content = ImageList(
        **{
            **head,
            "created": _time(head["created"]),
            "expires": _time(head["expires"]),
            "endorser": Endorser(**head["endorser"]),
            "vo": tuple(head["vo"]),
            "images": (image,),
        }
    )
    signer, *others = [parse_der(base64.b64decode(one), source=source) for one in state["certificates"]]
    signed = SignedList(
        content=content,
        signer=signer,
        others=tuple(others),
        form=state["form"],
        digest_algorithm=state["digest_algorithm"],
        content_sha256=bytes.fromhex(state["content_sha256"]),
        valid_until=_time(state["valid_until"]),
    )
    return signed, image


def _image(values: dict[str, Any]) -> ListedImage:
    tree, expires = values["tree"], values["expires"]
    image = ListedImage(**{**values, "tree": None, "expires": None})
    return replace(
        image,
        digests={algorithm: bytes.fromhex(digest) for algorithm, digest in values["digests"].items()},
        urls=tuple(values["urls"]),
        vo=tuple(values["vo"]),
        tree=Tree(**{**tree, **{name: _bytes(tree[name]) for name in ("root", "leaves_sha256")}}) if tree else None,
        expires=_time(expires) if expires else None,
        kernel_sha256=_bytes(values["kernel_sha256"]),
        initrd_sha256=_bytes(values["initrd_sha256"]),
    )


def _hex(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def _bytes(value: str | None) -> bytes | None:
    return None if value is None else bytes.fromhex(value)


def _time(text: str) -> datetime:
    if (found := parse_time(text)) is None:
        raise ValueError(f"{text!r:.40} is not a time")
    return found
