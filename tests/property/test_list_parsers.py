"""Whatever the bytes are, the readers of signed lists answer with an error of ours, and believe nothing that changed."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrms_vm.errors import LrmsVmError, RequestError, SiteError
from lrms_vm.trust import cms, freshness, list_extract, smime, strict_json
from lrms_vm.trust.imagelist import compare_versions, parse_list
from lrms_vm.trust.verify_list import claim_listed, open_list
from tests.certs.make_certs import person, rsa_key
from tests.lists import ANCHORS, CA, NOW, content, image, payload, policy, sign

ALICE = CA.issue(person("Alice Example"), key=rsa_key())  # deterministic, so that examples can be replayed
BODY = payload()
SIGNED = {form: sign(BODY, ALICE, form=form) for form in ("smime", "cms")}
POLICY = policy()
WHOLE = open_list(SIGNED["smime"], anchors=ANCHORS, policy=POLICY, at=NOW)
EXTRACT = list_extract.write_extract(WHOLE, WHOLE.content.images[0])
RATCHET = freshness.write_ratchet(freshness.advance(freshness.Ratchet(), WHOLE))
lean = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

_TEXTS = st.text(max_size=12) | st.sampled_from(["raw", "2026-11-22T11:00:00Z", "https://h/a", "ab" * 32, "7", "atlas"])
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | _TEXTS
_KEYS = st.sampled_from(
    [*image(), *content(), "lv:tree", "lv:kernel", "lv:vo", "lv:mirrors", "hv:image", "lv:crit:x", "alg"]
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS | _TEXTS, inner, max_size=6),
    max_leaves=20,
)


@st.composite
def mutated(draw: st.DrawFn, original: bytes) -> bytes:
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1))
        kind = draw(st.sampled_from(["set", "cut", "insert", "repeat"]))
        if kind == "set":
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 40))]
        elif kind == "insert":
            data[at:at] = draw(
                st.binary(min_size=1, max_size=20) | st.sampled_from([b"\n", b"\r\n", b"\n--", b'"', b"{"])
            )
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 200))]
        if not data:
            break
    return bytes(data)


def content_read(data: bytes) -> bytes:
    """What would be parsed of a message whose digest matches."""
    message = smime.split(data)
    if message.content is None:
        return cms.parse_attached(message.signature, max_content_bytes=strict_json.MAX_BYTES)[1]
    signature = cms.parse(message.signature)
    for form in smime.forms(message.content):
        if cms.check_content(signature, form):
            return form
    raise RequestError("", code="list-bytes-differ")


@lean
@given(st.binary(max_size=400) | mutated(BODY))
def test_json_never_raises_anything_else(data: bytes) -> None:
    with contextlib.suppress(RequestError):
        strict_json.parse(data, source="x")
    with contextlib.suppress(RequestError):
        parse_list(data)


@lean
@given(_VALUES)
def test_what_strict_json_reads_is_what_json_says(value: Any) -> None:
    data = json.dumps(value).encode()
    with contextlib.suppress(RequestError):
        assert strict_json.parse(data, source="x") == json.loads(data)


@lean
@given(st.dictionaries(_KEYS, _VALUES, max_size=6), st.dictionaries(_KEYS, _VALUES, max_size=6))
def test_a_list_with_anything_in_its_fields_is_read_or_refused(
    of_list: dict[str, Any], of_image: dict[str, Any]
) -> None:
    with contextlib.suppress(RequestError):
        data = json.dumps({"hv:imagelist": content([image(**of_image)], **of_list)}).encode()
        for one in parse_list(data).images:
            assert "/" not in one.identifier and ".." not in one.identifier and ".." not in one.name
            assert one.size_bytes > 0 and one.urls and one.digests


@lean
@given(st.sampled_from(["smime", "cms"]).flatmap(lambda form: mutated(SIGNED[form])) | st.binary(max_size=400))
def test_a_changed_message_says_what_was_signed_or_nothing(data: bytes) -> None:
    try:
        found = open_list(data, anchors=ANCHORS, policy=POLICY, at=NOW)
    except LrmsVmError as error:
        assert error.code
        return
    assert found.content == WHOLE.content


@lean
@given(mutated(SIGNED["smime"]))
def test_the_bytes_that_are_read_are_those_that_are_signed(data: bytes) -> None:
    with contextlib.suppress(RequestError):
        assert content_read(data).replace(b"\r\n", b"\n") == BODY


@lean
@given(st.sampled_from([EXTRACT, RATCHET]).flatmap(mutated) | st.binary(max_size=200))
def test_state_that_was_changed_is_damaged(data: bytes) -> None:
    for read in (freshness.read_ratchet, freshness.read_clock, list_extract.read_extract):
        try:
            found = read(data, source="state")
        except SiteError as error:
            assert error.code in ("ratchet-damaged", "clock-damaged", "extract-damaged")
        else:
            assert found == read(RATCHET if read is freshness.read_ratchet else EXTRACT, source="state")


@lean
@given(st.lists(st.text("0123456789abZ.-+_", max_size=12), min_size=3, max_size=3))
def test_versions_have_one_order(versions: list[str]) -> None:
    a, b, c = versions
    assert compare_versions(a, a) == 0
    assert compare_versions(a, b) == -compare_versions(b, a)
    if compare_versions(a, b) <= 0 and compare_versions(b, c) <= 0:
        assert compare_versions(a, c) <= 0


def test_an_extract_of_a_list_claims() -> None:
    signed, one = list_extract.read_extract(EXTRACT, source="x")
    assert claim_listed(signed, one, anchors=ANCHORS, policy=POLICY, user=None, partition="", at=NOW).rule == "alice"
