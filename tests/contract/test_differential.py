"""Mutated signatures, judged twice: by us and by `openssl cms -verify -binary`, with the same anchors, CRLs and bytes.

What we accept, openssl accepts. What openssl accepts and we refuse is strictness on purpose, and is listed with its
reason. The judgement is "accepts": most mutants still parse.

`LRMS_VM_MUTANTS=20000 pytest tests/contract/test_differential.py` tries more of them.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lrms_vm.errors import LrmsVmError
from lrms_vm.signing import detached_cms
from lrms_vm.trust.policy import parse_policy
from lrms_vm.trust.verify import SignatureFiles, TrustAnchors, check_bytes, check_claim
from tests.certs.make_certs import Authority, Identity, ec_key, name, person, rsa_key
from tests.hostile.mutants import mutants

MUTANTS = int(os.environ.get("LRMS_VM_MUTANTS", "1200"))
NOW = datetime.now(UTC)
IMAGE = b"\0" * 512 + random.Random(1).randbytes(4096)
CA = Authority.root(name("Test CA"), at=NOW, key=rsa_key(number=7))
SUB = CA.sub(name("Sub CA"), key=rsa_key(number=8))
ANCHORS = TrustAnchors((CA.pem,), (CA.crl(), SUB.crl()))
RULES = "".join(
    f"""[[builder]]
name = "{ca}"
issuer = "CN={ca},DC=TestGrid,DC=org"
subject = "CN=Alice Example,O=People,DC=TestGrid,DC=org"
images = ["*"]
"""
    for ca in ("Test CA", "Sub CA")
)
POLICY = parse_policy(f'version = 1\n[defaults]\nnamespaces = "ignore"\n{RULES}'.encode(), source="trust.toml")

# What we refuse and openssl does not: how our refusal begins, and the reason. 18,000 mutants showed no other.
STRICTER = {
    "signature-malformed: the signature is not a detached CMS signature in DER": "one encoding only: BER lengths, bytes "
    "after the end, attributes unsorted or of another type, versions that do not fit, an ESS attribute cut short",
    "certificate-malformed: the signature: cannot be read": "the same inside a certificate",
    "signed-attributes-missing: ": "no signed attributes at all, or no signingTime",
    "signing-time-wrong: ": "openssl does not look at it",
    "signer-count: ": "another signer or certificate that nobody asked for; names that are equal only when prepared",
    "digest-not-allowed: ": "a digest that is listed and not used",
    "signature-algorithm-not-allowed: ": "an identifier that is wrong and that openssl does not look at",
    "signature-invalid: the signature was made for another certificate": "openssl looks at ESS only with -cades",
}


@dataclass(frozen=True)
class Case:
    """A signature and how it came to be."""

    how: str
    p7s: bytes


def originals() -> dict[str, tuple[Identity, bytes]]:
    """One for each kind of key that openssl 3.0 can verify here (not Ed25519); one with a CA between."""
    digest = {one: hashlib.new(one, IMAGE).digest() for one in ("sha256", "sha384", "sha512")}
    alice = person("Alice Example")
    rsa, ec = (CA.issue(alice, key=key) for key in (rsa_key(), ec_key(2)))
    below = SUB.issue(alice, key=rsa_key(number=2))
    return {
        "rsa": (rsa, detached_cms(rsa.signer(), digest["sha256"], "sha256", NOW)),
        "ec": (ec, detached_cms(ec.signer(), digest["sha384"], "sha384", NOW)),
        "chain": (below, detached_cms(below.signer(SUB.certificate), digest["sha512"], "sha512", NOW)),
    }


def cases(count: int) -> Iterator[Case]:
    chance = random.Random(20261122)
    made = {kind: mutants(signature, chance, who.key) for kind, (who, signature) in originals().items()}
    kinds = ["rsa", "ec", "chain"]
    for number in range(count):
        kind = kinds[number % len(kinds)]
        how, p7s = next(made[kind])
        yield Case(f"{kind} {how}", p7s)


def ours(p7s: bytes) -> str:
    """Our answer: "accepted", or code and sentence."""
    try:
        claim = check_claim(
            SignatureFiles("cms", p7s), anchors=ANCHORS, policy=POLICY, image_name="x", user=None, partition="", at=NOW
        )
        digests = {one: hashlib.new(one, IMAGE).digest() for one in ("sha256", "sha384", "sha512")}
        check_bytes(claim, digests=digests, size_bytes=len(IMAGE))
    except LrmsVmError as error:
        assert error.code
        return f"{error.code}: {error.message}"
    return "accepted"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "image").write_bytes(IMAGE)
    (tmp_path / "anchors.pem").write_bytes(b"".join((CA.pem, *ANCHORS.crls)))
    return tmp_path


def theirs(site: Path, number: int, p7s: bytes) -> bool:
    """Whether `openssl cms -verify` accepts it."""
    path = site / f"{number}.p7s"
    path.write_bytes(p7s)
    words = (
        "cms -verify -binary -purpose any -inform DER -content image -CAfile anchors.pem -crl_check_all -x509_strict"
    )
    argv = ["openssl", *words.split(), "-out", os.devnull, "-in", path.name]
    done = subprocess.run(argv, cwd=site, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
    path.unlink()
    return done.returncode == 0


def test_the_originals_are_accepted_by_both(site: Path) -> None:
    for kind, (_, p7s) in originals().items():
        assert ours(p7s) == "accepted", kind
        assert theirs(site, 0, p7s), kind


def test_what_we_accept_openssl_accepts_and_what_we_refuse_more_is_explained(site: Path) -> None:
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = list(cases(MUTANTS))
        answers = list(pool.map(lambda one: theirs(site, *one), enumerate(case.p7s for case in found)))
    counted: Counter[tuple[bool, bool]] = Counter()
    unexplained = []
    for case, accepted in zip(found, answers, strict=True):
        answer = ours(case.p7s)
        counted[answer == "accepted", accepted] += 1
        assert accepted or answer != "accepted", f"we alone accept {case.how}: {case.p7s.hex()}"
        if accepted and answer != "accepted" and not answer.startswith(tuple(STRICTER)):
            unexplained.append(f"{case.how}: {answer}")
    assert unexplained[:10] == []
    assert all(counted[both] for both in ((True, True), (False, True), (False, False))), counted
