"""Signed lists, one broken rule at a time: everything but that is as it should be."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from lrms_vm.errors import LrmsVmError, RequestError, SiteError
from lrms_vm.trust.list_extract import read_extract, write_extract
from lrms_vm.trust.list_rules import valid_until
from lrms_vm.trust.verify import Claim, TrustAnchors, check_bytes
from lrms_vm.trust.verify_list import SignedList, claim_listed, open_list
from lrms_vm.trust.x509 import spki_sha256
from tests.certs.make_certs import DAY, HOUR, Authority, ec_key, ed25519_key, name, person, rsa_key
from tests.lists import (
    ALICE,
    ALICE_DN,
    ANCHORS,
    BOB,
    CA,
    CA_DN,
    GONE,
    IMAGE,
    LIST,
    NOW,
    image,
    later,
    payload,
    policy,
    sign,
)


def opened(signed: bytes | None = None, **options: Any) -> SignedList:
    given: dict[str, Any] = {"anchors": ANCHORS, "policy": policy(), "at": NOW}
    return open_list(sign(payload()) if signed is None else signed, **(given | options))


def claim(signed: SignedList | None = None, index: int = 0, **options: Any) -> Claim:
    given: dict[str, Any] = {
        "anchors": ANCHORS,
        "policy": policy(),
        "user": "atlas001",
        "partition": "grid",
        "at": NOW,
    }
    signed = opened() if signed is None else signed
    return claim_listed(signed, signed.content.images[index], **(given | options))


def refusal(signed: bytes | None = None, kind: type[LrmsVmError] = RequestError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        opened(signed, **options)
    assert caught.value.message
    return caught.value.code


def claim_refusal(signed: SignedList | None = None, kind: type[LrmsVmError] = RequestError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        claim(signed, **options)
    assert caught.value.message
    return caught.value.code


@pytest.mark.parametrize("form", ["smime", "cms"])
@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("key", [rsa_key(), ec_key(1)])
def test_a_list_is_accepted_in_both_forms(key: Any, digest: str, form: str) -> None:
    alice = CA.issue(person("Alice Example"), key=key)
    found = opened(sign(payload(), alice, form=form, digest=digest))
    assert (found.form, found.digest_algorithm, found.content.identifier) == (form, digest, LIST)
    assert found.signer == alice.certificate
    assert found.spki_sha256 == spki_sha256(alice.certificate)


def test_an_ed25519_key_signs_lists_too() -> None:
    alice = CA.issue(person("Alice Example"), key=ed25519_key())
    assert opened(sign(payload(), alice, digest="sha512")).content.version == "7"


def test_the_claim_says_all_that_the_list_says_of_the_image() -> None:
    found = claim()
    assert (found.kind, found.signer, found.issuer, found.rule) == ("list", ALICE_DN, CA_DN, "alice")
    assert (found.list_identifier, found.list_version, found.image_version) == (LIST, "7", "1.2.3")
    assert found.signed_digest == hashlib.sha256(IMAGE).digest()
    assert found.signed_digests == {"sha256": hashlib.sha256(IMAGE).digest(), "sha512": hashlib.sha512(IMAGE).digest()}
    assert (found.size_bytes, found.format, found.runner) == (len(IMAGE), "raw", "production")
    digests = {one: hashlib.new(one, IMAGE).digest() for one in ("sha256", "sha512")}
    assert check_bytes(found, digests=digests, size_bytes=len(IMAGE)).rule == "alice"


def test_other_bytes_than_the_listed_are_refused() -> None:
    digests = {one: hashlib.new(one, b"else").digest() for one in ("sha256", "sha512")}
    with pytest.raises(RequestError):
        check_bytes(claim(), digests=digests, size_bytes=len(IMAGE))


@pytest.mark.parametrize("form", ["smime", "cms"])
def test_a_list_that_was_changed_after_signing_is_refused(form: str) -> None:
    signed = sign(payload(), form=form).replace(b"images.example.org/a.img", b"images.example.com/a.img")
    assert refusal(signed) == "list-bytes-differ"


def test_nothing_of_an_unproved_list_is_looked_at() -> None:
    """The signer is unknown, and the text is not even JSON: the signer is what is told."""
    stranger = Authority.root(name("Nobody's CA"), at=NOW, key=ec_key(9)).issue(person("Alice Example"))
    assert refusal(sign(b"{ not json", stranger)) == "signer-untrusted"
    assert refusal(sign(b"{ not json")) == "json-malformed"


def test_the_signer_must_be_good_now() -> None:
    revoked = TrustAnchors((CA.pem,), (CA.crl([ALICE.certificate]),))
    assert refusal(anchors=revoked) == "signer-revoked"
    assert refusal(anchors=TrustAnchors((CA.pem,), ()), kind=SiteError) == "crl-missing"
    assert refusal(anchors=TrustAnchors((CA.pem,), (CA.crl(until=-HOUR / 2),)), kind=SiteError) == "crl-expired"
    assert refusal(sign(payload(), CA.issue(person("Alice Example"), until=-DAY))) == "signer-expired"


def test_the_signer_must_be_a_builder_who_may_endorse_lists() -> None:
    assert refusal(sign(payload(), BOB)) == "not-a-builder"
    assert refusal(policy=policy('signatures = ["cms"]')) == "signature-form-not-allowed"
    assert refusal(policy=policy(f'spki_sha256 = ["{"0" * 64}"]')) == "builder-key-not-pinned"
    assert refusal(policy=policy(defaults='digests = ["sha512"]')) == "digest-not-allowed"


def test_a_block_on_the_signer_or_on_old_versions_wins() -> None:
    blocked = f'[[block]]\nspki_sha256 = "{spki_sha256(ALICE.certificate)}"'
    assert refusal(policy=policy(more=blocked)) == "signer-blocked"
    below = f'[[block]]\nlist = "{LIST}"\nbelow_version = {{}}\nreason = "lost key"'
    assert refusal(policy=policy(more=below.format(8))) == "list-blocked"
    assert refusal(policy=policy(more=below.format('"7.1"'))) == "list-blocked"
    assert opened(policy=policy(more=below.format(7))).content.version == "7"
    assert opened(policy=policy(more=below.format(8) + "\nuntil = 2026-11-21")).content.version == "7"
    assert opened(policy=policy(more=below.format(8).replace(LIST, "another"))).content.version == "7"


def test_a_signature_from_the_future_is_refused() -> None:
    assert refusal(sign(payload(), at=later(hours=1))) == "signing-time-wrong"
    assert opened(sign(payload(), at=later(minutes=4)))


def test_a_list_from_the_future_is_refused() -> None:
    assert refusal(sign(payload(**{"dc:date:created": "2026-11-22T12:05:01Z"}))) == "list-not-yet-valid"
    assert opened(sign(payload(**{"dc:date:created": "2026-11-22T12:05:00Z"})))


def test_a_list_ends_when_it_says_or_when_it_is_too_old() -> None:
    signed = sign(payload())
    assert refusal(signed, at=datetime.fromisoformat("2026-12-20T11:00:00Z"), anchors=_long()) == "list-expired"
    assert opened(signed, at=datetime.fromisoformat("2026-12-20T10:59:59Z"), anchors=_long())
    forever = sign(payload(**{"dc:date:expires": "2499-12-31T22:00:00Z"}))
    assert refusal(forever, at=later(35), anchors=_long()) == "list-expired"
    assert opened(forever, at=later(34.9), anchors=_long())
    assert opened(forever, at=later(99), anchors=_long(), policy=policy(defaults='max_list_age = "100d"'))
    assert refusal(sign(payload(**{"dc:date:expires": "2020-01-01T00:00:00Z"}))) == "list-expired"


def test_absurd_times_are_clamped_and_not_stumbled_over() -> None:
    for created, expires in (("0001-01-01", "0001-01-01"), ("0001-01-01", "9999-12-31"), ("9999-12-31", "9999-12-31")):
        changed = {"dc:date:created": f"{created}T00:00:00Z", "dc:date:expires": f"{expires}T23:59:59Z"}
        assert refusal(sign(payload(**changed))) in ("list-expired", "list-not-yet-valid")


def test_the_end_is_the_first_of_list_certificates_and_crls() -> None:
    assert opened().valid_until == datetime.fromisoformat("2026-12-20T11:00:00Z")
    assert opened(anchors=TrustAnchors((CA.pem,), (CA.crl(until=DAY),))).valid_until == later(1)
    found = opened(sign(payload(**{"dc:date:expires": "2499-12-31T22:00:00Z"})), anchors=_long())
    assert valid_until(found.content, policy()) == datetime.fromisoformat("2026-12-27T11:00:00Z")
    dated = opened(sign(payload([image(**{"dc:date:expires": "2026-11-23T00:00:00Z"})])))
    assert claim(dated).valid_until == datetime.fromisoformat("2026-11-23T00:00:00Z")


def test_every_job_asks_about_the_signer_and_the_list_again() -> None:
    signed = opened()
    assert claim_refusal(signed, anchors=TrustAnchors((CA.pem,), (CA.crl([ALICE.certificate]),))) == "signer-revoked"
    assert claim_refusal(signed, anchors=TrustAnchors((CA.pem,), ()), kind=SiteError) == "crl-missing"
    assert claim_refusal(signed, at=later(36), anchors=_long()) == "list-expired"
    assert claim_refusal(signed, at=later(-1), anchors=_long()) == "list-not-yet-valid"
    assert claim_refusal(signed, policy=policy('signatures = ["cms"]')) == "signature-form-not-allowed"
    assert claim_refusal(signed, policy=policy(defaults='max_list_age = "30m"')) == "list-expired"
    below = f'[[block]]\nlist = "{LIST}"\nbelow_version = 8'
    assert claim_refusal(signed, policy=policy(more=below)) == "list-blocked"
    block = f'[[block]]\ndn = "{ALICE_DN}"'
    assert claim_refusal(signed, policy=policy(more=block)) == "signer-blocked"


def test_a_blocked_image_is_refused_before_it_is_fetched() -> None:
    block = f'[[block]]\ndigest = "{hashlib.sha256(IMAGE).hexdigest()}"\nreason = "CVE"'
    assert claim_refusal(policy=policy(more=block)) == "image-blocked"


def test_a_builder_vouches_only_for_names_of_his_rule() -> None:
    signed = opened(sign(payload([image("cms/sim")])))
    assert claim_refusal(signed) == "builder-not-for-image"


@pytest.mark.parametrize(
    ("of_list", "of_image", "accepted"),
    [
        ({"ad:vo": "atlas"}, {}, True),
        ({}, {"lv:vo": ["atlas"]}, True),
        ({"lv:vo": ["atlas", "cms"]}, {}, False),
        ({"ad:vo": "cms"}, {}, False),
        ({"ad:vo": "atlas"}, {"lv:vo": "cms"}, False),
        ({}, {}, False),
        ({"ad:vo": ""}, {}, False),
        ({"ad:vo": "ATLAS"}, {}, False),
    ],
)
def test_a_builder_of_a_vo_vouches_only_for_its_images(of_list: Any, of_image: Any, accepted: bool) -> None:
    signed = opened(sign(payload([image(**of_image)], **of_list)))
    if accepted:
        assert claim(signed, policy=policy('vo = ["atlas"]')).rule == "alice"
    else:
        assert claim_refusal(signed, policy=policy('vo = ["atlas"]')) == "builder-not-for-vo"
    assert claim(signed).rule == "alice"


def test_the_rule_whose_vo_fits_is_the_one_that_counts() -> None:
    second = f"""[[builder]]
name = "alice-cms"
issuer = "{CA_DN}"
subject = "{ALICE_DN}"
images = ["atlas/*", "cms/*"]
vo = ["cms"]
"""
    signed = opened(sign(payload(**{"ad:vo": "cms"})))
    assert claim(signed, policy=policy('vo = ["atlas"]', more=second)).rule == "alice-cms"


def test_formats_count_only_where_policy_and_builder_say_so() -> None:
    signed = opened(sign(payload([image(**{"hv:format": "QCOW2"})])))
    assert claim_refusal(signed) == "format-not-allowed"
    assert claim_refusal(signed, policy=policy('formats = ["raw", "qcow2"]')) == "format-not-allowed"
    both = policy('formats = ["qcow2"]', defaults='formats = ["raw", "qcow2"]')
    assert claim(signed, policy=both).format == "qcow2"
    assert claim_refusal(opened(sign(payload([image(**{"hv:format": "OVA"})])))) == "format-not-allowed"


def test_sizes_and_digests_are_within_the_policy() -> None:
    assert claim_refusal(policy=policy(defaults='max_image = "512B"')) == "image-too-large"
    large = opened(sign(payload([image(**{"lv:virtual_size": 1 << 40})])))
    assert claim_refusal(large) == "image-virtual-too-large"
    only_512 = opened(sign(payload([image(**{"lv:checksum:sha256": GONE})]), digest="sha512"))
    assert claim(only_512).digest_algorithm == "sha512"
    both = opened(sign(payload(), digest="sha512"))
    assert claim(both, policy=policy(defaults='digests = ["sha512"]')).digest_algorithm == "sha512"
    one = opened(sign(payload([image(**{"sl:checksum:sha512": GONE})]), digest="sha512"))
    assert claim_refusal(one, policy=policy(defaults='digests = ["sha512"]')) == "digest-not-allowed"


def test_an_expired_or_superseded_image_is_refused() -> None:
    expired = opened(sign(payload([image(**{"dc:date:expires": "2026-11-22T12:00:00Z"})])))
    assert claim_refusal(expired) == "image-expired"
    old, new = image(**{"hv:version": "1.9"}), image(**{"hv:version": "1.10", "lv:min_version": "1.10"})
    signed = opened(sign(payload([old, new])))
    assert claim_refusal(signed, index=0) == "image-superseded"
    assert claim(signed, index=1).image_version == "1.10"


def test_runners_are_asked_unless_there_is_no_user() -> None:
    assert claim_refusal(user="mallory") == "runner-not-allowed"
    assert claim(user=None).runner is None


def test_an_image_of_another_list_is_not_this_lists() -> None:
    signed = opened()
    other = replace(signed.content.images[0], size_bytes=1)
    with pytest.raises(RequestError) as caught:
        claim_listed(signed, other, anchors=ANCHORS, policy=policy(), user=None, partition="", at=NOW)
    assert caught.value.code == "image-not-listed"


def test_a_refusal_says_whom_to_ask() -> None:
    asked = policy(defaults='contact = "grid@example.org"')
    for of in (lambda: opened(sign(payload(), at=later(1)), policy=asked), lambda: claim(user="x", policy=asked)):
        with pytest.raises(RequestError, match="ask grid@example"):
            of()


def test_an_extract_claims_as_the_whole_list_does() -> None:
    images = [
        image(f"atlas/{n}", **{"dc:description": "ä 😀", "dc:date:expires": "2026-12-01T00:00:00Z"}) for n in range(9)
    ]
    images[5] |= {
        "lv:tree": {
            "alg": "sha256",
            "chunk": 1 << 21,
            "root": "ab" * 32,
            "leaves": {"uri": "https://images.example.org/l", "size": 32, "sha256": "cd" * 32},
        },
        "lv:kernel": {"name": "k", "sha256": "01" * 32},
        "lv:min_version": "1",
        "lv:mirrors": ["http://mirror.example.org/a.img"],
    }
    signed = opened(sign(payload(images), form="cms"))
    data = write_extract(signed, signed.content.images[5])
    again, one = read_extract(data, source="extract")
    assert one == signed.content.images[5]
    assert again == replace(signed, content=replace(signed.content, images=(one,)))
    assert claim(again) == claim(signed, index=5)


def test_a_damaged_extract_is_the_sites_matter() -> None:
    signed = opened()
    data = write_extract(signed, signed.content.images[0])
    for at in range(0, len(data), 37):
        with pytest.raises(SiteError) as caught:
            read_extract(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], source="extract")
        assert caught.value.code == "extract-damaged"


def _long() -> TrustAnchors:
    return TrustAnchors((CA.pem,), (CA.crl(since=-9 * DAY, until=300 * DAY),))


def test_the_policy_says_how_long_crls_count_and_whether_they_must_be_there() -> None:
    expired = TrustAnchors((CA.pem,), (CA.crl(since=-2 * HOUR, until=-HOUR),))
    for ask in (refusal, claim_refusal):
        assert ask(anchors=expired, kind=SiteError) == "crl-expired"
    grace = policy(defaults='crl_grace = "2h"')
    assert claim(opened(anchors=expired, policy=grace), anchors=expired, policy=grace).rule == "alice"
    none, if_present = TrustAnchors((CA.pem,), ()), policy(defaults='crl = "if-present"')
    assert claim(opened(anchors=none, policy=if_present), anchors=none, policy=if_present).rule == "alice"
