"""Signed image lists for tests: one that is as it should be, and whatever a test changes in it.

signed = sign(payload([image("atlas/sim", **{"hv:version": "2"})], **{"hv:version": "7"}), ALICE)
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from lrms_vm.signing import attached_cms, detached_cms
from lrms_vm.signing_list import _clear_signed
from lrms_vm.trust.policy import Policy, parse_policy
from lrms_vm.trust.verify import TrustAnchors
from tests.certs.make_certs import Authority, Identity, ec_key, name, person

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
LIST = "cc9e5a7a-5a6e-4b8e-8ee0-4a0c6a1b2c3d"
IMAGE = b"\0" * 512 + b"a disk"
CA_DN, ALICE_DN = "CN=Test CA,DC=TestGrid,DC=org", "CN=Alice Example,O=People,DC=TestGrid,DC=org"
CA = Authority.root(name("Test CA"), at=NOW)
ALICE = CA.issue(person("Alice Example"))
BOB = CA.issue(person("Bob Example"), key=ec_key(2))
ANCHORS = TrustAnchors((CA.pem,), (CA.crl(),))
GONE = object()  # as a key's value: without the key


def policy(builder: str = "", *, defaults: str = "", more: str = "") -> Policy:
    text = f"""version = 1
[defaults]
namespaces = "ignore"
{defaults}
[[builder]]
name = "alice"
issuer = "{CA_DN}"
subject = "{ALICE_DN}"
images = ["atlas/*"]
{builder}
[[runner]]
name = "production"
users = ["atlas001"]
images = ["atlas/*"]
{more}
"""
    return parse_policy(text.encode(), source="trust.toml")


def image(image_name: str = "atlas/sim", content: bytes = IMAGE, **changes: Any) -> dict[str, Any]:
    """One `hv:image`, as HEPiX lists have it, with our keys."""
    values = {
        "dc:identifier": f"id-{image_name.replace('/', '-')}",
        "dc:title": "Image [Debian/12/KVM]",
        "dc:description": "a disk",
        "hv:version": "1.2.3",
        "hv:size": len(content),
        "hv:uri": "https://images.example.org/a.img",
        "hv:hypervisor": "KVM",
        "hv:format": "RAW",
        "sl:arch": "x86_64",
        "sl:os": "Linux",
        "sl:osversion": "12",
        "sl:comments": "",
        "sl:checksum:sha512": hashlib.sha512(content).hexdigest(),
        "lv:checksum:sha256": hashlib.sha256(content).hexdigest(),
        "lv:name": image_name,
    }
    return {key: value for key, value in {**values, **changes}.items() if value is not GONE}


def content(images: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    """What is inside `hv:imagelist`."""
    values = {
        "dc:date:created": "2026-11-22T11:00:00Z",
        "dc:date:expires": "2026-12-20T11:00:00Z",
        "dc:identifier": LIST,
        "dc:title": "ATLAS images",
        "dc:description": "",
        "dc:source": "example.org",
        "hv:version": "7",
        "hv:uri": "https://images.example.org/atlas.image_list",
        "hv:endorser": {"hv:x509": {"hv:dn": "/CN=Alice", "hv:ca": "/CN=CA", "dc:creator": "A", "hv:email": "a@b"}},
        "hv:images": [{"hv:image": one} for one in ([image()] if images is None else images)],
    }
    return {key: value for key, value in {**values, **changes}.items() if value is not GONE}


def payload(images: list[dict[str, Any]] | None = None, **changes: Any) -> bytes:
    return json.dumps({"hv:imagelist": content(images, **changes)}, indent=1).encode()


def sign(
    data: bytes, who: Identity = ALICE, *, form: str = "smime", digest: str = "sha256", at: datetime = NOW
) -> bytes:
    """Sign anything at all, without the checks of `signing_list.sign_list`. `form`: smime, cms or detached."""
    if form == "detached":
        return detached_cms(who.signer(), hashlib.new(digest, data).digest(), digest, at)
    return (attached_cms if form == "cms" else _clear_signed)(who.signer(), data, digest, at)


def later(days: float = 0, **units: float) -> datetime:
    return NOW + timedelta(days=days, **units)
