"""What the readers of signed lists refuse, each with its code: strict JSON, S/MIME, the list's own fields."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from lrms_vm.errors import RequestError
from lrms_vm.trust import cms, smime, strict_json
from lrms_vm.trust.imagelist import MAX_IMAGES, ImageList, ListedImage, compare_versions, parse_list
from tests.lists import ALICE, GONE, IMAGE, LIST, content, image, payload, sign


def json_refusal(data: bytes) -> str:
    with pytest.raises(RequestError) as caught:
        strict_json.parse(data, source="a list")
    return caught.value.code


def split_refusal(data: bytes) -> str:
    with pytest.raises(RequestError) as caught:
        smime.split(data)
    return caught.value.code


def refusal(data: bytes) -> str:
    with pytest.raises(RequestError) as caught:
        parse_list(data)
    assert caught.value.message
    return caught.value.code


def one(**changes: Any) -> ListedImage:
    return parse_list(payload([image(**changes)])).images[0]


def one_refusal(**changes: Any) -> str:
    return refusal(payload([image(**changes)]))


# --- strict JSON


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "json-malformed"),
        (b"{", "json-malformed"),
        (b"{} {}", "json-malformed"),
        (b"{'a': 1}", "json-malformed"),
        (b'{"a": 1,}', "json-malformed"),
        (b'{"a": "\x01"}', "json-malformed"),
        (b'{"a": 01}', "json-malformed"),
        (b'// x\n{"a": 1}', "json-malformed"),
        (b'\xef\xbb\xbf{"a": 1}', "json-encoding"),
        ('{"a": 1}'.encode("utf-16"), "json-encoding"),
        (b'{"a": "\xff"}', "json-encoding"),
        (b'{"a": "\xed\xa0\x80"}', "json-encoding"),
        (b'{"a": "\xc0\xaf"}', "json-encoding"),
        (b'{"a": 1, "a": 1}', "json-duplicate-key"),
        (b'{"a": {"b": 1, "\\u0062": 2}}', "json-duplicate-key"),
        (b'{"a": NaN}', "json-number"),
        (b'{"a": -Infinity}', "json-number"),
        (b'{"a": 1e999}', "json-number"),
        (b'{"a": 1e16}', "json-number"),
        (b'{"a": 9223372036854775808}', "json-number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "json-number"),
        (b'{"a": 0.' + b"1" * 5000 + b"}", "json-number"),
        (b'{"a": "\\ud800"}', "json-text"),
        (b'{"\\udfff": 1}', "json-text"),
        (b'["\\udc00\\ud800"]', "json-text"),
        (b"[" * 17 + b"]" * 17, "json-too-deep"),
        (b"[" * 16 + b"{}" + b"]" * 16, "json-too-deep"),
        (b"[" * 100_000 + b"]" * 100_000, "json-too-deep"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "json-too-deep"),
        (b" " * (1 << 20) + b"1", "json-too-large"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_json_that_two_readers_could_see_differently_is_refused(data: bytes, code: str) -> None:
    assert json_refusal(data) == code


def test_json_within_the_bounds_is_read() -> None:
    text = '{"a": [1, -9223372036854775807, 0.5, 1e15, true, null, "ä\\ud83d\\ude00"]}'
    assert strict_json.parse(text.encode(), source="")["a"][6] == "ä😀"
    assert strict_json.parse(b"[" * 16 + b"1" + b"]" * 16, source="")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(7, 7), ("7", 7), (0, 0), ("0", 0), (2**63 - 1, 2**63 - 1), ("9223372036854775807", 2**63 - 1)],
)
def test_a_size_is_a_number_or_its_decimal_text(value: Any, expected: int) -> None:
    assert strict_json.integer(value) == expected


@pytest.mark.parametrize(
    "value",
    [-1, 2**63, "9223372036854775808", "007", "7.0", 7.0, "", "-7", "+7", " 7", "7\n", "٣", "0x7", True, None, []],
)
def test_nothing_else_is_a_size(value: Any) -> None:
    assert strict_json.integer(value) is None
    assert one_refusal(**{"hv:size": value}) == ("json-number" if value == 2**63 else "list-malformed")


# --- S/MIME

BODY = payload()
CLEAR = sign(BODY)
BOUNDARY = CLEAR.partition(b'boundary="')[2].partition(b'"')[0]
LAST = b"--" + BOUNDARY + b"--"


def test_a_clear_signed_part_is_taken_as_it_stands() -> None:
    message = smime.split(CLEAR)
    assert message.content == BODY.replace(b"\n", b"\r\n")
    assert message.form == "smime"
    assert cms.parse(message.signature).signer == ALICE.certificate


def test_line_ends_that_were_changed_on_the_way_are_found_again() -> None:
    for changed in (CLEAR.replace(b"\r\n", b"\n"), CLEAR.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")):
        message = smime.split(changed)
        assert message.content is not None
        signature = cms.parse(message.signature)
        assert [cms.check_content(signature, form) for form in smime.forms(message.content)][-1]


@pytest.mark.parametrize(
    "data",
    [
        CLEAR.replace(b"multipart/signed", b"multipart/mixed"),
        CLEAR.replace(b"application/x-pkcs7-signature", b"application/pgp-signature", 1),
        CLEAR.replace(b'boundary="' + BOUNDARY + b'"', b"boundary="),
        CLEAR.replace(b'boundary="' + BOUNDARY + b'"', b'boundary="' + BOUNDARY + b'"; boundary="x"'),
        CLEAR.replace(b'boundary="' + BOUNDARY + b'"', b"x=y"),
        CLEAR.replace(b'boundary="', b"boundary*0=" + b'"'),
        CLEAR.replace(b"MIME-Version: 1.0\n", b"MIME-Version: 1.0\nContent-Type: text/plain\n"),
        CLEAR.replace(b"MIME-Version: 1.0\n", b"MIME-Version: 1.0\nno header\n"),
        CLEAR.replace(b"MIME-Version: 1.0\n", b"MIME-Version: 1.0\nContent-Transfer-Encoding: base64\n"),
        CLEAR.replace(b"MIME-Version: 1.0\n", b"MIME-Version: 1.0\nSubject: \xff\n"),
        CLEAR.replace(b"MIME-Version: 1.0\n", b"X: y\n" * 4000),
        CLEAR.replace(LAST, b""),
        CLEAR.replace(LAST, b"--" + BOUNDARY),
        CLEAR.replace(LAST, LAST + b"more"),
        CLEAR + b"an epilogue",
        CLEAR + CLEAR,
        CLEAR.replace(b"{", b"--" + BOUNDARY + b"\n{", 1),
        CLEAR.replace(b"{", b"--" + BOUNDARY + b"--\n{", 1),
        CLEAR.replace(b"{", b"--" + BOUNDARY + b"and more\n{", 1),
        CLEAR.replace(b"Content-Transfer-Encoding: base64", b"Content-Transfer-Encoding: binary"),
        CLEAR.replace(b"Content-Type: application/x-pkcs7-signature;", b"Content-Type: text/plain;"),
        CLEAR.replace(b"\nMII", b"\nM!II"),
        CLEAR.replace(b"\nMII", b"\nMI"),
        b"Content-Type: multipart/signed\n",
        b"Content-Type: multipart/signed\n\n",
        b"\n\n" + CLEAR,
        b"From alice\n" + CLEAR,
        b"Content-Type: application/pkcs7-mime; smime-type=enveloped-data\nContent-Transfer-Encoding: base64\n\nMIIB",
        b"Content-Type: application/pkcs7-mime; smime-type=signed-data\n\nMIIB",
        b"x" * (2 << 20),
    ],
    ids=range(30),
)
def test_a_message_that_could_be_read_in_two_ways_is_refused(data: bytes) -> None:
    assert data != CLEAR
    assert split_refusal(data) == "smime-malformed"


@pytest.mark.parametrize("data", [b"", b" \n", BODY, b"\n " + BODY, b"\xef\xbb\xbf" + BODY, b"[]"])
def test_a_list_that_is_not_signed_is_refused_as_such(data: bytes) -> None:
    assert split_refusal(data) == "not-signed"


def test_a_boundary_that_begins_a_line_of_the_text_is_no_matter_unless_it_is_the_whole_boundary() -> None:
    text = CLEAR.replace(b"{", b"-- x\n--" + BOUNDARY[:-1] + b"\n{", 1)
    assert (smime.split(text).content or b"").startswith(b"-- x\n")


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Type: text/plain\r\n\r\n",
        b"Content-Type: text/plain\n\n",
        b'Content-Type: text/plain; charset="utf-8"\r\nContent-Transfer-Encoding: 7bit\r\n\r\n',
        b"content-type: application/json\r\n\r\n",
    ],
)
def test_signed_headers_of_a_text_are_passed_over(headers: bytes) -> None:
    assert smime.text_of(headers + BODY) == BODY
    assert smime.text_of(BODY) == BODY


@pytest.mark.parametrize(
    "headers", [b"Content-Type: text/html\r\n\r\n", b"X: y\r\n\r\n", b"\r\n", b"Content-Type: text/plain\r\n"]
)
def test_nothing_else_before_the_text_is(headers: bytes) -> None:
    assert smime.text_of(headers + BODY) == headers + BODY


def test_content_inside_is_read_only_where_it_should_be() -> None:
    attached, detached = sign(BODY, form="cms"), sign(BODY, form="detached")
    assert cms.parse_attached(attached, max_content_bytes=1 << 20)[1] == BODY
    for data, parse in ((detached, lambda d: cms.parse_attached(d, max_content_bytes=9)), (attached, cms.parse)):
        with pytest.raises(RequestError) as caught:
            parse(data)
        assert caught.value.code in ("signature-malformed", "signature-not-detached")


def test_content_inside_is_bounded() -> None:
    for size in (100, 100_000):
        with pytest.raises(RequestError) as caught:
            cms.parse_attached(sign(b"x" * size, form="cms"), max_content_bytes=99)
        assert caught.value.code == "signature-malformed"


# --- the list


def test_a_list_as_hepix_tools_write_it_is_read() -> None:
    found = parse_list(payload())
    assert (found.identifier, found.version, found.title) == (LIST, "7", "ATLAS images")
    assert found.created == datetime(2026, 11, 22, 11, tzinfo=UTC)
    assert (found.endorser.subject, found.endorser.issuer) == ("/CN=Alice", "/CN=CA")
    (listed,) = found.images
    assert (listed.name, listed.version, listed.size_bytes, listed.format) == ("atlas/sim", "1.2.3", len(IMAGE), "raw")
    assert listed.urls == ("https://images.example.org/a.img",)
    assert sorted(listed.digests) == ["sha256", "sha512"]


def test_a_list_as_appdb_writes_it_is_read() -> None:
    """Sizes and minima as texts, the VO in the head, an OVA, a title that is no name, an end beyond all days."""
    appdb = image(
        **{
            "hv:size": "121243136",
            "hv:format": "OVA",
            "ad:mpuri": "https://appdb.example.org/store/vm/image/7f1c5d25:619/",
            "hv:ram_minimum": "512",
            "lv:name": GONE,
            "lv:checksum:sha256": GONE,
            "dc:identifier": "7f1c5d25-614e-4409-bfa6-625d3ae7b9d4",
        }
    )
    found = parse_list(payload([appdb], **{"ad:vo": "fedcloud.egi.eu", "hv:version": "20150618211400"}))
    (listed,) = found.images
    assert (listed.name, listed.size_bytes, listed.format) == (listed.identifier, 121243136, "ova")
    assert listed.vo == ("fedcloud.egi.eu",)
    assert list(listed.digests) == ["sha512"]


def test_the_older_form_without_the_outer_object_is_read() -> None:
    assert parse_list(json.dumps(content()).encode()).identifier == LIST
    assert refusal(json.dumps({"hv:imagelist": content(), **content()}).encode()) == "list-malformed"


def test_an_image_is_called_by_its_name_else_its_title_else_its_identifier() -> None:
    assert one().name == "atlas/sim"
    assert one(**{"lv:name": GONE, "dc:title": "atlas/reco"}).name == "atlas/reco"
    assert one(**{"lv:name": GONE}).name == "id-atlas-sim"
    assert one(**{"lv:name": "", "dc:title": "../x"}).name == "id-atlas-sim"


def test_our_keys_are_read() -> None:
    leaves = {"uri": "https://images.example.org/l", "size": "32", "sha256": "cd" * 32}
    found = one(
        **{
            "lv:tree": {"alg": "sha256", "chunk": 1 << 21, "root": "AB" * 32, "leaves": leaves},
            "lv:format": "qcow2",
            "lv:virtual_size": 1 << 30,
            "lv:kernel": {"name": "site-6.1", "sha256": "01" * 32},
            "lv:initrd": {"sha256": "02" * 32},
            "lv:min_version": "1.2",
            "lv:vo": ["atlas", "cms"],
            "lv:mirrors": ["http://m.example.org/a", "https://images.example.org/a.img"],
            "lv:something-of-tomorrow": {"x": 1},
        }
    )
    assert found.tree is not None and found.tree.leaves_url == leaves["uri"]
    assert (found.tree.chunk_bytes, found.tree.root, found.tree.leaves_size_bytes) == (1 << 21, b"\xab" * 32, 32)
    assert (found.format, found.virtual_size_bytes, found.min_version) == ("qcow2", 1 << 30, "1.2")
    assert (found.kernel, found.kernel_sha256, found.initrd_sha256) == ("site-6.1", b"\1" * 32, b"\2" * 32)
    assert (found.vo, found.urls[1:]) == (("atlas", "cms"), ("http://m.example.org/a",))


@pytest.mark.parametrize(
    "data",
    [
        json.dumps({"hv:imagelist": content(), "lv:crit:x": 1}),
        json.dumps({"hv:imagelist": content(**{"lv:crit:quorum": 2})}),
        json.dumps({"hv:imagelist": content([image(**{"lv:crit:measured": True})])}),
        json.dumps({"hv:imagelist": content(**{"hv:images": [{"hv:image": image(), "lv:crit:x": None}]})}),
        json.dumps({"hv:imagelist": content([image(**{"lv:kernel": {"name": "k", "lv:crit:x": 1}})])}),
    ],
    ids=range(5),
)
def test_a_critical_key_that_we_do_not_know_refuses_the_list(data: str) -> None:
    assert refusal(data.encode()) == "list-critical-key"


@pytest.mark.parametrize("key", ["dc:identifier", "hv:version", "dc:date:created", "dc:date:expires", "hv:images"])
def test_a_list_says_what_it_must(key: str) -> None:
    for value in (GONE, None, "", [], {}, 1.5, "\0"):
        if (key, value) != ("hv:images", []):
            assert refusal(payload(**{key: value})) == "list-malformed"


@pytest.mark.parametrize("key", ["dc:identifier", "hv:version", "hv:size", "hv:uri"])
def test_an_image_says_what_it_must(key: str) -> None:
    for value in (GONE, None, "", [], {}, 1.5, "\0", " x"):
        assert one_refusal(**{key: value}) == "list-malformed"


def test_an_image_has_a_digest() -> None:
    assert one_refusal(**{"lv:checksum:sha256": GONE, "sl:checksum:sha512": GONE}) == "list-malformed"
    for value in ("", None):
        assert list(one(**{"lv:checksum:sha256": value}).digests) == ["sha512"]
    for value in ("ab", "zz" * 32, "ab" * 33, ["ab" * 32], "AB" * 31 + "A\n", 5):
        assert one_refusal(**{"lv:checksum:sha256": value}) == "list-malformed"


@pytest.mark.parametrize(
    "identifier",
    [
        "../../x",
        "/etc/passwd",
        "a/b",
        "a..b",
        ".",
        "..",
        ".hidden",
        "-o",
        "a b",
        "a\0",
        "a\n",
        "ä",
        "x" * 129,
        "lost+found",
    ],
)
def test_an_identifier_never_could_be_a_path(identifier: str) -> None:
    assert one_refusal(**{"dc:identifier": identifier}) == "list-malformed"
    assert refusal(payload(**{"dc:identifier": identifier})) == "list-malformed"


@pytest.mark.parametrize(
    "image_name",
    [
        "../x",
        "/x",
        "x/",
        "a//b",
        "a/../b",
        "a/.b",
        "a..b",
        "-x",
        "a b",
        "a@1",
        "a:b",
        "a\n",
        "a\u202eb",
        "а/b",
        "x" * 201,
        "$(id)",
        7,
    ],
)
def test_a_name_is_one_that_jobs_can_ask_for(image_name: str) -> None:
    assert one_refusal(**{"lv:name": image_name}) == "list-malformed"


@pytest.mark.parametrize("version", ["", "-1", "1 2", "٣", "1@2", "x" * 65, "1\n", -1, True, 1.0])
def test_a_version_is_a_plain_word(version: Any) -> None:
    assert one_refusal(**{"hv:version": version}) == "list-malformed"


def test_a_version_may_be_a_number() -> None:
    assert one(**{"hv:version": 20150618}).version == "20150618"


@pytest.mark.parametrize(
    "url",
    [
        "a.img",
        "//host/a",
        "https:/host/a",
        "https://",
        "https:///a",
        "https://-host/a",
        "https://host:123456/a",
        "https://host\\@other/a",
        "https://host:80@other/a",
        "https://user@host/a",
        "https://user:pw@host/a",
        "https://host/a b",
        "https://host/a\n",
        'https://host/a"b',
        "https://host/`id`",
        "https://host/a;rm -rf /",
        "https://h\u00f6st/a",
        "-O/etc/passwd",
        "https://host/" + "a" * 2000,
        "HTTPS://host/a",
    ],
)
def test_a_url_is_plain(url: str) -> None:
    assert one_refusal(**{"hv:uri": url}) == "list-malformed"
    assert one_refusal(**{"lv:mirrors": [url]}) == "list-malformed"


@pytest.mark.parametrize(
    "url", ["https://h/a", "http://h:8080/a?b=c&d#e", "https://[2001:db8::1]:443/a", "file:///srv/a.img", "https://h"]
)
def test_a_url_that_is_plain_is_read(url: str) -> None:
    assert one(**{"hv:uri": url}).urls == (url,)


@pytest.mark.parametrize(
    "date",
    ["2026-02-30T00:00:00Z", "2026-11-22", "2026-11-22T12:00:00", "2026-11-22T12:00:00+01:00", "2026-11-22 12:00:00Z",
     "2026-11-22T24:00:00Z", "2026-11-22T12:00:60Z", "0000-01-01T00:00:00Z", "٢٠٢٦-11-22T12:00:00Z", 1795000000],
)  # fmt: skip
def test_a_date_has_one_form(date: Any) -> None:
    for key in ("dc:date:created", "dc:date:expires"):
        assert refusal(payload(**{key: date})) == "list-malformed"
    assert one_refusal(**{"dc:date:expires": date}) == "list-malformed"


@pytest.mark.parametrize(
    "tree",
    [
        {},
        [],
        {"alg": "sha1", "chunk": 1 << 21, "root": "ab" * 32},
        {"alg": "sha256", "chunk": 1 << 15, "root": "ab" * 32},
        {"alg": "sha256", "chunk": 3 << 20, "root": "ab" * 32},
        {"alg": "sha256", "chunk": 1 << 40, "root": "ab" * 32},
        {"alg": "sha256", "chunk": 1 << 21, "root": "ab"},
        {
            "alg": "sha256",
            "chunk": 1 << 21,
            "root": "ab" * 32,
            "leaves": {"uri": "http://h/l", "size": 64, "sha256": "ab" * 32},
        },
        {"alg": "sha256", "chunk": 1 << 21, "root": "ab" * 32, "leaves": {"uri": "x", "size": 32, "sha256": "ab" * 32}},
        {"alg": "sha256", "chunk": 1 << 21, "root": "ab" * 32, "leaves": []},
    ],
    ids=range(10),
)
def test_a_tree_is_whole_or_refused(tree: Any) -> None:
    if tree == {}:
        tree = {"alg": "sha256"}
    assert one_refusal(**{"lv:tree": tree}) == "list-malformed"


def test_duplicates_are_refused_whatever_is_between_the_digits() -> None:
    a = image("atlas/sim")
    assert refusal(payload([a, a])) == "list-duplicate"
    assert (
        refusal(payload([a, image("atlas/sim", **{"dc:identifier": "b", "hv:version": "01.2-3"})])) == "list-duplicate"
    )
    assert refusal(payload([a, image("atlas/b", **{"dc:identifier": "id-atlas-sim"})])) == "list-duplicate"
    assert refusal(payload([a, image("id-atlas-sim", **{"dc:identifier": "b"})])) == "list-duplicate"
    newer = image("atlas/sim", **{"hv:version": "1.10"})
    assert [listed.version for listed in parse_list(payload([a, newer])).images] == ["1.2.3", "1.10"]


def test_a_list_may_be_empty_and_has_at_most_a_thousand() -> None:
    assert parse_list(payload([])).images == ()
    many = [image(f"a/{number}") for number in range(MAX_IMAGES)]
    assert len(_compact(many).images) == MAX_IMAGES
    with pytest.raises(RequestError) as caught:
        _compact([*many, image("a/more")])
    assert caught.value.code == "list-too-long"
    assert one_refusal(**{"lv:mirrors": ["http://h/a"] * 21}) == "list-too-long"


def test_texts_for_people_cannot_hide_anything() -> None:
    found = one(**{"dc:description": "two\nlines\x1b[31m and \u202eback", "sl:comments": None})
    assert (found.description, found.comments) == ("two lines [31m and  back", "")
    assert one_refusal(**{"dc:title": ["x"]}) == "list-malformed"


def test_the_highest_min_version_holds_for_all_versions_of_a_name() -> None:
    versions = [
        image("a/b", **{"hv:version": v, "lv:min_version": least}) for v, least in (("1", "1.9"), ("2", "1.10"))
    ]
    assert [listed.min_version for listed in parse_list(payload(versions)).images] == ["1.10", "1.10"]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("1.10", "1.9", 1),
        ("2", "1.10", 1),
        ("1", "1.0", -1),
        ("1.01", "1.1", 0),
        ("1-1", "1.1", 0),
        ("20150618211400", "7", 1),
        ("1.0rc1", "1.0", 1),
        ("1.a", "1.1", -1),
        ("1.a", "1.b", -1),
        ("9" * 60, "1" + "0" * 60, -1),
        ("0", "00", 0),
    ],
)
def test_versions_are_compared_as_numbers(a: str, b: str, expected: int) -> None:
    assert (compare_versions(a, b), compare_versions(b, a)) == (expected, -expected)


def _compact(images: list[dict[str, Any]]) -> ImageList:
    kept = [{key: value for key, value in one.items() if key != "sl:checksum:sha512"} for one in images]
    return parse_list(json.dumps({"hv:imagelist": content(kept)}).encode())
