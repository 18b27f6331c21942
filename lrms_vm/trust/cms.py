"""CMS signatures: a strict subset of RFC 5652 in DER, or the same in one PEM block.

Detached (`IMAGE.p7s`, and the second part of an S/MIME message), or around a signed list: the content is then inside.

What must hold, and is checked here in this order:

  1. ContentInfo is signedData, DER, nothing after it               RFC 5652 section 3
  2. the content is id-data, and inside only where it should be     section 5.2
  3. one to ten embedded certificates, exactly one SignerInfo       sections 5.1, 5.3
  4. its sid names exactly one of the certificates                  section 5.3
  5. signed attributes are there, in DER order, each once, each with one value
  6. they have contentType id-data, messageDigest, signingTime      section 11
  7. messageDigest is not the digest of nothing: what `openssl cms -sign` without -binary makes of a disk
  8. an ESS signing certificate, where there is one, is this one    RFC 5035
  9. the signature's hash is the digest's                           sections 5.4, 5.5
and with `verify_signature`, once the path of the certificate holds:
 10. the signature over the attributes is by that certificate's key section 5.4
"""

from __future__ import annotations

import binascii
import hmac
import re
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from lrms_vm.errors import RequestError
from lrms_vm.trust import der, digests, dn
from lrms_vm.trust.x509 import MALFORMED, MAX_CHAIN, parse_der
from lrms_vm.values import dataclass

MAX_BYTES = 64 << 10
_SIGNED_DATA, _DATA = "1.2.840.113549.1.7.2", "1.2.840.113549.1.7.1"
_CONTENT_TYPE, _MESSAGE_DIGEST, _SIGNING_TIME = (f"1.2.840.113549.1.9.{n}" for n in (3, 4, 5))
_SIGNING_CERTIFICATE_V2 = "1.2.840.113549.1.9.16.2.47"
_MGF1, _RSA_PSS, _RSA, _ED25519 = (
    "1.2.840.113549.1.1.8",
    "1.2.840.113549.1.1.10",
    "1.2.840.113549.1.1.1",
    "1.3.101.112",
)
_DIGESTS = {
    "2.16.840.1.101.3.4.2.1": "sha256",
    "2.16.840.1.101.3.4.2.2": "sha384",
    "2.16.840.1.101.3.4.2.3": "sha512",
}
_RSA_WITH = {f"1.2.840.113549.1.1.{n}": name for n, name in ((11, "sha256"), (12, "sha384"), (13, "sha512"))}
_ECDSA_WITH = {f"1.2.840.10045.4.3.{n}": name for n, name in ((2, "sha256"), (3, "sha384"), (4, "sha512"))}
_EXPLICIT_0, _IMPLICIT_0, _IMPLICIT_1, _PRIMITIVE_0 = 0xA0, 0xA0, 0xA1, 0x80
_PEM = re.compile(rb"\s*-----BEGIN (CMS|PKCS7)-----\r?\n([A-Za-z0-9+/=\r\n]+)-----END \1-----\s*")


@dataclass(frozen=True)
class Signature:
    """One parsed and consistent signature. Nothing in it is proved before `verify_signature`."""

    signer: x509.Certificate
    others: tuple[x509.Certificate, ...]
    digest_algorithm: str
    message_digest: bytes
    signing_time: datetime
    scheme: str  # "rsa", "pss", "ecdsa", "ed25519"
    signed_bytes: bytes  # the attributes as they were signed
    value: bytes


def parse(data: bytes) -> Signature:
    """Read a signature file. Raises `RequestError`, whatever the bytes are."""
    if not data:
        raise RequestError("the signature file is empty", code="not-signed")
    if len(data) > MAX_BYTES:
        raise RequestError(
            f"the signature has {len(data)} bytes; at most {MAX_BYTES} are read", code="signature-malformed"
        )
    return _read(data, attached=False)[0]


def parse_attached(data: bytes, *, max_content_bytes: int) -> tuple[Signature, bytes]:
    """A signature with its content inside, and that content. Raises `RequestError`, whatever the bytes are."""
    max_bytes = (max_content_bytes + MAX_BYTES) * 3 // 2  # as PEM
    if len(data) > max_bytes:
        raise RequestError(f"{len(data)} bytes; at most {max_bytes} are read", code="signature-malformed")
    signature, content = _read(data, attached=True)
    if len(content) > max_content_bytes:
        raise RequestError(
            f"the signed content has {len(content)} bytes; expected at most {max_content_bytes}",
            code="signature-malformed",
        )
    return signature, content


def check_content(signature: Signature, content: bytes) -> bool:
    """Whether this is what the signature is over: its messageDigest says so."""
    return hmac.compare_digest(digests.of(signature.digest_algorithm, content), signature.message_digest)


def _read(data: bytes, *, attached: bool) -> tuple[Signature, bytes]:
    """The content is empty for a detached signature."""
    try:
        return _signature(der.read(_unwrapped(data)), attached)
    except der.DerError as error:
        raise RequestError(
            f"the signature is not {'an attached' if attached else 'a detached'} CMS signature in DER: {error}",
            hint="make it with `lrms-vm image sign`, or with the openssl command of docs/trust.md",
            code="signature-malformed",
        ) from error


def verify_signature(signature: Signature) -> None:
    """Step 10. Raises `RequestError`."""
    key = signature.signer.public_key()
    algorithm = digests.HASHES[signature.digest_algorithm]
    value, signed = signature.value, signature.signed_bytes
    try:
        if isinstance(key, rsa.RSAPublicKey) and signature.scheme == "rsa":
            key.verify(value, signed, padding.PKCS1v15(), algorithm)
        elif isinstance(key, rsa.RSAPublicKey) and signature.scheme == "pss":
            pss = padding.PSS(padding.MGF1(algorithm), algorithm.digest_size)
            key.verify(value, signed, pss, algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey) and signature.scheme == "ecdsa":
            key.verify(value, signed, ec.ECDSA(algorithm))
        elif isinstance(key, ed25519.Ed25519PublicKey) and signature.scheme == "ed25519":
            key.verify(value, signed)
        else:
            raise InvalidSignature
    except (InvalidSignature, *MALFORMED) as error:
        raise RequestError(
            f"the signature was not made with the key of {dn.show(signature.signer.subject)}, or was changed since",
            code="signature-invalid",
        ) from error


def _unwrapped(data: bytes) -> bytes:
    if data[:1] == b"\x30":
        return data
    match = _PEM.fullmatch(data)
    if match is None:
        raise der.DerError("neither DER nor one PEM block")
    try:
        return binascii.a2b_base64(match[2].translate(None, b"\r\n"), strict_mode=True)
    except binascii.Error as error:
        raise der.DerError("not base64 inside the PEM block") from error


def _signature(whole: der.Element, attached: bool) -> tuple[Signature, bytes]:
    content_info = whole.children(der.SEQUENCE, "ContentInfo")
    _expect_oid(content_info.take_any("contentType"), _SIGNED_DATA, "contentType")
    explicit = content_info.take(_EXPLICIT_0, "content").children(_EXPLICIT_0, "content")
    content_info.end()
    signed_data = explicit.take(der.SEQUENCE, "SignedData").children(der.SEQUENCE, "SignedData")
    explicit.end()
    if der.integer(signed_data.take_any("version"), "SignedData version") not in (1, 3):
        raise der.DerError("SignedData version: expected 1 or 3")
    declared = [_digest(one) for one in signed_data.take(der.SET, "digestAlgorithms").children(der.SET, "digests")]
    encapsulated = signed_data.take(der.SEQUENCE, "encapContentInfo").children(der.SEQUENCE, "encapContentInfo")
    _expect_oid(encapsulated.take_any("eContentType"), _DATA, "eContentType")
    content = b""
    if attached:
        inner = encapsulated.take(_EXPLICIT_0, "eContent").children(_EXPLICIT_0, "eContent")
        content = inner.take(der.OCTET_STRING, "eContent").content
        inner.end()
        encapsulated.end()
    elif len(encapsulated):
        raise RequestError(
            "the signature carries content of its own instead of being detached from the image",
            hint="sign with `openssl cms -sign -binary` and without -nodetach",
            code="signature-not-detached",
        )
    certificates = _certificates(signed_data.take_if(_IMPLICIT_0))
    signed_data.take_if(_IMPLICIT_1)  # embedded CRLs: the site's own count
    infos = signed_data.take(der.SET, "signerInfos").children(der.SET, "signerInfos")
    signed_data.end()
    if len(infos) != 1:
        raise RequestError(f"the signature has {len(infos)} signers; expected exactly one", code="signer-count")
    return _signer_info(infos.take(der.SEQUENCE, "SignerInfo"), declared, certificates), content


def _signer_info(
    element: der.Element, declared: list[str], certificates: tuple[tuple[bytes, x509.Certificate], ...]
) -> Signature:
    info = element.children(der.SEQUENCE, "SignerInfo")
    version = der.integer(info.take_any("version"), "SignerInfo version")
    raw, signer = _signer(info.take_any("sid"), version, certificates)
    digest = _digest(info.take_any("digestAlgorithm"))
    if digest not in declared:
        raise der.DerError("digestAlgorithm is not among digestAlgorithms")
    attributes = info.take_if(_IMPLICIT_0)
    if attributes is None:
        raise RequestError(
            "the signature has no signed attributes", hint="sign without -noattr", code="signed-attributes-missing"
        )
    scheme = _scheme(info.take_any("signatureAlgorithm"), digest)
    value = info.take(der.OCTET_STRING, "signature").content
    info.take_if(_IMPLICIT_1)  # unsigned attributes say nothing that we believe
    info.end()
    values = _attributes(attributes)
    _expect_oid(_required(values, _CONTENT_TYPE, "contentType"), _DATA, "contentType attribute")
    message_digest = (
        _required(values, _MESSAGE_DIGEST, "messageDigest").expect(der.OCTET_STRING, "messageDigest").content
    )
    if len(message_digest) != digests.size_bytes(digest):
        raise der.DerError(f"messageDigest: {len(message_digest)} bytes are not a {digest}")
    if hmac.compare_digest(message_digest, digests.of_nothing(digest)):
        raise RequestError(
            "the signature covers no bytes at all: `openssl cms -sign` was run without -binary, "
            "and stopped at the disk's first zero",
            hint="sign again with -binary, or with `lrms-vm image sign`",
            code="signed-nothing",
        )
    signing_time = _time(_required(values, _SIGNING_TIME, "signingTime"))
    if _SIGNING_CERTIFICATE_V2 in values:
        _check_ess(values[_SIGNING_CERTIFICATE_V2], raw)
    return Signature(
        signer=signer,
        others=tuple(one for other, one in certificates if other is not raw),
        digest_algorithm=digest,
        message_digest=message_digest,
        signing_time=signing_time,
        scheme=scheme,
        signed_bytes=bytes([der.SET]) + attributes.raw[1:],  # signed as SET OF, sent as [0]: RFC 5652 section 5.4
        value=value,
    )


def _certificates(element: der.Element | None) -> tuple[tuple[bytes, x509.Certificate], ...]:
    if element is None:
        raise RequestError(
            "the signature does not carry its certificate", hint="sign without -nocerts", code="certificate-missing"
        )
    found = element.children(_IMPLICIT_0, "certificates")
    if not 1 <= len(found) <= MAX_CHAIN:
        raise der.DerError(f"{len(found)} certificates; expected 1 to {MAX_CHAIN}")
    return tuple(
        (one.expect(der.SEQUENCE, "certificate").raw, parse_der(one.raw, source="the signature")) for one in found
    )


def _signer(
    sid: der.Element, version: int, certificates: tuple[tuple[bytes, x509.Certificate], ...]
) -> tuple[bytes, x509.Certificate]:
    if sid.tag == der.SEQUENCE and version == 1:
        fields = sid.children(der.SEQUENCE, "issuerAndSerialNumber")
        issuer = fields.take(der.SEQUENCE, "issuer").raw
        serial = der.integer(fields.take_any("serialNumber"), "serialNumber")
        fields.end()
        matching = [c for c in certificates if (c[1].serial_number, c[1].issuer.public_bytes()) == (serial, issuer)]
    elif sid.tag == _PRIMITIVE_0 and version == 3:
        matching = [c for c in certificates if _key_identifier(c[1]) == sid.content]
    else:
        raise der.DerError("sid: neither issuerAndSerialNumber in version 1 nor subjectKeyIdentifier in version 3")
    if len(matching) != 1:
        raise RequestError(
            f"the signature's signer is {len(matching)} of its certificates; expected exactly one", code="signer-count"
        )
    return matching[0]


def _key_identifier(certificate: x509.Certificate) -> bytes | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return None


def _attributes(element: der.Element) -> dict[str, der.Element]:
    fields = element.children(_IMPLICIT_0, "signedAttrs")
    der.require_sorted(fields, "signedAttrs")
    values: dict[str, der.Element] = {}
    for one in fields:
        attribute = one.children(der.SEQUENCE, "attribute")
        kind = der.oid(attribute.take_any("attrType"), "attrType")
        found = attribute.take(der.SET, "attrValues").children(der.SET, "attrValues")
        attribute.end()
        if kind in values or len(found) != 1:
            raise der.DerError(f"attribute {kind}: expected once, with one value")
        values[kind] = found.take_any("value")
    return values


def _required(values: dict[str, der.Element], kind: str, what: str) -> der.Element:
    if kind not in values:
        raise RequestError(f"the signature has no {what} attribute", code="signed-attributes-missing")
    return values[kind]


def _expect_oid(element: der.Element, expected: str, what: str) -> None:
    found = der.oid(element, what)
    if found != expected:
        raise der.DerError(f"{what}: {found}, expected {expected}")


def _algorithm(element: der.Element, what: str) -> tuple[str, der.Element | None]:
    fields = element.children(der.SEQUENCE, what)
    name = der.oid(fields.take_any("algorithm"), what)
    parameters = fields.take_any("parameters") if len(fields) else None
    fields.end()
    return name, parameters


def _is_null(parameters: der.Element | None) -> bool:
    return parameters is None or (parameters.tag == der.NULL and not parameters.content)


def _digest(element: der.Element) -> str:
    name, parameters = _algorithm(element, "digestAlgorithm")
    if name not in _DIGESTS or not _is_null(parameters):
        raise RequestError(
            f"the signature's digest algorithm {name} is not accepted", hint="use sha256", code="digest-not-allowed"
        )
    return _DIGESTS[name]


def _scheme(element: der.Element, digest: str) -> str:
    """The kind of signature; its own hash must be the digest's."""
    name, parameters = _algorithm(element, "signatureAlgorithm")
    if name == _RSA_PSS and parameters is not None:
        _check_pss(parameters, digest)
        return "pss"
    plain = _is_null(parameters)
    if plain and (name == _RSA or _RSA_WITH.get(name) == digest):
        return "rsa"
    if parameters is None and _ECDSA_WITH.get(name) == digest:
        return "ecdsa"
    if parameters is None and name == _ED25519 and digest == "sha512":  # RFC 8419 section 3.1
        return "ed25519"
    raise RequestError(
        f"the signature algorithm {name} is not accepted with {digest}", code="signature-algorithm-not-allowed"
    )


def _check_pss(parameters: der.Element, digest: str) -> None:
    """RSASSA-PSS-params with one hash throughout and a salt as long as it (RFC 4055 section 3.1)."""
    fields = parameters.children(der.SEQUENCE, "RSASSA-PSS-params")
    inner = [fields.take(tag, "RSASSA-PSS-params").children(tag, "RSASSA-PSS-params") for tag in (0xA0, 0xA1, 0xA2)]
    trailer = fields.take_if(0xA3)
    fields.end()
    hash_name = _digest(inner[0].take_any("hashAlgorithm"))
    mask, mask_parameters = _algorithm(inner[1].take_any("maskGenAlgorithm"), "maskGenAlgorithm")
    salt_length = der.integer(inner[2].take_any("saltLength"), "saltLength")
    for one in inner:
        one.end()
    mask_hash = _digest(mask_parameters) if mask == _MGF1 and mask_parameters is not None else None
    good = hash_name == mask_hash == digest and salt_length == digests.size_bytes(digest)
    if not good or (trailer is not None and trailer.content != b"\x02\x01\x01"):
        raise RequestError(
            "the signature's PSS parameters differ from its digest's", code="signature-algorithm-not-allowed"
        )


def _time(element: der.Element) -> datetime:
    """UTCTime to the year 2049, GeneralizedTime after; seconds and Z always there (RFC 5652 section 11.3)."""
    formats = {der.UTC_TIME: r"[0-9]{12}Z", der.GENERALIZED_TIME: r"[0-9]{14}Z"}
    if element.tag not in formats:
        raise der.DerError("signingTime: neither UTCTime nor GeneralizedTime")
    try:
        text = element.content.decode("ascii")
        if re.fullmatch(formats[element.tag], text, re.ASCII) is None:
            raise ValueError("not a time")
        if element.tag == der.UTC_TIME:
            text = ("19" if int(text[:2]) >= 50 else "20") + text
        return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
    except ValueError as error:
        raise der.DerError("signingTime: not a time") from error


def _check_ess(value: der.Element, certificate: bytes) -> None:
    """SigningCertificateV2's first ESSCertIDv2 is the signer's (RFC 5035 section 3)."""
    whole = value.children(der.SEQUENCE, "SigningCertificateV2")
    ids = whole.take(der.SEQUENCE, "certs").children(der.SEQUENCE, "certs")
    first = ids.take(der.SEQUENCE, "ESSCertIDv2").children(der.SEQUENCE, "ESSCertIDv2")
    algorithm = first.take_if(der.SEQUENCE)
    name = _digest(algorithm) if algorithm is not None else "sha256"
    if not hmac.compare_digest(digests.of(name, certificate), first.take(der.OCTET_STRING, "certHash").content):
        raise RequestError("the signature was made for another certificate", code="signature-invalid")
