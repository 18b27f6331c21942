"""The digest algorithms we know, by the names that OpenSSL, side files and policies give them."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives import hashes

HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
    "sha1": hashes.SHA1(),  # noqa: S303 - only where a builder's rule allows it until a date
}
STRONG = ("sha256", "sha384", "sha512")


def of_nothing(algorithm: str) -> bytes:
    """The digest of no bytes: what `openssl cms -sign` without -binary signs for a disk that starts with zeros."""
    return of(algorithm, b"")


def of(algorithm: str, data: bytes) -> bytes:
    return hashlib.new(algorithm, data).digest()


def size_bytes(algorithm: str) -> int:
    return HASHES[algorithm].digest_size
