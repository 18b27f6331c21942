"""The CMS reader, fed with signatures that are nearly right."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from lrms_vm import signing
from lrms_vm.errors import RequestError
from lrms_vm.trust import cms, der
from tests.certs.make_certs import Authority, ec_key, name, person, rsa_key

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
CA = Authority.root(name("Test CA"), at=NOW)
ALICE = CA.issue(person("Alice Example"), key=rsa_key())
DIGEST = hashlib.sha256(b"a disk").digest()
GOOD = signing.detached_cms(ALICE.signer(), DIGEST, "sha256", NOW)
CERTIFICATE = ALICE.certificate.public_bytes(Encoding.DER)

Edit = Callable[["Tree"], None]


class Tree:
    """A signature as nested lists [tag, bytes or children], to be broken and put together again."""

    def __init__(self, data: bytes = GOOD) -> None:
        self.top = _taken_apart(der.read(data))
        signed = self.top[1][1][1][0]
        self.signed_data: list = signed[1]  # version, digests, encap, certificates, infos
        self.digests, self.encapsulated, self.certificates, self.infos = self.signed_data[1:5]
        self.info: list = self.infos[1][0][1]  # version, sid, digest, attributes, scheme, value
        self.attributes: list = self.info[3][1]

    def attribute(self, last: int) -> list:
        """By the last number of 1.2.840.113549.1.9."""
        return next(one for one in self.attributes if one[1][0][1] == bytes.fromhex("2a864886f70d0109") + bytes([last]))

    def sorted(self) -> None:
        self.attributes.sort(key=lambda one: _joined(one).ljust(4096, b"\0"))

    def encode(self) -> bytes:
        return _joined(self.top)


def _taken_apart(element: der.Element) -> list:
    if element.tag & 0x20:
        return [element.tag, [_taken_apart(one) for one in element.children(element.tag, "test")]]
    return [element.tag, element.content]


def _joined(node: list) -> bytes:
    tag, content = node
    return signing._tlv(tag, content if isinstance(content, bytes) else b"".join(_joined(one) for one in content))


def code_of(data: bytes) -> str:
    with pytest.raises(RequestError) as caught:
        cms.verify_signature(cms.parse(data))
    return caught.value.code


def broken(edit: Callable[[Tree], object]) -> str:
    tree = Tree()
    edit(tree)
    return code_of(tree.encode())


def test_what_is_taken_apart_can_be_put_together() -> None:
    assert Tree().encode() == GOOD


def test_a_good_signature_says_who_when_and_over_what() -> None:
    found = cms.parse(GOOD)
    cms.verify_signature(found)
    assert (found.signer, found.message_digest) == (ALICE.certificate, DIGEST)
    assert (found.signing_time, found.digest_algorithm, found.scheme) == (NOW, "sha256", "rsa")


@pytest.mark.parametrize("label", ["CMS", "PKCS7"])
def test_one_pem_block_is_fine_and_two_are_not(label: str) -> None:
    block = f"-----BEGIN {label}-----\n{base64.encodebytes(GOOD).decode()}-----END {label}-----\n".encode()
    assert cms.parse(block).message_digest == DIGEST
    assert code_of(block * 2) == "signature-malformed"
    assert code_of(b"junk\n" + block) == "signature-malformed"
    assert code_of(block[:100] + b"=" + block[100:]) == "signature-malformed"


@pytest.mark.parametrize(
    "data", [b"\0", b"0", b"0\0", b"junk" * 99, GOOD[:-1], GOOD + b"\0", GOOD * 2, b"\x30\x80" + GOOD[4:] + b"\0\0"]
)
def test_what_is_not_exactly_one_der_structure_is_malformed(data: bytes) -> None:
    assert code_of(data) == "signature-malformed"


def test_an_empty_file_is_no_signature() -> None:
    assert code_of(b"") == "not-signed"


def test_more_than_64_kib_is_not_looked_at() -> None:
    assert code_of(GOOD + b"\0" * 65536) == "signature-malformed"


def test_deep_nesting_and_long_lengths_end_as_a_refusal() -> None:
    deep = b""
    for _ in range(5000):
        deep = signing._tlv(0x30, deep)
    assert code_of(deep) == "signature-malformed"
    assert code_of(b"\x30\x84\xff\xff\xff\xff") == "signature-malformed"
    assert code_of(b"\x30\x88" + b"\xff" * 8) == "signature-malformed"
    assert (
        code_of(b"\x30\x82" + len(GOOD[4:]).to_bytes(2, "big").rjust(2, b"\0") + b"\x1f\x81" + GOOD[6:])
        == "signature-malformed"
    )


def _no_attributes(tree: Tree) -> None:
    del tree.info[3]


def _without(last: int) -> Callable[[Tree], None]:
    return lambda tree: tree.attributes.remove(tree.attribute(last))


def _twice(last: int) -> Callable[[Tree], None]:
    def edit(tree: Tree) -> None:
        tree.attributes.append(tree.attribute(last))
        tree.sorted()

    return edit


def _two_values(last: int) -> Callable[[Tree], None]:
    def edit(tree: Tree) -> None:
        values = tree.attribute(last)[1][1][1]
        values.append(values[0])
        tree.sorted()

    return edit


def _value(last: int, node: list) -> Callable[[Tree], None]:
    def edit(tree: Tree) -> None:
        tree.attribute(last)[1][1][1][0] = node
        tree.sorted()

    return edit


NOTHING = hashlib.sha256(b"").digest()
SHA1 = [0x30, [[0x06, bytes.fromhex("2b0e03021a")], [0x05, b""]]]
SHA512 = [0x30, [[0x06, bytes.fromhex("608648016503040203")]]]
BOB = CA.issue(person("Bob Example"), key=rsa_key(number=2)).certificate.public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (_no_attributes, "signed-attributes-missing"),
        (_without(3), "signed-attributes-missing"),
        (_without(4), "signed-attributes-missing"),
        (_without(5), "signed-attributes-missing"),
        (_twice(3), "signature-malformed"),
        (_twice(4), "signature-malformed"),
        (_two_values(4), "signature-malformed"),
        (_value(4, [0x04, NOTHING]), "signed-nothing"),
        (_value(4, [0x04, NOTHING[:20]]), "signature-malformed"),
        (_value(4, [0x04, b"x" * 32]), "signature-invalid"),
        (_value(3, [0x06, bytes.fromhex("2a864886f70d010702")]), "signature-malformed"),
        (_value(5, [0x17, b"2611221200Z"]), "signature-malformed"),
        (_value(5, [0x17, b"261322120000Z"]), "signature-malformed"),
        (_value(5, [0x18, b"20261122120000.5Z"]), "signature-malformed"),
        (_value(5, [0x0C, b"261122120000Z"]), "signature-malformed"),
        (_value(5, [0x17, "２６１１２２１２００００Z".encode()]), "signature-malformed"),
        (lambda tree: tree.attributes.reverse(), "signature-malformed"),
        (lambda tree: tree.infos[1].clear(), "signer-count"),
        (lambda tree: tree.infos[1].append(tree.infos[1][0]), "signer-count"),
        (lambda tree: tree.signed_data.remove(tree.certificates), "certificate-missing"),
        (lambda tree: tree.certificates[1].clear(), "signature-malformed"),
        (lambda tree: tree.certificates[1].append(tree.certificates[1][0]), "signer-count"),
        (
            lambda tree: tree.certificates[1].extend(_taken_apart(der.read(BOB)) for _ in range(10)),
            "signature-malformed",
        ),
        (lambda tree: tree.certificates[1].__setitem__(0, _taken_apart(der.read(BOB))), "signer-count"),
        (lambda tree: tree.certificates[1].__setitem__(0, [0x30, [[0x02, b"\1"]]]), "certificate-malformed"),
        (lambda tree: tree.encapsulated[1].append([0xA0, [[0x04, b"a disk"]]]), "signature-not-detached"),
        (lambda tree: tree.encapsulated[1].__setitem__(0, [0x06, b"\x2a"]), "signature-malformed"),
        (lambda tree: tree.info.__setitem__(0, [0x02, b"\3"]), "signature-malformed"),
        (lambda tree: tree.info.__setitem__(2, SHA1), "digest-not-allowed"),
        (lambda tree: tree.info.__setitem__(2, SHA512), "signature-malformed"),
        (lambda tree: tree.digests[1].clear(), "signature-malformed"),
        (lambda tree: tree.info.__setitem__(5, [0x04, b"x" * 256]), "signature-invalid"),
        (lambda tree: tree.info.__setitem__(5, [0x04, b""]), "signature-invalid"),
        (lambda tree: tree.info.append([0x04, b"more"]), "signature-malformed"),
        (lambda tree: tree.signed_data.append([0x04, b"more"]), "signature-malformed"),
        (lambda tree: tree.top[1].append([0x05, b""]), "signature-malformed"),
        (lambda tree: tree.signed_data.__setitem__(0, [0x02, b"\0\1"]), "signature-malformed"),
    ],
)
def test_one_defect_is_enough(edit: Callable[[Tree], object], code: str) -> None:
    assert broken(edit) == code


@pytest.mark.parametrize(
    "algorithm",
    [
        "2a864886f70d01010c",  # sha384WithRSAEncryption over a sha256
        "2a864886f70d010105",  # sha1WithRSAEncryption
        "2a8648ce3d040302",  # ecdsa-with-SHA256, by an RSA key
        "2b6570",  # Ed25519
        "2a864886f70d01010a",  # PSS without parameters
    ],
)
def test_a_scheme_that_does_not_fit_is_refused(algorithm: str) -> None:
    def edit(tree: Tree) -> None:
        tree.info[4] = [0x30, [[0x06, bytes.fromhex(algorithm)]]]

    assert broken(edit) in ("signature-algorithm-not-allowed", "signature-invalid")


def test_an_ess_attribute_of_another_certificate_is_refused() -> None:
    def edit(tree: Tree) -> None:
        ess = next(one for one in tree.attributes if one[1][0][1].endswith(b"\x02\x2f"))
        ess[1][1][1][0][1][0][1][0][1][0][1] = hashlib.sha256(BOB).digest()
        tree.sorted()

    assert broken(edit) == "signature-invalid"


def test_the_same_key_in_another_certificate_is_found_by_the_ess_attribute() -> None:
    twin = CA.issue(person("Alice Example"), key=rsa_key(), serial=ALICE.certificate.serial_number)
    tree = Tree()
    tree.certificates[1][0] = _taken_apart(der.read(twin.certificate.public_bytes(Encoding.DER)))
    assert code_of(tree.encode()) == "signature-invalid"


def test_a_signer_may_be_named_by_key_identifier() -> None:
    ski = hashlib.sha1(
        ALICE.certificate.public_key().public_bytes(Encoding.DER, signing.serialization.PublicFormat.PKCS1)
    )
    tree = Tree()
    tree.info[0], tree.info[1] = [0x02, b"\3"], [0x80, ski.digest()]
    assert cms.parse(tree.encode()).signer == ALICE.certificate
    tree.info[1] = [0x80, b"x" * 20]
    assert code_of(tree.encode()) == "signer-count"


def test_a_time_after_2049_is_written_and_read() -> None:
    late = signing.detached_cms(ALICE.signer(), DIGEST, "sha256", NOW + timedelta(days=365 * 30))
    assert cms.parse(late).signing_time.year == 2056


def test_ecdsa_by_another_key_is_refused() -> None:
    one, two = (CA.issue(person("Alice Example"), key=ec_key(n), serial=5) for n in (1, 2))
    signed = Tree(signing.detached_cms(one.signer(), DIGEST, "sha256", NOW))
    signed.attributes[:] = [a for a in signed.attributes if not a[1][0][1].endswith(b"\x02\x2f")]
    signed.certificates[1][0] = _taken_apart(der.read(two.certificate.public_bytes(Encoding.DER)))
    assert code_of(signed.encode()) == "signature-invalid"


@pytest.mark.parametrize(
    ("content", "dotted"),
    [("2a864886f70d010702", "1.2.840.113549.1.7.2"), ("608648", "2.16.840"), ("883703", "2.999.3")],
)
def test_object_identifiers_are_read(content: str, dotted: str) -> None:
    assert der.oid(der.read(signing._tlv(6, bytes.fromhex(content))), "test") == dotted


@pytest.mark.parametrize("content", ["", "80", "2a80", "2a8001", "2a86"])
def test_object_identifiers_have_one_encoding(content: str) -> None:
    with pytest.raises(der.DerError):
        der.oid(der.read(signing._tlv(6, bytes.fromhex(content))), "test")


@pytest.mark.parametrize("content", ["", "0001", "ff80", "007f"])
def test_integers_have_one_encoding(content: str) -> None:
    with pytest.raises(der.DerError):
        der.integer(der.read(signing._tlv(2, bytes.fromhex(content))), "test")
