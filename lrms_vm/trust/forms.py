"""What form the signed bytes may have, and how large a disk they may become. Pure; asked again for every job."""

from __future__ import annotations

from lrms_vm.errors import RequestError
from lrms_vm.trust.verify import Claim


def check_form(claim: Claim, format: str, sha256: str, *, size_bytes: int, raw_size_bytes: int) -> None:
    """The signed bytes are of that `format`, and are or were made into the raw disk `sha256` (hex).

    Raises `RequestError`: "format-not-allowed", "image-size-differs", "image-virtual-too-large", "image-ratio" or
    "image-blocked".
    """
    if format not in claim.formats:
        raise RequestError(
            f"the image is {format}; the policy, builder rule {claim.rule!r} ({claim.rule_where}) and the image's list "
            f"together accept {', '.join(claim.formats) or 'nothing'}",
            hint=f"sign a raw image, or ask {claim.contact}",
            code="format-not-allowed",
        )
    if claim.virtual_size_bytes not in (None, raw_size_bytes):
        raise RequestError(
            f"the disk has {raw_size_bytes} bytes, its signed list says {claim.virtual_size_bytes}",
            hint="the list's endorser must put it right",
            code="image-size-differs",
        )
    if format == "raw":
        return
    if raw_size_bytes > claim.max_virtual_bytes:
        raise RequestError(
            f"the disk in the {format} has {raw_size_bytes} bytes; expected at most {claim.max_virtual_bytes}",
            hint="the limit is max_virtual in trust.toml",
            code="image-virtual-too-large",
        )
    if raw_size_bytes > claim.max_ratio * size_bytes:
        raise RequestError(
            f"the disk in the {format} is {raw_size_bytes // max(size_bytes, 1)} times as large as its file; expected "
            f"at most {claim.max_ratio} times",
            hint="the limit is max_ratio in trust.toml",
            code="image-ratio",
        )
    if block := claim.blocked.get(sha256):
        raise RequestError(
            f"the image sha256:{sha256} is blocked by {block.where}: {block.reason}",
            hint=f"ask {claim.contact}",
            code="image-blocked",
        )
