"""Vouch for images with a signed list: describe image files, write the list, sign it in the forms HEPiX tools read.

What was made is read back by the trust core, so that nothing leaves here that a node would refuse for its form; and
here, where it can still be corrected, more is refused than a node does: keys of ours that no version knows.
"""

from __future__ import annotations

import base64
import json
import os
import uuid
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from lrms_vm import disk_format
from lrms_vm.errors import RequestError, UsageError
from lrms_vm.signing import Signer, attached_cms, detached_cms, hash_image, tree_of_image
from lrms_vm.store import write_durably
from lrms_vm.trust import cms, digests, dn, imagelist, smime, strict_json
from lrms_vm.trust.imagelist import ImageList
from lrms_vm.trust.json_object import show_time
from lrms_vm.trust.tree import CHUNK_BYTES
from lrms_vm.values import dataclass

KNOWN_KEYS = frozenset(
    f"lv:{name}"
    for name in (
        "name", "checksum:sha256", "tree", "format", "virtual_size", "kernel", "initrd", "cmdline", "bootmode",
        "min_version", "vo", "mirrors",
    )
)  # fmt: skip
_MICALG = {"sha256": "sha-256", "sha384": "sha-384", "sha512": "sha-512"}


@dataclass(frozen=True)
class NewImage:
    """An image file that the list shall have."""

    name: str
    version: str
    path: Path
    url: str
    format: str = "raw"
    leaves: bool = False  # also write FILE.leaves, to be published beside it: chunks are then checked as they come


@dataclass(frozen=True)
class Head:
    """What the list says of itself."""

    identifier: str
    version: str
    title: str
    created: datetime
    expires: datetime
    vo: tuple[str, ...] = ()
    url: str = ""


def list_of(head: Head, images: Sequence[NewImage], signer: Signer) -> bytes:
    """The list as JSON, each file read once and described. Raises `UsageError`, `RequestError` as `hash_image`."""
    if head.expires <= head.created:
        raise UsageError("--lifetime: the list would expire before it is created", code="list-expired")
    endorser = {"hv:dn": dn.slash(signer.certificate.subject) or dn.show(signer.certificate.subject)}
    endorser["hv:ca"] = dn.slash(signer.certificate.issuer) or dn.show(signer.certificate.issuer)
    endorser |= {
        "dc:creator": dn.show(signer.certificate.subject).partition(",")[0].removeprefix("CN="),
        "hv:email": "",
    }
    content: dict[str, Any] = {
        "dc:date:created": show_time(head.created),
        "dc:date:expires": show_time(head.expires),
        "dc:identifier": head.identifier,
        "dc:title": head.title,
        "dc:description": head.title,
        "dc:source": head.title,
        "hv:version": head.version,
        "hv:uri": head.url,
        "hv:endorser": {"hv:x509": endorser},
        "hv:images": [{"hv:image": describe(image, head)} for image in images],
    }
    if head.vo:
        content["ad:vo"], content["lv:vo"] = head.vo[0], list(head.vo)
    return json.dumps({"hv:imagelist": content}, indent=1, sort_keys=True).encode()


def describe(image: NewImage, head: Head) -> dict[str, Any]:
    """The entry of one file. Raises `UsageError`, `RequestError`."""
    before = _stamp(image.path)
    found, size_bytes = hash_image(image.path, {"sha256", "sha512"})
    entry: dict[str, Any] = {
        "dc:identifier": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{head.identifier}/{image.name}")),  # the same each time
        "dc:title": image.name,
        "dc:description": image.name,
        "hv:version": image.version,
        "hv:size": size_bytes,
        "hv:uri": image.url,
        "hv:hypervisor": "qemu,xen",
        "hv:format": image.format.upper(),
        "sl:arch": "x86_64",
        "sl:os": "Linux",
        "sl:osversion": "",
        "sl:comments": "",
        "sl:checksum:sha512": found["sha512"].hex(),
        "lv:name": image.name,
        "lv:checksum:sha256": found["sha256"].hex(),
        "lv:format": image.format,
    }
    if image.format == "raw":
        hashed, _ = tree_of_image(image.path, CHUNK_BYTES)
        if _stamp(image.path) != before:
            raise RequestError(
                f"{image.path}: changed while it was read", hint="stop its writer", code="image-changing"
            )
        entry["lv:tree"] = {"alg": "sha256", "chunk": CHUNK_BYTES, "root": hashed.root.hex()}
        if image.leaves:
            entry["lv:tree"]["leaves"] = _write_leaves(image, b"".join(hashed.leaves))
    return entry


def sign_list(payload: bytes, signer: Signer, *, form: str, digest: str, at: datetime) -> bytes:
    """The signed list: `form` is "smime" (clear-signed) or "cms" (DER, the list inside).

    Raises `RequestError` for a list that no node would take, `UsageError` for what should be corrected.
    """
    _check(payload, at)
    make = attached_cms if form == "cms" else _clear_signed
    signed = make(signer, payload, digest, at)
    _read_back(signed, signer)
    return signed


def unsigned(data: bytes) -> ImageList:
    """What a list says, signed or not, and proved or not: for its author's eyes. Raises `RequestError`."""
    if data.lstrip(b" \t\r\n").startswith(b"{"):
        return imagelist.parse_list(data)
    message = smime.split(data)
    if message.content is not None:
        return imagelist.parse_list(smime.text_of(message.content))
    _, content = cms.parse_attached(message.signature, max_content_bytes=strict_json.MAX_BYTES)
    return imagelist.parse_list(smime.text_of(content))


def _clear_signed(signer: Signer, payload: bytes, digest: str, at: datetime) -> bytes:
    """As `openssl smime -sign` writes it, and `openssl smime -verify` reads it: lines of the text end with CRLF."""
    content = smime.canonical(payload)
    signature = detached_cms(signer, digests.of(digest, content), digest, at)
    boundary = b"----" + digests.of("sha256", content).hex()[:32].upper().encode()
    if boundary in content:
        raise AssertionError("a list that has its own digest in it")
    head = (
        b"MIME-Version: 1.0\n"
        b'Content-Type: multipart/signed; protocol="application/x-pkcs7-signature"; micalg="%s"; boundary="%s"\n\n'
        b"This is an S/MIME signed message\n\n" % (_MICALG[digest].encode(), boundary)
    )
    second = (
        b'Content-Type: application/x-pkcs7-signature; name="smime.p7s"\n'
        b"Content-Transfer-Encoding: base64\n"
        b'Content-Disposition: attachment; filename="smime.p7s"\n\n' + _base64_lines(signature)
    )
    delimiter = b"--" + boundary
    return head + delimiter + b"\n" + content + b"\n" + delimiter + b"\n" + second + b"\n" + delimiter + b"--\n\n"


def _base64_lines(data: bytes) -> bytes:
    text = base64.b64encode(data)
    return b"".join(text[at : at + 64] + b"\n" for at in range(0, len(text), 64))


def _check(payload: bytes, at: datetime) -> None:
    found = imagelist.parse_list(payload)
    if found.expires <= at:
        raise UsageError(
            f"the list expires at {show_time(found.expires)}, which has passed",
            hint="correct dc:date:expires",
            code="list-expired",
        )
    if found.created > at:
        raise UsageError(
            f"the list was created at {show_time(found.created)}, in the future",
            hint="correct dc:date:created",
            code="list-not-yet-valid",
        )
    unknown = sorted(_our_keys(strict_json.parse(payload, source="the image list")) - KNOWN_KEYS)
    if unknown:
        raise UsageError(f"the list has {unknown[0]!r:.80}, which no version knows", code="list-unknown-key")


def _our_keys(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(_our_keys, value))
    if isinstance(value, dict):
        return {key for key in value if key.startswith("lv:")}.union(*map(_our_keys, value.values()))
    return set()


def _read_back(signed: bytes, signer: Signer) -> None:
    message = smime.split(signed)
    if message.content is None:
        signature, content = cms.parse_attached(message.signature, max_content_bytes=strict_json.MAX_BYTES)
    else:
        signature, content = cms.parse(message.signature), message.content
    cms.verify_signature(signature)
    if not cms.check_content(signature, content) or signature.signer != signer.certificate:
        raise AssertionError("a signature that is not over what it was made over")
    imagelist.parse_list(smime.text_of(content))


def _write_leaves(image: NewImage, text: bytes) -> dict[str, Any]:
    path = image.path.with_name(f"{image.path.name}.leaves")
    try:
        write_durably(path, text, 0o644)
    except OSError as error:
        raise UsageError(f"{path}: cannot write: {error.strerror}", code="signature-unwritable") from error
    return {"uri": f"{image.url}.leaves", "size": len(text), "sha256": digests.of("sha256", text).hex()}


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError as error:
        raise UsageError(f"{path}: cannot read the image: {error.strerror}", code="image-unreadable") from error
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def format_of(path: Path) -> str:
    """By the file's first and last bytes. Raises `UsageError` for what no node would boot."""
    try:
        with open(path, "rb") as file:
            head = file.read(disk_format.HEAD_BYTES)
            file.seek(-min(disk_format.TAIL_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_END)
            found = disk_format.detect(head, file.read())
    except OSError as error:
        raise UsageError(f"{path}: cannot read the image: {error.strerror}", code="image-unreadable") from error
    if found not in ("raw", "qcow2"):
        raise UsageError(f"{path}: is {found}", hint="sign a raw image, or qcow2", code="format-not-allowed")
    return found
