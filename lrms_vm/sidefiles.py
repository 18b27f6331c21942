"""The signature beside an image: small files, fetched before any byte of the image, the last good copy kept.

signatures/<sha256 of the places>.json     the last copy whose claim was good: a warm cache works with the server down
signatures/<algorithm>-<hex>.ref           which image in the store is for the bytes with this digest
signatures/signature-<hex>.ref             which image these signature files were found to be for
A .ref is a hint: what it leads to is decided upon again, each time. It holds the sha256 of the stored image, and, where
that was converted from other bytes, theirs: only root can write either that or what meta.json says of the conversion.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lrms_vm.errors import ConfigError, RequestError, SiteError
from lrms_vm.fetch import Fetcher
from lrms_vm.image import ImageEntry
from lrms_vm.locks import locked
from lrms_vm.paths import Places
from lrms_vm.store import entry_dir, prepare, write_durably
from lrms_vm.values import dataclass

if TYPE_CHECKING:
    from lrms_vm.trust.verify import Claim, SignatureFiles

MAX_BYTES = 64 << 10
ASK_TIMEOUT_S = 5.0  # how long a server may take with a signature of which we have a copy
ASK_AGAIN_S = 300.0  # how long a good copy is used before the server is asked (again)
DGST_SUFFIXES = ("sha256", "sha384", "sha512", "sha1")
_HEX = re.compile("[0-9a-f]{64}", re.ASCII)


class Decide(Protocol):
    """The part of the trust core that is asked about signature files."""

    def claim(self, files: SignatureFiles, name: str) -> Claim: ...


def claimed(
    entry: ImageEntry, *, places: Places, decide: Decide, fetch: Fetcher, deadline: float
) -> tuple[SignatureFiles, Claim]:
    """The signature files and what they claim. A refusal never rests on an old copy; acceptance may."""
    if entry.url.startswith("/"):
        return _asked_for(entry, None, places=places, decide=decide, fetch=fetch, deadline=deadline)
    copy = copy_of(places, entry)
    if copy is not None and copy[1] < ASK_AGAIN_S:
        with contextlib.suppress(RequestError):  # decided again below, on what the server has now
            return copy[0], decide.claim(copy[0], entry.name)
    with contextlib.ExitStack() as stack:  # a hundred jobs at once make one question
        with contextlib.suppress(SiteError):  # it takes long: then everybody asks
            lock = _copy_path(places, entry).with_suffix(".lock").name
            stack.enter_context(
                locked(places.cache_locks / lock, deadline=min(deadline, time.monotonic() + ASK_TIMEOUT_S))
            )
        answer = copy_of(places, entry)
        asked_since = answer is not None and answer[1] < (ASK_AGAIN_S if copy is None else min(copy[1], ASK_AGAIN_S))
        if answer is not None and asked_since:
            with contextlib.suppress(RequestError):
                return answer[0], decide.claim(answer[0], entry.name)
        return _asked_for(entry, copy, places=places, decide=decide, fetch=fetch, deadline=deadline)


def _asked_for(
    entry: ImageEntry,
    copy: tuple[SignatureFiles, float] | None,
    *,
    places: Places,
    decide: Decide,
    fetch: Fetcher,
    deadline: float,
) -> tuple[SignatureFiles, Claim]:
    """What the server has; the copy where it does not answer."""
    ask_until = deadline if copy is None else min(deadline, time.monotonic() + ASK_TIMEOUT_S)
    try:
        files = fetch_files(entry, fetch=fetch, deadline=ask_until)
    except SiteError:
        if copy is None:
            raise
        asked(places, entry)
        return copy[0], decide.claim(copy[0], entry.name)
    claim = decide.claim(files, entry.name)
    if not entry.url.startswith("/"):
        keep_copy(places, entry, files)
    return files, claim


def sha256_of(entry: ImageEntry, *, places: Places, decide: Decide, fetch: Fetcher, deadline: float) -> str | None:
    """The sha256 (hex) of the bytes that an entry's signature is over, as far as this node can know it.

    Raises as `claimed`.
    """
    prepare(places)
    files, claim = claimed(entry, places=places, decide=decide, fetch=fetch, deadline=deadline)
    found = reference(places, image_key(files, claim))
    return found.signed if found is not None else None


def fetch_files(entry: ImageEntry, *, fetch: Fetcher, deadline: float) -> SignatureFiles:
    """Get the signature files: IMAGE.p7s, else IMAGE.sha256 (.sha384, .sha512, .sha1) with IMAGE.crt.

    A bare signature and its certificate may also have the image's name without .img or .raw (vm_image.sha256 beside
    vm_image.img, as in the talk of 2007). A mirror is asked where the places before it do not answer or have none, each
    in its part of the time. Raises `RequestError` "not-signed" when there are none, `SiteError` when a server does not
    answer and no other has them.
    """
    if entry.signature_url is not None:
        kind = _kind_of(entry.signature_url)
        found = _small(entry.signature_url, fetch, deadline)
        if found is not None:
            return _files(kind, found, entry.url, entry, fetch, deadline)
        raise _unsigned(entry, entry.signature_url)
    silent: SiteError | None = None
    for left, url in zip(range(len(entry.urls), 0, -1), entry.urls, strict=True):
        now = time.monotonic()
        try:
            files = _beside(url, entry, fetch, now + (deadline - now) / left)
        except SiteError as error:
            silent = silent or error
            continue
        if files is not None:
            return files
    raise silent or _unsigned(entry, f"{entry.url}.p7s or .sha256")


def _beside(url: str, entry: ImageEntry, fetch: Fetcher, deadline: float) -> SignatureFiles | None:
    for stem in _stems(url):
        for suffix in ("p7s", *DGST_SUFFIXES) if stem == url else DGST_SUFFIXES:
            found = _small(f"{stem}.{suffix}", fetch, deadline)
            if found is not None:
                return _files(suffix, found, url, entry, fetch, deadline)
    return None


def copy_of(places: Places, entry: ImageEntry) -> tuple[SignatureFiles, float] | None:
    """The last good copy and its age in seconds."""
    from lrms_vm.trust.verify import SignatureFiles

    path = _copy_path(places, entry)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            age_s = time.time() - os.fstat(fd).st_mtime
            words = json.loads(file.read(4 * MAX_BYTES))
        certificate = words["certificate"]
        return SignatureFiles(
            kind=words["kind"],
            signature=base64.b64decode(words["signature"], validate=True),
            digest_algorithm=words["digest_algorithm"],
            certificate=None if certificate is None else base64.b64decode(certificate, validate=True),
        ), abs(age_s)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # no copy, or none that can be read: ask the server


def keep_copy(places: Places, entry: ImageEntry, files: SignatureFiles) -> None:
    """Keep files whose claim was good. Raises `OSError`."""
    certificate = files.certificate
    words = {
        "kind": files.kind,
        "signature": base64.b64encode(files.signature).decode(),
        "digest_algorithm": files.digest_algorithm,
        "certificate": None if certificate is None else base64.b64encode(certificate).decode(),
    }
    write_durably(_copy_path(places, entry), json.dumps(words).encode())


def asked(places: Places, entry: ImageEntry) -> None:
    """The server did not answer: let the next jobs not wait for it as well. Raises `OSError`."""
    os.utime(_copy_path(places, entry))


def image_key(files: SignatureFiles | None, claim: Claim) -> str:
    """What the image is looked up and fetched by: the digest the claim gives, else the signature itself."""
    if claim.signed_digest is not None:
        return f"{claim.digest_algorithm}-{claim.signed_digest.hex()}"
    if files is None:
        raise ValueError("a list always gives a digest")
    parts = (files.kind.encode(), (files.digest_algorithm or "").encode(), files.signature, files.certificate or b"")
    return "signature-" + hashlib.sha256(b"".join(len(p).to_bytes(8, "big") + p for p in parts)).hexdigest()


@dataclass(frozen=True)
class Reference:
    """Two sha256, hex: of the image in the store, and of the bytes that were signed. Mostly the same."""

    stored: str
    signed: str


def reference(places: Places, key: str) -> Reference | None:
    """Where a key leads, as far as this node knows."""
    own = key.removeprefix("sha256-") if key.startswith("sha256-") else None
    try:
        fd = os.open(places.signatures / f"{key}.ref", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(fd, encoding="ascii", errors="replace") as file:
            stored, *signed = file.read(200).split(" ")
    except OSError:
        return Reference(own, own) if own else None
    found = Reference(stored, signed[0] if signed else stored)
    damaged = len(signed) > 1 or _HEX.fullmatch(found.stored) is None or _HEX.fullmatch(found.signed) is None
    if damaged or own not in (None, found.signed):
        return Reference(own, own) if own else None
    return found


def led_to(places: Places, key: str) -> list[Path]:
    """What is not there as long as `reference` leads nowhere: cheap to ask for again and again."""
    own = [entry_dir(places, key.removeprefix("sha256-")) / "meta.json"] if key.startswith("sha256-") else []
    return [places.signatures / f"{key}.ref", *own]


def keep_ref(places: Places, key: str, sha256: str, signed: str | None = None) -> None:
    """Remember `reference`; `signed` where it differs. Raises `OSError`."""
    if signed is not None and signed != sha256:
        write_durably(places.signatures / f"{key}.ref", f"{sha256} {signed}".encode())
    elif not key.startswith("sha256-"):
        write_durably(places.signatures / f"{key}.ref", sha256.encode())


def _copy_path(places: Places, entry: ImageEntry) -> Path:
    text = "\n".join([entry.url, entry.signature_url or "", entry.certificate_url or ""])
    return places.signatures / (hashlib.sha256(text.encode()).hexdigest() + ".json")


def _files(
    suffix: str, signature: bytes, url: str, entry: ImageEntry, fetch: Fetcher, deadline: float
) -> SignatureFiles:
    from lrms_vm.trust.verify import SignatureFiles

    if suffix == "p7s":
        return SignatureFiles(kind="cms", signature=signature, digest_algorithm=None, certificate=None)
    places = [entry.certificate_url] if entry.certificate_url else [f"{stem}.crt" for stem in _stems(url)]
    found = (_small(place, fetch, deadline) for place in places)
    certificate = next((one for one in found if one is not None), None)
    return SignatureFiles(kind="dgst", signature=signature, digest_algorithm=suffix, certificate=certificate)


def _stems(url: str) -> list[str]:
    """The image's name, and that without what says that it is a raw disk."""
    return [
        url,
        *(url.removesuffix(end) for end in (".img", ".raw") if url.endswith(end) and url[: -len(end)][-1:] != "/"),
    ]


def _small(url: str, fetch: Fetcher, deadline: float) -> bytes | None:
    """A side file's bytes; None when there is none."""
    try:
        return b"".join(fetch.fetch(url, max_bytes=MAX_BYTES, deadline=deadline))
    except RequestError as error:
        if error.code == "image-missing":
            return None
        if error.code == "image-too-large":
            raise RequestError(
                f"{url}: larger than {MAX_BYTES} bytes", hint="this is no signature file", code="signature-too-large"
            ) from error
        raise


def _kind_of(url: str) -> str:
    suffix = url.rpartition(".")[2]
    if suffix != "p7s" and suffix not in DGST_SUFFIXES:
        raise ConfigError(
            f"{url}: cannot tell the kind of signature from its name",
            hint="end it with .p7s, .sha256, .sha384, .sha512 or .sha1",
            code="signature-kind-unknown",
        )
    return suffix


def _unsigned(entry: ImageEntry, expected: str) -> RequestError:
    return RequestError(
        f"{entry.name}: the image is not signed: there is no {expected}",
        hint="sign it with `lrms-vm image sign IMAGE`",
        code="not-signed",
    )
