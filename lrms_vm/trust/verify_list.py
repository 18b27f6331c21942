"""May this list be believed, and may this image of it boot for this job? Pure, as trust/verify.py is.

`open_list` looks at the whole list, when it comes; `claim_listed` at one image of it, for every job, and needs no more
than an extract: the list's head, its signer and that image (trust/list_extract.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509 as certificates

from lrms_vm.trust.imagelist import ImageList, ListedImage
from lrms_vm.trust.policy import Policy
from lrms_vm.trust.verify import Claim
from lrms_vm.trust.x509 import TrustAnchors, spki_sha256


@dataclass(frozen=True)
class SignedList:
    """A list whose signature was verified when it came. In an extract, `content.images` has only the one asked for."""

    content: ImageList
    signer: certificates.Certificate
    others: tuple[certificates.Certificate, ...]  # what came with the signature
    form: str  # "smime" or "cms"
    digest_algorithm: str  # of the signature
    content_sha256: bytes  # of exactly the signed bytes
    valid_until: datetime  # as of opening: the first end among the list, certificates and CRLs

    @property
    def spki_sha256(self) -> str:
        """The signing key, hex: with the list's identifier, the key of the ratchet."""
        return spki_sha256(self.signer)


def open_list(signed: bytes, *, anchors: TrustAnchors, policy: Policy, at: datetime) -> SignedList:
    """Everything but freshness against what was seen before (trust/freshness.py) and the single image's rules."""
    raise NotImplementedError


def claim_listed(
    signed: SignedList,
    image: ListedImage,
    *,
    anchors: TrustAnchors,
    policy: Policy,
    user: str | None,
    partition: str,
    at: datetime,
    groups: Sequence[str] = (),
    account: str = "",
) -> Claim:
    """What is re-taken for every job."""
    raise NotImplementedError
