"""CRLs that are judged by their bytes (trust/crl.py), against OpenSSL's own judgement of the same: ours may ask more."""

from __future__ import annotations

import base64
import random
from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import pytest
from cryptography import x509 as certificates
from OpenSSL import crypto

from lrms_vm.errors import LrmsVmError
from lrms_vm.trust import crl as plain_crl
from lrms_vm.trust import der, x509
from tests.certs.edit_certs import edited_crl, pem
from tests.certs.make_certs import DAY, HOUR, Authority, ec_key, name, rsa_key
from tests.hostile import mutants
from tests.hostile.mutants import Node
from tests.unit.test_trust_verify import ALICE, CA, NOW, cms_by, endorse, refusal

CHAIN = (ALICE.certificate, CA.certificate)
OTHERS = [CA.issue(name(f"Other {number}"), serial=number * 7919 + 3).certificate for number in range(5)]
ENTRIES = 5  # in TBSCertList: version, algorithm, issuer, thisUpdate, nextUpdate, entries, extensions


def says_fine(crls: list[bytes], *, must_be_there: bool = True, grace: timedelta = timedelta(0)) -> bool:
    return plain_crl.ends_of(CHAIN, crls, at=NOW, grace=grace, must_be_there=must_be_there) is not None


def openssl_says_fine(crl: bytes) -> bool:
    try:
        loaded = certificates.load_pem_x509_crl(crl)
        x509._openssl(ALICE.certificate, [CA.certificate], [], [loaded], NOW)
    except (*x509.MALFORMED, crypto.X509StoreContextError, LrmsVmError):
        return False
    return True


@pytest.mark.parametrize("key", [ec_key(1000), rsa_key(number=7)])
def test_a_plain_crl_is_judged_without_openssl(key: object) -> None:
    ca = Authority.root(name("Test CA"), at=NOW, key=key)
    chain = (ca.issue(name("x")).certificate, ca.certificate)
    asked = {"at": NOW, "grace": timedelta(0), "must_be_there": True}
    assert plain_crl.ends_of(chain, [ca.crl(OTHERS)], **asked) == [NOW + 30 * DAY] * 2
    assert plain_crl.ends_of(chain, [ca.crl([*OTHERS, chain[0]])], **asked) is None
    assert plain_crl.ends_of(chain, [ca.crl([chain[1]])], **asked) is None


def test_mutated_crls_signed_again_never_pass_where_openssl_would_not() -> None:
    """As a CA that makes mistakes would publish them; and, unsigned, as they could arrive."""
    chance = random.Random(20261122)
    base, counted = CA.crl(OTHERS), Counter[tuple[bool, bool]]()
    body = base64.b64decode(b"".join(line for line in base.splitlines() if not line.startswith(b"-")))

    def change(fields: list[Node]) -> None:
        """Everything but the entries and what is in the two extensions: those are not read."""
        entries, extensions = fields.pop(ENTRIES), fields.pop(ENTRIES)
        for _ in range(chance.choice((1, 1, 2, 3))):
            chance.choice((mutants._splice, mutants._change))([0x30, fields], chance)
        fields[ENTRIES:ENTRIES] = [entries, extensions]

    for number in range(900):
        try:
            signed = number % 3
            mutant = edited_crl(base, CA, change) if signed else pem("X509 CRL", mutants._bits(body, chance, None))
        except (LookupError, der.DerError, TypeError):
            continue
        ours, theirs = says_fine([mutant]), openssl_says_fine(mutant)
        counted[ours, theirs] += 1
        assert theirs or not ours, mutant.decode()
    assert counted[True, True] > 5 and counted[False, False] > 100, counted


def serial_as(encoding: Callable[[bytes], bytes]) -> bytes:
    """A CRL that revokes Alice, her number written in another way; signed by the CA."""
    number = ALICE.certificate.serial_number
    content = number.to_bytes(number.bit_length() // 8 + 1, "big")
    entry = mutants.joined([0x30, [[0x17, b"261122110000Z"]]])[2:]  # after the number: when

    def edit(fields: list[Node]) -> None:
        written = encoding(content) + entry
        # As one primitive with a constructed tag, since no DER tree can hold what is not DER.
        fields[ENTRIES] = [0x30, bytes([0x30]) + mutants.shortest(len(written)) + written]

    return edited_crl(CA.crl([ALICE.certificate]), CA, edit)


@pytest.mark.parametrize(
    "encoding",
    [
        lambda content: bytes([2, len(content)]) + content,
        lambda content: bytes([2, len(content) + 1]) + b"\0" + content,
        lambda content: bytes([2, len(content) + 3]) + b"\0\0\0" + content,
        lambda content: bytes([2, 0x81, len(content)]) + content,
        lambda content: bytes([2, 0x82, 0, len(content)]) + content,
    ],
    ids=["DER", "padded", "padded more", "a long length", "a longer length"],
)
def test_who_is_revoked_is_found_however_the_number_is_written(encoding: Callable[[bytes], bytes]) -> None:
    assert not says_fine([serial_as(encoding)])


@pytest.mark.parametrize(
    "crls",
    [
        [],
        [CA.crl(), CA.crl()],
        [CA.crl(until=-HOUR)],
        [CA.crl(since=HOUR)],
        [CA.crl(extra=[(certificates.DeltaCRLIndicator(1), True)])],
        [CA.crl(extra=[(certificates.UnrecognizedExtension(certificates.ObjectIdentifier("1.2.3"), b"\5\0"), False)])],
        [CA.crl(signed_by=ALICE)],
        [CA.crl() + CA.crl()],
        [b"junk"],
    ],
)
def test_what_is_not_one_plain_current_crl_by_the_ca_is_left_to_openssl(crls: list[bytes]) -> None:
    assert not says_fine(crls)


def test_where_crls_need_not_be_there_one_that_is_there_counts_all_the_same() -> None:
    assert says_fine([], must_be_there=False)
    assert not says_fine([CA.crl([ALICE.certificate])], must_be_there=False)
    assert not says_fine([CA.crl(until=-HOUR)], must_be_there=False)


def test_grace_is_for_time_only() -> None:
    late = CA.crl(OTHERS, since=-2 * DAY, until=-HOUR)
    assert says_fine([late], grace=2 * HOUR) and not says_fine([late], grace=HOUR)
    assert not says_fine([CA.crl([ALICE.certificate], since=-2 * DAY, until=-HOUR)], grace=2 * HOUR)


def test_the_decision_is_the_same_with_and_without_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    assert endorse(cms_by(ALICE)).rule == "alice"
    monkeypatch.setattr(plain_crl, "ends_of", lambda *_, **__: None)
    assert endorse(cms_by(ALICE)).rule == "alice"
    revoking = x509.TrustAnchors((CA.pem,), (CA.crl([ALICE.certificate]),))
    assert refusal(cms_by(ALICE), anchors=revoking) == "signer-revoked"


@pytest.mark.parametrize("mode", ["require", "if-present"])
def test_a_crl_whose_name_is_encoded_in_another_way_is_not_passed_over(mode: str) -> None:
    """A CA that went from PrintableString to UTF8String, as many did: its CRL may be a step behind."""

    def edit(fields: list[Node]) -> None:
        fields[2][1][-1][1][0][1][1][0] = 0x13  # the issuer's CN

    twin = edited_crl(CA.crl([ALICE.certificate]), CA, edit)
    anchors = x509.TrustAnchors((CA.pem,), (twin,))
    asked = {"anchors": anchors, "min_rsa_bits": 2048, "namespaces": "ignore", "at": NOW, "crl": mode}
    with pytest.raises(LrmsVmError) as caught:
        x509.validate(ALICE.certificate, [], **asked)
    assert caught.value.code == {"require": "crl-missing", "if-present": "signer-revoked"}[mode]
    assert x509.validate(
        ALICE.certificate, [], **(asked | {"anchors": x509.TrustAnchors((CA.pem,), ()), "crl": "if-present"})
    )
