"""Is this certificate good, now, for signing images? Path and revocation by OpenSSL, our own rules on top.

OpenSSL (through pyOpenSSL's X509Store) walks the path and the CRLs: RFC 5280 section 6. It accepts things a site must
not: weak keys, SHA-1, foreign key usages, unconstrained name spaces. Those are the checks here.
"""

from __future__ import annotations

import binascii
from collections.abc import Container, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import (
    ExtendedKeyUsageOID,
    NameOID,
    ObjectIdentifier,
    PublicKeyAlgorithmOID,
    SignatureAlgorithmOID,
)
from OpenSSL import crypto

from lrms_vm.errors import LrmsVmError, RequestError, SiteError
from lrms_vm.trust import anchor_index, certificate_policies, dn, names
from lrms_vm.trust import crl as plain_crl
from lrms_vm.trust.name_hash import name_hash
from lrms_vm.values import dataclass

MAX_CHAIN = 10
MAX_CERTIFICATE_BYTES = 64 << 10
MAX_RSA_BITS = 8192
# Everything the libraries raise for certificates that are not what they should be.
MALFORMED = (
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    crypto.Error,
)
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

_E = TypeVar("_E", bound=x509.ExtensionType)
_RSA_EXPONENTS = range(3, 1 << 64, 2)  # a longer one takes its time
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
# Points of order 1, 2, 4 and 8 (RFC 8032 section 5.1), by y: signatures under them prove nothing.
_FIELD_25519 = (1 << 255) - 19
_Y_OF_ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER_Y = {0, 1, _FIELD_25519 - 1, _Y_OF_ORDER_8, _FIELD_25519 - _Y_OF_ORDER_8}
_WEAK_HASHES = (hashes.SHA1, hashes.MD5)
# What a grid certificate is issued for; all three let its holder sign.
_PURPOSES = {ExtendedKeyUsageOID.EMAIL_PROTECTION, ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.CLIENT_AUTH}
_PROXY_CERT_INFO = ObjectIdentifier("1.3.6.1.5.5.7.1.14")  # RFC 3820
_FLAGS = crypto.X509StoreFlags.X509_STRICT
_CRL_FLAGS = (
    crypto.X509StoreFlags.CRL_CHECK
    | crypto.X509StoreFlags.CRL_CHECK_ALL
    | 0x1000  # X509_V_FLAG_EXTENDED_CRL_SUPPORT: CRLs signed with another key of the CA, or of some reasons only
    | 0x2000  # X509_V_FLAG_USE_DELTAS: what a delta CRL revokes is revoked
)
_CRL_BEGIN = b"-----BEGIN X509 CRL-----"
_CRL_HEAD_BYTES = 8192  # a CRL names its issuer within these first characters


@dataclass(frozen=True)
class TrustAnchors:
    """The site's CA directory as bytes, read by lrms_vm/anchors.py. Names are the subject hashes of the files."""

    certificates: tuple[bytes, ...] = ()  # PEM
    crls: tuple[bytes, ...] = ()  # PEM
    namespaces: tuple[tuple[str, bytes], ...] = ()  # ("4705880b", text)
    signing_policies: tuple[tuple[str, bytes], ...] = ()
    source: str = "the CA directory"

    def above(self, certificates: Iterable[x509.Certificate]) -> TrustAnchors:
        """What a decision about these needs; here, all there is."""
        return self

    def everything(self) -> TrustAnchors:
        return self


@dataclass(frozen=True)
class Path:
    """A path that holds: the signer's certificate first, a trust anchor last."""

    chain: tuple[x509.Certificate, ...]
    valid_until: datetime  # the first end among certificates and CRLs


def parse_chain(pem: bytes, *, source: str) -> tuple[x509.Certificate, ...]:
    """A PEM file: the signer's certificate first, then those that lead to a CA. Raises `RequestError`."""
    if len(pem) > MAX_CERTIFICATE_BYTES:
        raise RequestError(f"{source}: {len(pem)} bytes; at most {MAX_CERTIFICATE_BYTES}", code="certificate-malformed")
    try:
        chain = tuple(x509.load_pem_x509_certificates(pem))
    except MALFORMED as error:
        raise _malformed(source) from error
    if len(chain) > MAX_CHAIN:
        raise RequestError(f"{source}: {len(chain)} certificates; at most {MAX_CHAIN}", code="certificate-malformed")
    for one in chain:
        touch(one, source=source)
    return chain


def parse_der(der: bytes, *, source: str) -> x509.Certificate:
    """One certificate out of a signature. Raises `RequestError`."""
    try:
        certificate = x509.load_der_x509_certificate(der)
    except MALFORMED as error:
        raise _malformed(source) from error
    touch(certificate, source=source)
    return certificate


def touch(certificate: x509.Certificate, *, source: str) -> None:
    """Have the library read now what it reads only when asked, so that nothing fails later. Raises `RequestError`."""
    try:
        fields = (
            certificate.subject.rdns,
            certificate.issuer.rdns,
            certificate.serial_number,
            certificate.version,
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
            certificate.extensions,
            certificate.signature_algorithm_oid,
            certificate.public_key(),
        )
    except MALFORMED as error:
        raise _malformed(source) from error
    del fields


def _malformed(source: str) -> RequestError:
    return RequestError(
        f"{source}: cannot be read as X.509 certificates", hint="expected PEM", code="certificate-malformed"
    )


def spki_sha256(certificate: x509.Certificate) -> str:
    """The key's fingerprint, hex: what pins and blocks name."""
    spki = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    digest = hashes.Hash(hashes.SHA256())
    digest.update(spki)
    return digest.finalize().hex()


def validate(
    signer: x509.Certificate,
    others: Sequence[x509.Certificate],
    *,
    anchors: TrustAnchors,
    min_rsa_bits: int,
    namespaces: str,
    at: datetime,
    crl: str = "require",
    crl_grace_s: int = 0,
) -> Path:
    """Check the signer's certificate and its path at `at`. `others` are believed only as far as the path proves them.

    `crl`: "require" that each CA of the path has a current CRL, or only where it has one at all ("if-present").
    A CRL counts as current until `crl_grace_s` seconds after its nextUpdate.

    Raises `RequestError`, and `SiteError` where the site lacks what the decision needs (a current CRL, name spaces).
    """
    check_signer(signer, min_rsa_bits=min_rsa_bits)
    chain, crl_ends = _walk(signer, others, anchors, at, crl, timedelta(seconds=crl_grace_s))
    for index, certificate in enumerate(chain[1:], 1):
        _check_key(certificate, min_rsa_bits)
        if index < len(chain) - 1:  # the anchor's own signature proves nothing and is not asked
            _check_certificate(certificate)
            _check_purposes(certificate)
    if problem := certificate_policies.problem(chain[-2::-1]):
        raise RequestError(
            f"the certificate path of {dn.show(signer.subject)} does not hold: {problem}", code="signer-path-invalid"
        )
    if namespaces != "ignore":
        for certificate, issuer in pairwise(chain):
            _check_namespace(certificate, issuer, anchors, namespaces)
    return Path(chain, min([one.not_valid_after_utc for one in chain] + crl_ends))


def check_signer(signer: x509.Certificate, *, min_rsa_bits: int) -> None:
    """What we ask of the certificate by itself. Raises `RequestError`."""
    who = dn.Shown(signer.subject)
    if not dn.is_safe(signer.subject) or not dn.is_safe(signer.issuer):
        raise RequestError(f"the signer's name {who} has characters that hide it", code="signer-name-unsafe")
    if _is_proxy(signer):
        raise RequestError(
            f"{who} is a proxy certificate; images are signed with the certificate itself", code="signer-is-proxy"
        )
    _check_key(signer, min_rsa_bits)
    _check_certificate(signer)
    constraints = _extension(signer, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise RequestError(f"{who} is a CA's certificate, not a builder's", code="signer-is-ca")
    usage = _extension(signer, x509.KeyUsage)
    if usage is None or not usage.digital_signature:
        raise RequestError(f"{who} may not sign: its keyUsage lacks digitalSignature", code="signer-key-usage")
    purposes = _extension(signer, x509.ExtendedKeyUsage)
    if purposes is not None and _PURPOSES.isdisjoint(purposes):
        raise RequestError(
            f"{who} is not for persons: its extendedKeyUsage has none of emailProtection, codeSigning, clientAuth",
            code="signer-key-usage",
        )


def issuer_hashes(certificates: Iterable[x509.Certificate]) -> set[str]:
    """How the files of these certificates' CAs are called."""
    return {name_hash(one.issuer) for one in certificates}


def issuer_hashes_of_pem(pems: Iterable[bytes]) -> set[str]:
    """The same of certificates as they lie in a CA directory."""
    return issuer_hashes(_loaded(pems))


def readable(pems: Iterable[bytes]) -> list[x509.Certificate]:
    """Those of a CA directory's certificates that can anchor anything."""
    return [one for one in _loaded(pems) if _readable(one)]


def crl_expiries(anchors: TrustAnchors) -> list[tuple[str, datetime]]:
    """(issuer, nextUpdate) of each CRL that can be read; one without nextUpdate counts as expired long ago."""
    ends = []
    for pem in anchors.crls:
        crl = _load_crl(pem)
        if crl is not None:
            ends.append((dn.show(crl.issuer), crl.next_update_utc or datetime.min.replace(tzinfo=UTC)))
    return ends


def _extension(certificate: x509.Certificate, kind: type[_E]) -> _E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _is_proxy(certificate: x509.Certificate) -> bool:
    if any(extension.oid == _PROXY_CERT_INFO for extension in certificate.extensions):
        return True
    subject, issuer = dn.of(certificate.subject), dn.of(certificate.issuer)
    legacy = [frozenset({(NameOID.COMMON_NAME.dotted_string, word)}) for word in ("proxy", "limited proxy")]
    return subject[:-1] == issuer and subject[-1] in legacy  # Globus before RFC 3820


def _check_key(certificate: x509.Certificate, min_rsa_bits: int) -> None:
    key, who = certificate.public_key(), dn.Shown(certificate.subject)
    if isinstance(key, rsa.RSAPublicKey):
        exponent = key.public_numbers().e
        # A key for PSS alone (RFC 4055) says with which digest and salt; the library forgets that.
        plain = certificate.public_key_algorithm_oid == PublicKeyAlgorithmOID.RSAES_PKCS1_v1_5
        good = plain and min_rsa_bits <= key.key_size <= MAX_RSA_BITS and exponent in _RSA_EXPONENTS
        found = f"RSA{'' if plain else ' for PSS only'} {key.key_size} bits, exponent {hex(exponent)[:20]}"
    elif isinstance(key, ec.EllipticCurvePublicKey):
        good, found = key.curve.name in _CURVES, f"curve {key.curve.name}"
    elif isinstance(key, ed25519.Ed25519PublicKey):
        y = int.from_bytes(key.public_bytes_raw(), "little") % (1 << 255) % _FIELD_25519
        good, found = y not in _SMALL_ORDER_Y, "an Ed25519 key for which anybody can sign"
    else:
        good, found = False, type(key).__name__.strip("_")
    if not good:
        raise RequestError(
            f"the key of {who} is too weak or of the wrong kind: {found}; expected RSA of {min_rsa_bits} to "
            f"{MAX_RSA_BITS} bits, P-256, P-384, P-521 or Ed25519",
            code="weak-key",
        )


def _check_certificate(certificate: x509.Certificate) -> None:
    who = dn.Shown(certificate.subject)
    if not 0 < certificate.serial_number < 1 << 160:  # RFC 5280 section 4.1.2.2
        raise RequestError(f"the certificate of {who} has a serial number out of range", code="certificate-malformed")
    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm as error:
        raise _weak_signature(who) from error
    ed25519_signed = certificate.signature_algorithm_oid == SignatureAlgorithmOID.ED25519
    if isinstance(algorithm, _WEAK_HASHES) or (algorithm is None and not ed25519_signed):
        raise _weak_signature(who)


def _check_purposes(ca: x509.Certificate) -> None:
    """A CA that may certify for servers only certifies no builders (RFC 5280 section 4.2.1.12, as browsers read it)."""
    purposes = _extension(ca, x509.ExtendedKeyUsage)
    if purposes is not None and (_PURPOSES | {ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}).isdisjoint(purposes):
        raise RequestError(
            f"{dn.show(ca.subject)} may not certify persons: its extendedKeyUsage is for something else",
            code="signer-path-invalid",
        )


def _weak_signature(who: dn.Shown) -> RequestError:
    return RequestError(
        f"the certificate of {who} is signed with SHA-1, MD5 or something unknown", code="weak-certificate-signature"
    )


def _walk(
    signer: x509.Certificate,
    others: Sequence[x509.Certificate],
    anchors: TrustAnchors,
    at: datetime,
    crl: str,
    grace: timedelta,
) -> tuple[tuple[x509.Certificate, ...], list[datetime]]:
    """The path OpenSSL finds, and the ends of the CRLs that say that nothing in it is revoked.

    Plain CRLs are judged by trust/crl.py. Wherever it does not say that all is well, OpenSSL decides, with every CRL.
    """
    roots, bridges = _relevant(signer, anchors.certificates, others)
    issuers = {one.issuer.public_bytes() for one in (signer, *roots, *bridges)}
    issuers |= {one.subject.public_bytes() for one in (*roots, *bridges)}
    pems = [pem for pem in anchors.crls if _names_one_of(pem, issuers)]
    if crl != "require":  # then one that is passed over counts as one that is not there: a name has many encodings
        names_of_all = {dn.loose(name) for one in (signer, *roots, *bridges) for name in (one.issuer, one.subject)}
        pems += [pem for pem in anchors.crls if pem not in pems and _may_be_by(pem, names_of_all)]
    try:
        chain = _openssl(signer, roots, bridges, None, at)
    except crypto.X509StoreContextError:
        chain = None  # asked again below: what is revoked counts for more than what else may be wrong
    if chain is not None:
        ends = plain_crl.ends_of(chain, pems, at=at, grace=grace, must_be_there=crl == "require")
        if ends is not None:
            return chain, ends
    crls = [one for pem in pems if (one := _load_crl(pem)) is not None]
    crls = [one for one in crls if one.next_update_utc is not None]  # else it would be current for ever
    try:
        chain = _openssl(signer, roots, bridges, crls, at)
    except crypto.X509StoreContextError as error:
        raise _refusal(error, signer, anchors) from error
    return chain, [end for one in crls if (end := one.next_update_utc) is not None]


def _openssl(
    signer: x509.Certificate,
    roots: Sequence[x509.Certificate],
    bridges: Sequence[x509.Certificate],
    crls: Sequence[x509.CertificateRevocationList] | None,
    at: datetime,
) -> tuple[x509.Certificate, ...]:
    """One question to OpenSSL; `crls=None`: not about revocation. Raises `X509StoreContextError`."""
    try:
        store = crypto.X509Store()
        for root in roots:
            store.add_cert(crypto.X509.from_cryptography(root))
        for crl in crls or ():
            store.add_crl(crl)
        store.set_flags(_FLAGS if crls is None else _FLAGS | _CRL_FLAGS)
        store.set_time(at.astimezone(UTC))
        context = crypto.X509StoreContext(
            store,
            crypto.X509.from_cryptography(signer),
            [crypto.X509.from_cryptography(one) for one in bridges],
        )
        return tuple(one.to_cryptography() for one in context.get_verified_chain())
    except crypto.X509StoreContextError:
        raise
    except MALFORMED as error:
        raise RequestError(
            f"the certificate path of {dn.show(signer.subject)} cannot be read", code="certificate-malformed"
        ) from error


def _relevant(
    signer: x509.Certificate, anchors: Iterable[bytes], others: Sequence[x509.Certificate]
) -> tuple[list[x509.Certificate], list[x509.Certificate]]:
    """Those anchors and embedded certificates that could be above the signer: a handful out of hundreds."""
    by_subject: dict[object, list[tuple[bool, x509.Certificate]]] = {}
    for one in others:
        by_subject.setdefault(dn.loose(one.subject), []).append((False, one))
    unread = anchor_index.Unread(anchors)
    roots: list[x509.Certificate] = []
    bridges: list[x509.Certificate] = []
    wanted, seen = [dn.loose(signer.issuer)], set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        for one in _loaded(unread.naming(name)):
            by_subject.setdefault(dn.loose(one.subject), []).append((True, one))
        for anchored, one in by_subject.get(name, []):
            if anchored and not _readable(one):
                continue
            (roots if anchored else bridges).append(one)
            wanted.append(dn.loose(one.issuer))
    return roots, bridges


def _loaded(pems: Iterable[bytes]) -> Iterable[x509.Certificate]:
    """Anchors that cannot be read anchor nothing: what only they could vouch for is then refused."""
    for pem in pems:
        try:
            found = x509.load_pem_x509_certificates(pem)
            for one in found:
                _ = one.subject.rdns, one.issuer.rdns
        except MALFORMED:
            continue
        yield from found


def _readable(anchor: x509.Certificate) -> bool:
    """The rest of it, for the few that are asked for: reading all of a hundred takes as long as everything else."""
    try:
        touch(anchor, source="anchor")
    except RequestError:
        return False
    return True


def _load_crl(pem: bytes) -> x509.CertificateRevocationList | None:
    """None for one that cannot be read: it is then missing, and that refuses everything its CA issued."""
    try:
        crl = x509.load_pem_x509_crl(pem)
        fields = (crl.issuer.rdns, crl.next_update_utc, crl.last_update_utc)
    except MALFORMED:
        return None
    del fields
    return crl


def _may_be_by(pem: bytes, names_of_all: Container[object]) -> bool:
    crl = _load_crl(pem)
    return crl is None or dn.loose(crl.issuer) in names_of_all


def _names_one_of(pem: bytes, names_der: Iterable[bytes]) -> bool:
    """Whether this CRL may be by one of these, by its first kilobytes: all CRLs of a grid are tens of MB."""
    begin = pem.find(_CRL_BEGIN)
    if begin < 0:
        return False
    begin += len(_CRL_BEGIN)
    text = pem[begin : begin + _CRL_HEAD_BYTES].partition(b"-")[0].translate(None, b"\r\n\t ")
    try:
        head = binascii.a2b_base64(text[: len(text) // 4 * 4])
    except binascii.Error:
        return False
    return any(name in head for name in names_der)


def _check_namespace(certificate: x509.Certificate, issuer: x509.Certificate, anchors: TrustAnchors, mode: str) -> None:
    """EUGridPMA namespaces first, else the Globus signing policy. Raises `RequestError`, `SiteError`."""
    stem = name_hash(issuer.subject)
    who, by = dn.Shown(certificate.subject), dn.Shown(certificate.issuer)
    files = (
        (anchors.namespaces, names.parse_namespaces, "namespaces"),
        (anchors.signing_policies, names.parse_signing_policy, "signing_policy"),
    )
    for found, parse, suffix in files:
        texts = [text for one, text in found if one == stem]
        if not texts:
            continue
        try:
            statements = parse(texts[0])
        except names.NamesError as error:
            raise SiteError(
                f"{anchors.source}: {stem}.{suffix} of {by}: {error}", code="namespaces-malformed"
            ) from error
        issued_by, given = dn.slash(issuer.subject), dn.slash(certificate.subject)
        if issued_by and given and names.permits(statements, issuer=issued_by, subject=given):
            return
        raise RequestError(
            f"{by} may not give the name {who}: {stem}.{suffix} does not permit it", code="outside-namespace"
        )
    if mode == "require":
        raise SiteError(
            f"{anchors.source}: neither {stem}.namespaces nor {stem}.signing_policy of {by}; "
            "trust.toml requires to know which names a CA may give",
            hint='install the CA\'s IGTF package, or set namespaces = "if-present"',
            code="namespaces-missing",
        )


# X509_verify_cert's results: openssl/x509_vfy.h, X509_STORE_CTX_get_error(3).
_SITE = {
    3: ("crl-missing", "there is no CRL of {issuer}"),
    12: ("crl-expired", "the CRL of {issuer} has expired"),
    11: ("crl-not-yet-valid", "the CRL of {issuer} is from the future"),
    5: ("crl-invalid", "the CRL of {issuer} is not signed by it"),
    8: ("crl-invalid", "the CRL of {issuer} is not signed by it"),
    15: ("crl-invalid", "the CRL of {issuer} cannot be read"),
    16: ("crl-invalid", "the CRL of {issuer} cannot be read"),
    33: ("crl-invalid", "the CRL of {issuer} is not signed by it"),
    35: ("crl-invalid", "{issuer} may not sign CRLs"),
    36: ("crl-invalid", "the CRL of {issuer} has a critical extension that nobody knows"),
    44: ("crl-invalid", "the CRL of {issuer} is not for certificates like these"),
}
_REQUEST = {
    2: ("signer-untrusted", "no CA that this site trusts issued the certificate of {subject}; {issuer} did"),
    18: ("signer-untrusted", "{subject} vouches for itself only"),
    19: ("signer-untrusted", "the path of {signer} ends at {subject}, which this site does not trust"),
    20: ("signer-untrusted", "no CA that this site trusts issued the certificate of {subject}; {issuer} did"),
    21: ("signer-untrusted", "no CA that this site trusts issued the certificate of {subject}; {issuer} did"),
    7: ("signer-untrusted", "the certificate of {subject} was not signed by {issuer}"),
    9: ("signer-not-yet-valid", "the certificate of {subject} is not valid yet"),
    10: ("signer-expired", "the certificate of {subject} has expired"),
    23: ("signer-revoked", "the certificate of {subject} has been revoked"),
    40: ("signer-is-proxy", "{subject} is a proxy certificate; images are signed with the certificate itself"),
}


def _refusal(error: crypto.X509StoreContextError, signer: x509.Certificate, anchors: TrustAnchors) -> LrmsVmError:
    number = error.errors[0]
    try:
        at_fault = error.certificate.to_cryptography()
    except MALFORMED:  # some faults are the whole path's: then there is none
        at_fault = signer
    shown = {
        "subject": dn.show(at_fault.subject),
        "issuer": dn.show(at_fault.issuer),
        "signer": dn.show(signer.subject),
    }
    if number in _SITE:
        code, sentence = _SITE[number]
        return SiteError(
            f"{anchors.source}: {sentence.format(**shown)}; who is revoked cannot be known",
            hint="run fetch-crl on this node, or ask your site's administrators to",
            code=code,
        )
    if number in _REQUEST:
        code, sentence = _REQUEST[number]
        return RequestError(sentence.format(**shown), code=code)
    return RequestError(
        f"the certificate path of {shown['signer']} does not hold at {shown['subject']}: {error.errors[2]}",
        code="signer-path-invalid",
    )
