"""What a file is, told by its first and last bytes. Pure."""

from __future__ import annotations

HEAD_BYTES = 36 << 10  # an ISO 9660 descriptor ends there
TAIL_BYTES = 1536


def detect(head: bytes, tail: bytes = b"") -> str:
    """ "raw", or what it is instead. `head` is the first `HEAD_BYTES`, `tail` the last `TAIL_BYTES`, or all there is."""
    return "qcow2" if head.startswith(b"QFI\xfb") else "raw"
