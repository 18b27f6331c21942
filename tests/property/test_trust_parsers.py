"""Whatever the bytes are, the trust core answers with an error of ours, and accepts nothing that was changed."""

from __future__ import annotations

import contextlib
import hashlib
from datetime import UTC, datetime

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrms_vm.errors import ConfigError, LrmsVmError, RequestError
from lrms_vm.signing import bare_signature, detached_cms
from lrms_vm.trust import cms, der, dn, names
from lrms_vm.trust.policy import parse_policy
from lrms_vm.trust.verify import SignatureFiles, TrustAnchors, check_bytes, check_claim
from tests.certs.make_certs import Authority, name, person, rsa_key

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
CA = Authority.root(name("Test CA"), at=NOW)
ALICE = CA.issue(person("Alice Example"), key=rsa_key())
ANCHORS = TrustAnchors((CA.pem,), (CA.crl(),))
IMAGE = b"a disk"
DIGEST = hashlib.sha256(IMAGE).digest()
P7S = detached_cms(ALICE.signer(), DIGEST, "sha256", NOW)
BARE = bare_signature(ALICE.signer(), DIGEST, "sha256")
RULES = b"""version = 1
[defaults]
namespaces = "ignore"
[[builder]]
name = "alice"
issuer = "CN=Test CA,DC=TestGrid,DC=org"
subject = "CN=Alice Example,O=People,DC=TestGrid,DC=org"
images = ["*"]
signatures = ["cms", "dgst"]
[[runner]]
name = "all"
users = ["*"]
images = ["*"]
"""
POLICY = parse_policy(RULES, source="trust.toml")
lean = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def accepted(files: SignatureFiles, image: bytes = IMAGE, anchors: TrustAnchors = ANCHORS) -> bool:
    try:
        claim = check_claim(files, anchors=anchors, policy=POLICY, image_name="x", user="u", partition="", at=NOW)
        digests = {one: hashlib.new(one, image).digest() for one in ("sha1", "sha256", "sha384", "sha512")}
        check_bytes(claim, digests=digests, size_bytes=len(image))
    except LrmsVmError as error:
        assert error.code
        return False
    return True


@st.composite
def mutated(draw: st.DrawFn, original: bytes) -> bytes:
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "copy"]))
        if kind == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 8))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=8))
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 200))]
        if not data:
            data = bytearray(b"\0")
    return bytes(data)


def test_the_originals_are_accepted() -> None:
    assert accepted(SignatureFiles("cms", P7S))
    assert accepted(SignatureFiles("dgst", BARE, "sha256", ALICE.pem))


@lean
@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused_as_cms(data: bytes) -> None:
    with contextlib.suppress(RequestError):
        cms.parse(data)


@lean
@given(mutated(P7S))
def test_a_changed_signature_vouches_for_no_other_image(data: bytes) -> None:
    """It may still be accepted for its own image (an unsigned corner changed), never for another."""
    assert not accepted(SignatureFiles("cms", data), b"another disk")
    if accepted(SignatureFiles("cms", data)):
        parsed = cms.parse(data)
        assert (parsed.signer, parsed.message_digest) == (ALICE.certificate, DIGEST)


@lean
@given(mutated(BARE))
def test_a_changed_bare_signature_is_refused(data: bytes) -> None:
    assert data == BARE or not accepted(SignatureFiles("dgst", data, "sha256", ALICE.pem))


@lean
@given(mutated(ALICE.pem))
def test_a_changed_certificate_makes_nobody_else_a_builder(pem: bytes) -> None:
    assert not accepted(SignatureFiles("dgst", BARE, "sha256", pem), b"another disk")


@lean
@given(mutated(CA.pem), mutated(CA.crl()))
def test_changed_anchors_end_in_an_answer(certificate: bytes, crl: bytes) -> None:
    accepted(SignatureFiles("cms", P7S), anchors=TrustAnchors((certificate,), (CA.crl(),)))
    accepted(SignatureFiles("cms", P7S), anchors=TrustAnchors((CA.pem,), (crl,)))


@lean
@given(st.one_of(st.binary(max_size=300), mutated(RULES)))
def test_any_policy_is_read_or_refused(text: bytes) -> None:
    with contextlib.suppress(ConfigError):
        parse_policy(text, source="trust.toml")


_values = st.recursive(
    st.one_of(st.booleans(), st.integers(-5, 5), st.text(max_size=5), st.floats()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(char):08x}" for char in value) + '"'
    return str(value)


@lean
@given(
    st.sampled_from(
        [
            "action",
            "ca_dir",
            "crl",
            "namespaces",
            "min_rsa",
            "digests",
            "max_image",
            "formats",
            "contact",
            "name",
            "issuer",
            "images",
        ]
    ),
    st.sampled_from(["[defaults]", "[[builder]]", "[[runner]]", "[[block]]", ""]),
    _values,
)
def test_values_of_the_wrong_type_are_named(key: str, table: str, value: object) -> None:
    with contextlib.suppress(ConfigError):
        parse_policy(f"version = 1\n{table}\n{key} = {_toml(value)}\n".encode(), source="trust.toml")


@lean
@given(st.one_of(st.binary(max_size=200), mutated(b'TO Issuer "/DC=org/CN=x" PERMIT Subject "/DC=org/.*"\n')))
def test_any_namespaces_file_is_read_or_refused(data: bytes) -> None:
    for parse in (names.parse_namespaces, names.parse_signing_policy):
        with contextlib.suppress(names.NamesError):
            parse(data)


@lean
@given(st.text(max_size=60))
def test_any_name_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        dn.parse(text)


@lean
@given(st.binary(max_size=100))
def test_what_is_read_as_der_has_no_other_reading(data: bytes) -> None:
    with contextlib.suppress(der.DerError):
        assert der.read(data).raw == data
