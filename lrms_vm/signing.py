"""Vouch for an image: a detached CMS signature (IMAGE.p7s), or the seed's bare one (IMAGE.sha256 with IMAGE.crt).

The image is hashed as raw bytes in one pass and never held in memory. What was made is then read back by the trust
core, so that nothing leaves here that `lrms-vm image verify` could not read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from lrms_vm.errors import RequestError, UsageError
from lrms_vm.hashing import Leaves, hash_fd, tree_of_fd
from lrms_vm.image_file import ImageFile, TreeAhead
from lrms_vm.store import write_durably
from lrms_vm.trust import cms, dgst, digests, dn, verify
from lrms_vm.trust.verify import Claim, Endorsement
from lrms_vm.trust.x509 import MALFORMED, MAX_CHAIN, check_signer, parse_chain
from lrms_vm.values import dataclass

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
Progress = Callable[[int], None]  # told the bytes done, now and then
Found = TypeVar("Found")
MIN_RSA_BITS = 2048

_DER = serialization.Encoding.DER
_OIDS = {
    "data": "06092a864886f70d010701",
    "signed_data": "06092a864886f70d010702",
    "content_type": "06092a864886f70d010903",
    "message_digest": "06092a864886f70d010904",
    "signing_time": "06092a864886f70d010905",
    "signing_certificate_v2": "060b2a864886f70d010910022f",
    "sha256": "0609608648016503040201",
    "sha384": "0609608648016503040202",
    "sha512": "0609608648016503040203",
    "rsa": "06092a864886f70d010101",
    "ecdsa_sha256": "06082a8648ce3d040302",
    "ecdsa_sha384": "06082a8648ce3d040303",
    "ecdsa_sha512": "06082a8648ce3d040304",
    "ed25519": "06032b6570",
}


@dataclass(frozen=True)
class Signer:
    """A key, its certificate, and the certificates between it and its CA."""

    key: PrivateKey
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]


@dataclass(frozen=True)
class Signed:
    """What was written, and over what."""

    files: tuple[Path, ...]
    digest_algorithm: str
    digest: bytes
    size_bytes: int
    signer: str  # RFC 4514


def load_signer(
    certificate: bytes, key: bytes, chain: bytes = b"", *, password: Callable[[], bytes], at: datetime
) -> Signer:
    """PEM in. `password` is asked only where the key needs one. Raises `RequestError`, `UsageError`."""
    first, *rest = parse_chain(certificate, source="--cert")
    if chain:
        rest += [one for one in parse_chain(chain, source="--chain") if one not in (first, *rest)]
    if len(rest) >= MAX_CHAIN:
        raise UsageError(f"--chain: {len(rest)} certificates; at most {MAX_CHAIN - 1}", code="certificate-malformed")
    check_signer(first, min_rsa_bits=MIN_RSA_BITS)
    if not first.not_valid_before_utc <= at.astimezone(UTC) <= first.not_valid_after_utc:
        raise RequestError(
            f"--cert: the certificate of {dn.show(first.subject)} is valid from {first.not_valid_before_utc:%Y-%m-%d} "
            f"until {first.not_valid_after_utc:%Y-%m-%d}",
            hint="renew it before signing",
            code="signer-expired",
        )
    private = _load_key(key, password)
    if private.public_key() != first.public_key():
        raise UsageError("--key is not the key of the certificate in --cert", code="key-mismatch")
    return Signer(private, first, tuple(rest))


def default_digest(signer: Signer) -> str:
    return "sha512" if isinstance(signer.key, ed25519.Ed25519PrivateKey) else "sha256"


def sign_image(
    image: Path, signer: Signer, *, form: str, digest: str, at: datetime, progress: Progress | None = None
) -> Signed:
    """Hash, sign, check, write beside the image. `form` is "cms" or "dgst"; `digest` a strong algorithm's name.

    Raises `RequestError` (the image changed meanwhile), `UsageError` (no such image).
    """
    found, size_bytes = hash_image(image, {digest}, progress=progress)
    if form == "cms":
        content = detached_cms(signer, found[digest], digest, at)
        parsed = cms.parse(content)
        cms.verify_signature(parsed)
        if (parsed.signer, parsed.message_digest) != (signer.certificate, found[digest]):
            raise AssertionError("a signature that is not over what it was made over")
        files = {_beside(image, "p7s"): content}
    else:
        content = bare_signature(signer, found[digest], digest)
        dgst.signed_digest(content, signer.certificate, digest)
        dgst.verify_digest(content, signer.certificate, digest, found[digest])
        pem = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in (signer.certificate, *signer.chain))
        files = {_beside(image, "crt"): pem, _beside(image, digest): content}
    for path, text in files.items():
        try:
            write_durably(path, text, 0o644)
        except OSError as error:
            raise UsageError(f"{path}: cannot write: {error.strerror}", code="signature-unwritable") from error
    return Signed(tuple(files), digest, found[digest], size_bytes, dn.show(signer.certificate.subject))


def check_image(
    image: Path, claim: Claim, *, progress: Progress | None = None, ahead: TreeAhead | None = None
) -> Endorsement:
    """Whether a file is what a claim is about: by its chunk tree, on all cores, where one was signed; else by digests.

    `ahead` may already be at it. Raises `RequestError`, `UsageError`.
    """
    if verify.has_tree(claim) and claim.tree is not None:
        chunk_bytes = claim.tree.chunk_bytes
        if ahead is not None and ahead.chunk_bytes == chunk_bytes:
            found, size_bytes = ahead.result(progress)
        else:
            found, size_bytes = tree_of_image(image, chunk_bytes, progress=progress)
        return verify.check_tree(claim, root=found.root, size_bytes=size_bytes)
    digests, size_bytes = hash_image(
        image, {"sha256", claim.digest_algorithm, *claim.signed_digests}, progress=progress
    )
    return verify.check_bytes(claim, digests=digests, size_bytes=size_bytes)


def hash_image(image: Path, algorithms: set[str], *, progress: Progress | None = None) -> tuple[dict[str, bytes], int]:
    """Digests of the raw bytes, and how many. Raises `UsageError`, and `RequestError` if it changed meanwhile."""
    return _read(image, lambda fd, size: hash_fd(fd, size, algorithms, progress=progress))


def tree_of_image(image: Path, chunk_bytes: int, *, progress: Progress | None = None) -> tuple[Leaves, int]:
    """The chunk tree of the raw bytes, and how many. Raises as `hash_image`."""
    return _read(image, lambda fd, size: tree_of_fd(fd, size, chunk_bytes, progress=progress))


def _read(image: Path, read: Callable[[int, int], Found]) -> tuple[Found, int]:
    with ImageFile(image) as file:
        try:
            found = read(file.fd, file.size_bytes)
        except OSError as error:
            raise file.unreadable(error) from error
        file.require_unchanged()
        return found, file.size_bytes


def detached_cms(signer: Signer, digest: bytes, algorithm: str, at: datetime) -> bytes:
    """ContentInfo of RFC 5652 in DER, content absent: as `openssl cms -sign -binary -nosmimecap -cades` makes it."""
    return _signed_data(signer, digest, algorithm, at, b"")


def attached_cms(signer: Signer, content: bytes, algorithm: str, at: datetime) -> bytes:
    """The same with the content inside, as with -nodetach."""
    inside = _tlv(0xA0, _tlv(0x04, content))
    return _signed_data(signer, digests.of(algorithm, content), algorithm, at, inside)


def _signed_data(signer: Signer, digest: bytes, algorithm: str, at: datetime, inside: bytes) -> bytes:
    if isinstance(signer.key, ed25519.Ed25519PrivateKey) and algorithm != "sha512":
        raise UsageError("--digest: with an Ed25519 key it is sha512 (RFC 8419)", code="digest-not-allowed")
    certificate = signer.certificate.public_bytes(_DER)
    digest_algorithm = _tlv(0x30, _oid(algorithm))
    ess = _tlv(0x30, _tlv(0x30, _tlv(0x30, _tlv(0x04, digests.of("sha256", certificate)))))  # sha256 is the default
    attributes = _set_of(
        0x31,
        [
            _attribute("content_type", _oid("data")),
            _attribute("signing_time", _time(at.astimezone(UTC))),
            _attribute("message_digest", _tlv(0x04, digest)),
            _attribute("signing_certificate_v2", ess),
        ],
    )
    scheme, value = _sign_attributes(signer.key, attributes, algorithm)
    serial = signer.certificate.serial_number
    signer_info = _tlv(
        0x30,
        b"\x02\x01\x01",
        _tlv(
            0x30,
            signer.certificate.issuer.public_bytes(),
            _tlv(0x02, serial.to_bytes(serial.bit_length() // 8 + 1, "big")),
        ),
        digest_algorithm,
        b"\xa0" + attributes[1:],
        scheme,
        _tlv(0x04, value),
    )
    certificates = [certificate, *(one.public_bytes(_DER) for one in signer.chain)]
    signed_data = _tlv(
        0x30,
        b"\x02\x01\x01",
        _tlv(0x31, digest_algorithm),
        _tlv(0x30, _oid("data"), inside),
        _set_of(0xA0, certificates),
        _tlv(0x31, signer_info),
    )
    return _tlv(0x30, _oid("signed_data"), _tlv(0xA0, signed_data))


def bare_signature(signer: Signer, digest: bytes, algorithm: str) -> bytes:
    """The bytes of `openssl dgst -shaN -sign key.pem`. Raises `UsageError` for a key that cannot."""
    prehashed = utils.Prehashed(digests.HASHES[algorithm])
    if isinstance(signer.key, rsa.RSAPrivateKey):
        return signer.key.sign(digest, padding.PKCS1v15(), prehashed)
    if isinstance(signer.key, ec.EllipticCurvePrivateKey):
        return signer.key.sign(digest, ec.ECDSA(prehashed))
    raise UsageError(
        "--form dgst: an Ed25519 key cannot", hint="use --form cms", code="signature-algorithm-not-allowed"
    )


def _load_key(pem: bytes, password: Callable[[], bytes]) -> PrivateKey:
    try:
        try:
            key: PrivateKeyTypes = serialization.load_pem_private_key(pem, None)
        except TypeError:  # how the library says that it is encrypted
            key = serialization.load_pem_private_key(pem, password())
    except MALFORMED as error:
        raise UsageError("--key: not a private key in PEM, or the wrong password", code="key-unreadable") from error
    if not isinstance(key, PrivateKey):
        raise UsageError(f"--key: {type(key).__name__} cannot sign images; use RSA or EC", code="weak-key")
    return key


def _sign_attributes(key: PrivateKey, attributes: bytes, algorithm: str) -> tuple[bytes, bytes]:
    """(AlgorithmIdentifier, signature)."""
    if isinstance(key, rsa.RSAPrivateKey):
        scheme = _tlv(0x30, _oid("rsa"), b"\x05\x00")
        return scheme, key.sign(attributes, padding.PKCS1v15(), digests.HASHES[algorithm])
    if isinstance(key, ec.EllipticCurvePrivateKey):
        scheme = _tlv(0x30, _oid(f"ecdsa_{algorithm}"))
        return scheme, key.sign(attributes, ec.ECDSA(digests.HASHES[algorithm]))
    return _tlv(0x30, _oid("ed25519")), key.sign(attributes)


def _beside(image: Path, suffix: str) -> Path:
    return image.with_name(f"{image.name}.{suffix}")


def _oid(name: str) -> bytes:
    return bytes.fromhex(_OIDS[name])


def _attribute(name: str, value: bytes) -> bytes:
    return _tlv(0x30, _oid(name), _tlv(0x31, value))


def _time(at: datetime) -> bytes:
    if at.year < 2050:
        return _tlv(0x17, at.strftime("%y%m%d%H%M%SZ").encode())
    return _tlv(0x18, at.strftime("%Y%m%d%H%M%SZ").encode())


def _set_of(tag: int, elements: Sequence[bytes]) -> bytes:
    longest = max(map(len, elements))
    return _tlv(tag, *sorted(elements, key=lambda one: one.ljust(longest, b"\0")))


def _tlv(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content
