"""Certificates that no library would make: taken apart, one thing changed, and signed by the CA again.

der = edited(alice, ca, lambda fields: fields[SERIAL].__setitem__(1, b"\\xff"))
for files in both_forms(der, alice.key, image): ...
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from lrms_vm.signing import bare_signature, detached_cms
from lrms_vm.trust.verify import SignatureFiles
from tests.certs.make_certs import Authority, Identity
from tests.hostile.mutants import Node, copied, joined, signed_again, signer_info, taken_apart

# Places in TBSCertificate (RFC 5280 section 4.1)
VERSION, SERIAL, ALGORITHM, ISSUER, VALIDITY, SUBJECT, SPKI, EXTENSIONS = range(8)


def edited(identity: Identity, ca: Authority, edit: Callable[[list[Node]], object]) -> bytes:
    """The certificate in DER, with `edit` done to the fields of its TBSCertificate, and `ca`'s signature over that."""
    top = taken_apart(identity.certificate.public_bytes(Encoding.DER))
    edit(top[1][0][1])
    return _signed(top, ca.key)


def edited_crl(crl: bytes, ca: Authority, edit: Callable[[list[Node]], object]) -> bytes:
    """The same for a CRL; PEM in and out."""
    body = b"".join(line for line in crl.splitlines() if not line.startswith(b"-"))
    top = taken_apart(base64.b64decode(body))
    edit(top[1][0][1])
    return pem("X509 CRL", _signed(top, ca.key))


def _signed(top: Node, key: Any) -> bytes:
    tbs = joined(top[1][0])
    if isinstance(key, ec.EllipticCurvePrivateKey):
        value = key.sign(tbs, ec.ECDSA(hashes.SHA256()))
    else:
        assert isinstance(key, rsa.RSAPrivateKey)
        value = key.sign(tbs, padding.PKCS1v15(), hashes.SHA256())
    top[1][2][1] = b"\0" + value
    return joined(top)


def pem(label: str, der: bytes) -> bytes:
    return f"-----BEGIN {label}-----\n{base64.encodebytes(der).decode()}-----END {label}-----\n".encode()


def both_forms(certificate: bytes, good: Identity, image: bytes, at: datetime) -> tuple[SignatureFiles, SignatureFiles]:
    """Signatures with `good`'s key that come with this certificate in place of `good`'s own."""
    digest = hashlib.sha256(image).digest()
    bare = bare_signature(good.signer(), digest, "sha256")
    return (
        SignatureFiles(
            "cms", with_certificate(detached_cms(good.signer(), digest, "sha256", at), certificate, good.key)
        ),
        SignatureFiles("dgst", bare, "sha256", pem("CERTIFICATE", certificate)),
    )


def with_certificate(p7s: bytes, certificate: bytes, key: Any) -> bytes:
    """The same signature, as if it had been made with another certificate for the same key."""
    top, other = taken_apart(p7s), taken_apart(certificate)
    fields = other[1][0][1]
    top[1][1][1][0][1][3][1][0] = other
    info = signer_info(top)[1]
    info[1][1] = [copied(fields[ISSUER]), copied(fields[SERIAL])]
    attributes = next(one for one in info if one[0] == 0xA0)[1]
    ess = next(one for one in attributes if one[1][0][1].endswith(b"\x02\x2f"))
    ess[1][1][1][0][1][0][1][0][1][-1][1] = hashlib.sha256(certificate).digest()
    attributes.sort(key=lambda one: joined(one).ljust(8192, b"\0"))
    return joined(signed_again(top, key))
