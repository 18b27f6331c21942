"""What the cache's tests hand it: bytes from a dict, and a trust core whose signature is the digest in clear."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lrms_vm import cache
from lrms_vm.errors import LrmsVmError, RequestError
from lrms_vm.image import ImageEntry, VerifiedImage
from lrms_vm.paths import Places

URL = "http://images.example.org/hep.img"
ENTRY = ImageEntry(name="hep", url=URL)
IMAGE = b"disk" * 4096 + bytes(1 << 20) + b"end"


@dataclass(frozen=True)
class FakeClaim:
    digest_algorithm: str
    signed_digest: bytes | None
    expected: bytes
    formats: tuple[str, ...] = ("raw",)
    max_virtual_bytes: int = 1 << 30
    max_ratio: int = 100
    virtual_size_bytes: int | None = None
    size_bytes: int | None = None
    tree: Any = None
    kind: str = "cms"
    signed_digests: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class FakeEndorsement:
    sha256: str
    signer: str = "CN=Alice"
    issuer: str = "CN=CA"
    rule: str = "all"
    code: str = "accepted"


@dataclass
class FakeDecide:
    """A signature is b"ALG HEX"; `blind` hides the digest as an ECDSA signature does."""

    refuse: LrmsVmError | None = None
    blind: bool = False
    formats: tuple[str, ...] = ("raw",)
    seen: list[Any] = field(default_factory=list)
    bare_max_age_s: int = 30 * 86400
    at: datetime = datetime(2026, 11, 22, 12, tzinfo=UTC)

    def claim(self, files: Any, name: str) -> Any:
        self.seen.append(files)
        if self.refuse is not None:
            raise self.refuse
        try:
            algorithm, text = files.signature.decode().split()
            digest = bytes.fromhex(text)
        except ValueError as error:
            raise RequestError("not a signature", code="signature-unreadable") from error
        return FakeClaim(algorithm, None if self.blind else digest, digest, self.formats)

    def bytes(self, claim: Any, digests: Mapping[str, Any], size_bytes: int) -> Any:
        if digests[claim.digest_algorithm] != claim.expected:
            raise RequestError("other bytes", code="bytes-differ")
        return FakeEndorsement(digests["sha256"].hex())

    def form(self, claim: Any, format: str, sha256: str, *, size_bytes: int, raw_size_bytes: int) -> None:
        if format not in claim.formats:
            raise RequestError(f"{format} is not allowed", code="format-not-allowed")


@dataclass
class FakeFetch:
    """Serves a dict; an error in place of bytes is raised. Counts what was asked for."""

    served: dict[str, bytes | LrmsVmError]
    log: list[str] = field(default_factory=list)
    pause_s: float = 0.0

    def fetch(self, url: str, *, max_bytes: int, deadline: float) -> Iterator[bytes]:
        self.log.append(url)
        found = self.served.get(url, RequestError(f"{url}: 404", code="image-missing"))
        if isinstance(found, LrmsVmError):
            raise found
        if len(found) > max_bytes:
            raise RequestError("large", code="image-too-large")
        for start in range(0, len(found), 10_000):
            time.sleep(self.pause_s)
            yield found[start : start + 10_000]


def sign(image: bytes, algorithm: str = "sha256") -> bytes:
    return f"{algorithm} {hashlib.new(algorithm, image).hexdigest()}".encode()


def served(image: bytes = IMAGE, algorithm: str = "sha256", url: str = URL) -> FakeFetch:
    return FakeFetch({url: image, f"{url}.p7s": sign(image, algorithm)})


def places_at(root: Path) -> Places:
    return Places(root / "state", root / "run")


def acquire(
    places: Places, fetch: Any, *, entry: ImageEntry = ENTRY, lease: str = "local-1.n", **more: Any
) -> VerifiedImage:
    decide = more.pop("decide", None) or FakeDecide()
    arguments = {"max_image_bytes": 1 << 30, "deadline": time.monotonic() + 30, **more}
    return cache.acquire(entry, places=places, lease=lease, decide=decide, fetch=fetch, **arguments)


def leftovers(places: Places) -> list[str]:
    return sorted(p.name for p in places.ingest.iterdir())
