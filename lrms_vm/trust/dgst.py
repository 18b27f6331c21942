"""Bare signatures as `openssl dgst -shaN -sign key.pem` makes them: the seed's own commands (docs/trust.md).

They bind bytes and nothing else: no name, no time, no certificate. For RSA the digest that was signed can be taken out
again (PKCS#1 v1.5), so that a signature of another image is known before the image is read; for ECDSA it cannot.
"""

from __future__ import annotations

import hmac

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from lrms_vm.errors import RequestError
from lrms_vm.trust import digests, dn
from lrms_vm.trust.x509 import MALFORMED

MAX_BYTES = 1024 + 64  # RSA of 8192 bits has 1024

# DigestInfo up to the digest, with the NULL that RFC 8017 section 9.2 note 1 demands: the whole must match exactly.
_DIGEST_INFO = {
    "sha1": bytes.fromhex("3021300906052b0e03021a05000414"),
    "sha256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "sha384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "sha512": bytes.fromhex("3051300d060960864801650304020305000440"),
}


def signed_digest(signature: bytes, signer: x509.Certificate, algorithm: str) -> bytes | None:
    """The digest that was signed, or None where only `verify_digest` can tell (ECDSA). Raises `RequestError`."""
    if not signature:
        raise RequestError("the signature file is empty", code="not-signed")
    if len(signature) > MAX_BYTES:
        raise RequestError(
            f"the signature has {len(signature)} bytes; a bare one has at most {MAX_BYTES}", code="signature-malformed"
        )
    key = signer.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return None
    if not isinstance(key, rsa.RSAPublicKey):
        raise RequestError(
            f"the key of {dn.show(signer.subject)} cannot make bare signatures",
            hint="use `lrms-vm image sign --form cms`",
            code="signature-algorithm-not-allowed",
        )
    try:
        # The raw result is the DigestInfo as it was signed: no parser of it, only the one encoding we expect.
        recovered = key.recover_data_from_signature(signature, padding.PKCS1v15(), None)
    except (InvalidSignature, *MALFORMED) as error:
        raise _not_by(signer) from error
    prefix = _DIGEST_INFO[algorithm]
    if len(recovered) != len(prefix) + digests.size_bytes(algorithm) or not recovered.startswith(prefix):
        raise RequestError(
            f"the signature is by {dn.show(signer.subject)}, but not over a {algorithm}, as its file name says",
            code="signature-wrong-digest",
        )
    return recovered[len(prefix) :]


def verify_digest(signature: bytes, signer: x509.Certificate, algorithm: str, digest: bytes) -> None:
    """The signature is by the signer and over this digest. Raises `RequestError`."""
    if hmac.compare_digest(digest, digests.of_nothing(algorithm)):
        raise RequestError("an image of no bytes", code="signed-nothing")
    key, prehashed = signer.public_key(), utils.Prehashed(digests.HASHES[algorithm])
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, digest, ec.ECDSA(prehashed))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, digest, padding.PKCS1v15(), prehashed)
        else:
            raise InvalidSignature
    except (InvalidSignature, *MALFORMED) as error:
        raise RequestError(
            f"the bytes of the image are not those that {dn.show(signer.subject)} signed", code="bytes-differ"
        ) from error


def _not_by(signer: x509.Certificate) -> RequestError:
    return RequestError(
        f"the signature was not made with the key of {dn.show(signer.subject)}, or was changed since",
        code="signature-invalid",
    )
