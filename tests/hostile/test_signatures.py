"""Signature files with one defect each: cases C5 to C21n of tests/hostile/README.md that have no test elsewhere."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_crl

from lrms_vm.errors import RequestError
from lrms_vm.signing import bare_signature, detached_cms
from lrms_vm.trust import cms
from lrms_vm.trust.verify import SignatureFiles
from tests.certs.make_certs import ec_key, ed25519_key, person, rsa_key
from tests.hostile.mutants import Node, copied, joined, signed_again, signer_info, taken_apart
from tests.unit.test_trust_verify import ALICE, CA, IMAGE, NOW, OTHER_CA, cms_by, endorse, refusal

DIGEST = hashlib.sha256(IMAGE).digest()
DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420") + DIGEST


def cube_root(value: int) -> int:
    """The least number whose cube is not below `value`."""
    low, high = 0, 1 << (value.bit_length() // 3 + 1)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if middle**3 < value else (low, middle)
    return low


@pytest.mark.parametrize("hidden", [0, 1, 8])
def test_c15_bleichenbachers_forgery_needs_no_key_and_is_refused(hidden: int) -> None:
    """e = 3, short padding, the right DigestInfo, and rubbish after it that makes the whole nearly a cube."""
    alice = CA.issue(person("Alice Example"), key=rsa_key(2048, exponent=3))
    prefix = b"\0\1" + b"\xff" * (8 + hidden) + b"\0" + DIGEST_INFO
    root = cube_root(int.from_bytes(prefix.ljust(256, b"\0"), "big"))
    assert (root**3).to_bytes(256, "big").startswith(prefix)  # a verifier that does not look at the end is taken in
    forged = root.to_bytes(256, "big")
    assert refusal(SignatureFiles("dgst", forged, "sha256", alice.pem)) == "signature-wrong-digest"
    tree = taken_apart(detached_cms(alice.signer(), DIGEST, "sha256", NOW))
    signer_info(tree)[1][-1][1] = forged
    assert refusal(SignatureFiles("cms", joined(tree))) == "signature-invalid"


@pytest.mark.parametrize(
    "info",
    [
        bytes.fromhex("302f300b0609608648016503040201") + b"\x04\x20" + DIGEST,  # no NULL
        bytes.fromhex("3033300f06096086480165030402010502aabb") + b"\x04\x20" + DIGEST,  # parameters in the NULL
        bytes.fromhex("308131300d060960864801650304020105000420") + DIGEST,  # a long length
        bytes.fromhex("3080300d060960864801650304020105000420") + DIGEST + b"\0\0",  # BER
        DIGEST_INFO + b"\0",
        DIGEST_INFO + os.urandom(100),
        b"\0" + DIGEST_INFO,
        DIGEST,
        b"",
    ],
)
def test_c15_the_digest_info_has_one_encoding_even_from_the_keys_owner(info: bytes) -> None:
    key = rsa_key()
    numbers, size = key.private_numbers(), key.key_size // 8
    alice = CA.issue(person("Alice Example"), key=key)
    padded = b"\0\1" + b"\xff" * (size - 3 - len(info)) + b"\0" + info
    signed = pow(int.from_bytes(padded, "big"), numbers.d, numbers.public_numbers.n).to_bytes(size, "big")
    assert refusal(SignatureFiles("dgst", signed, "sha256", alice.pem)) == "signature-wrong-digest"


def test_c15_a_signature_has_the_length_of_the_key() -> None:
    alice = CA.issue(person("Alice Example"), key=rsa_key())
    good = bare_signature(alice.signer(), DIGEST, "sha256")
    for other in (b"\0" + good, good + b"\0", good[:-1], good[1:], b"\0" * 256, b"\xff" * 256, b"\1"):
        assert refusal(SignatureFiles("dgst", other, "sha256", alice.pem)) == "signature-invalid"


def test_c5_c6_two_signers_are_one_too_many_known_or_not() -> None:
    """The reference would accept what one known signer vouches for; we know no tool that makes such a file for a site."""
    tree, other = (taken_apart(cms_by(who).signature) for who in (ALICE, OTHER_CA.issue(person("Bob Example"))))
    tree[1][1][1][0][1][-1][1].append(signer_info(other))
    assert refusal(SignatureFiles("cms", joined(tree))) == "signer-count"


ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256
EDGES: dict[str, Callable[[int, int], bytes]] = {
    "both zero": lambda r, s: encode_dss_signature(0, 0),
    "r zero": lambda r, s: encode_dss_signature(0, s),
    "s zero": lambda r, s: encode_dss_signature(r, 0),
    "s plus the order": lambda r, s: encode_dss_signature(r, s + ORDER),
    "r plus the order": lambda r, s: encode_dss_signature(r + ORDER, s),
    "r negative": lambda r, s: _pair(_signed(r - (1 << 264)), _signed(s)),
    "r is the order": lambda r, s: encode_dss_signature(ORDER, s),
    "huge": lambda r, s: encode_dss_signature(1 << 2000, 1 << 2000),
    "not minimal": lambda r, s: _pair(b"\0" * 3 + _signed(r), _signed(s)),
    "trailing": lambda r, s: encode_dss_signature(r, s) + b"\0",
    "long length": lambda r, s: b"\x30\x81" + encode_dss_signature(r, s)[1:],
    "three numbers": lambda r, s: _sequence(b"".join(b"\2" + bytes([len(_signed(v))]) + _signed(v) for v in (r, s, s))),
    "bare": lambda r, s: r.to_bytes(32, "big") + s.to_bytes(32, "big"),
    "empty": lambda r, s: b"\x30\0",
}


def _signed(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def _sequence(content: bytes) -> bytes:
    return b"\x30" + bytes([len(content)]) + content


def _pair(r: bytes, s: bytes) -> bytes:
    return _sequence(b"\2" + bytes([len(r)]) + r + b"\2" + bytes([len(s)]) + s)


@pytest.mark.parametrize("edge", EDGES)
def test_c21n_an_ecdsa_signature_has_one_encoding_and_numbers_in_range(edge: str) -> None:
    alice = CA.issue(person("Alice Example"), key=ec_key(1))
    bare = EDGES[edge](*decode_dss_signature(bare_signature(alice.signer(), DIGEST, "sha256")))
    assert refusal(SignatureFiles("dgst", bare, "sha256", alice.pem)) == "bytes-differ"
    tree = taken_apart(cms_by(alice).signature)
    value = signer_info(tree)[1][-1]
    value[1] = EDGES[edge](*decode_dss_signature(value[1]))
    assert refusal(SignatureFiles("cms", joined(tree))) == "signature-invalid"


def test_c21n_a_high_s_is_as_good_as_a_low_one() -> None:
    """ECDSA allows both (only Bitcoin does not); a signature file is not what images are told apart by."""
    r, s = decode_dss_signature(bare_signature(ALICE.signer(), DIGEST, "sha256"))
    for one in (s, ORDER - s):
        assert endorse(SignatureFiles("dgst", encode_dss_signature(r, one), "sha256", ALICE.pem)).rule == "alice"


PSS = "2a864886f70d01010a"
MGF1 = "2a864886f70d010108"
SHA = {"sha1": "2b0e03021a", "sha256": "608648016503040201", "sha512": "608648016503040203"}


def pss(*, digest: str = "sha256", mask: str = "sha256", salt: int = 32, trailer: int | None = None) -> Node:
    """An AlgorithmIdentifier with RSASSA-PSS-params."""

    def oid(text: str) -> Node:
        return [0x06, bytes.fromhex(text)]

    fields: list[Node] = [
        [0xA0, [[0x30, [oid(SHA[digest])]]]],
        [0xA1, [[0x30, [oid(MGF1), [0x30, [oid(SHA[mask])]]]]]],
        [0xA2, [[0x02, bytes([salt])]]],
    ]
    if trailer is not None:
        fields.append([0xA3, [[0x02, bytes([trailer])]]])
    return [0x30, [oid(PSS), [0x30, fields]]]


@pytest.mark.parametrize(
    ("scheme", "code"),
    [
        (pss(salt=0), "signature-algorithm-not-allowed"),
        (pss(salt=20), "signature-algorithm-not-allowed"),
        (pss(mask="sha512"), "signature-algorithm-not-allowed"),
        (pss(mask="sha1"), "digest-not-allowed"),
        (pss(digest="sha1", mask="sha1"), "digest-not-allowed"),
        (pss(digest="sha512", mask="sha512", salt=64), "signature-algorithm-not-allowed"),
        (pss(trailer=2), "signature-algorithm-not-allowed"),
        ([0x30, [[0x06, bytes.fromhex(PSS)], [0x30, []]]], "signature-malformed"),  # the defaults: SHA-1, a salt of 20
        ([0x30, [[0x06, bytes.fromhex(PSS)], [0x05, b""]]], "signature-malformed"),
        (pss(), "accepted"),
        (pss(trailer=1), "accepted"),
    ],
)
def test_c21c_pss_with_other_parameters_is_refused(scheme: Node, code: str) -> None:
    alice = CA.issue(person("Alice Example"), key=rsa_key())
    tree = taken_apart(cms_by(alice).signature)
    info = signer_info(tree)[1]
    info[4] = copied(scheme)
    signed = b"\x31" + joined(info[3])[1:]
    info[5][1] = rsa_key().sign(signed, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
    files = SignatureFiles("cms", joined(tree))
    if code == "accepted":
        assert endorse(files).rule == "alice"
    else:
        assert refusal(files) == code


def test_c21d_two_certificates_of_one_number_are_ambiguous() -> None:
    """A CA that gives one serial number twice: which of the two signed cannot be told by the sid."""
    one, two = (CA.issue(person(who), key=ec_key(1), serial=4711) for who in ("Alice Example", "Bob Example"))
    signed = detached_cms(one.signer(two.certificate), DIGEST, "sha256", NOW)
    assert refusal(SignatureFiles("cms", signed)) == "signer-count"


def test_c21f_ten_thousand_certificates_are_not_read() -> None:
    tree = taken_apart(cms_by(ALICE).signature)
    certificates = tree[1][1][1][0][1][3]
    certificates[1] *= 10_000
    assert refusal(SignatureFiles("cms", joined(tree))) == "signature-malformed"
    certificates[1] = certificates[1][:11]
    assert refusal(SignatureFiles("cms", joined(tree))) == "signature-malformed"


@pytest.mark.parametrize("digest", ["sha256", "sha384"])
def test_c21m_ed25519_takes_sha512_only(digest: str) -> None:
    """RFC 8419 section 3.1."""
    alice = CA.issue(person("Alice Example"), key=ed25519_key())
    tree = taken_apart(cms_by(CA.issue(person("Alice Example"), key=ec_key(1)), digest=digest).signature)
    good = taken_apart(cms_by(alice, digest="sha512").signature)
    signer_info(good)[1][2] = copied(signer_info(tree)[1][2])
    good[1][1][1][0][1][1] = copied(tree[1][1][1][0][1][1])
    assert refusal(SignatureFiles("cms", joined(good))) == "signature-algorithm-not-allowed"


def test_c21m_a_bare_signature_by_ed25519_is_refused() -> None:
    alice = CA.issue(person("Alice Example"), key=ed25519_key())
    files = SignatureFiles("dgst", ed25519_key().sign(DIGEST), "sha256", alice.pem)
    assert refusal(files) == "signature-algorithm-not-allowed"


@pytest.mark.parametrize("attributes", [0, 2, 300])
def test_c19_attributes_that_nobody_knows_do_no_harm_and_too_many_are_refused(attributes: int) -> None:
    """As openssl's own: smimeCapabilities is one. What is signed is signed, and what we do not know we do not use."""
    tree = taken_apart(cms_by(ALICE).signature)
    found = next(one for one in signer_info(tree)[1] if one[0] == 0xA0)[1]
    for number in range(attributes):
        kind = b"\x2a\x03" + bytes([0x81 + number // 128, number % 128])
        found.append([0x30, [[0x06, kind], [0x31, [[0x02, b"\1"]]]]])
    found.sort(key=lambda one: joined(one).ljust(4096, b"\0"))
    files = SignatureFiles("cms", joined(signed_again(tree, ALICE.key)))
    if attributes > 10:
        assert refusal(files) == "signature-malformed"
    else:
        assert endorse(files).rule == "alice"


def test_unsigned_attributes_and_embedded_crls_change_nothing() -> None:
    tree = taken_apart(cms_by(ALICE).signature)
    signer_info(tree)[1].append([0xA1, [[0x30, [[0x06, b"\x2a\x03"], [0x31, [[0x05, b""]]]]]]])
    crl = taken_apart(_der(CA.crl([])))
    tree[1][1][1][0][1].insert(4, [0xA1, [crl]])
    assert endorse(SignatureFiles("cms", joined(tree))).rule == "alice"
    stale = _der(CA.crl(until=-NOW.resolution))
    tree[1][1][1][0][1][4] = [0xA1, [taken_apart(stale)]]
    assert endorse(SignatureFiles("cms", joined(tree))).rule == "alice"


def _der(pem: bytes) -> bytes:
    return load_pem_x509_crl(pem).public_bytes(Encoding.DER)


@pytest.mark.parametrize("depth", [10, 100, 1000, 20_000])
def test_nesting_ends_in_a_refusal_not_in_the_stack(depth: int) -> None:
    deep = b"\x05\0"
    for _ in range(depth):
        size = len(deep)
        octets = size.to_bytes(3, "big")
        deep = b"\x30\x83" + octets + deep if size > 0xFFFF else joined([0x30, deep])
    with pytest.raises(RequestError) as caught:
        cms.parse(deep)
    assert caught.value.code == "signature-malformed"
