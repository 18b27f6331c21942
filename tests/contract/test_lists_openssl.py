"""Signed lists both ways: what `openssl smime` and `openssl cms` sign is believed here, and ours is by them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lrms_vm.errors import RequestError
from lrms_vm.signing_list import sign_list
from lrms_vm.trust.json_object import show_time
from lrms_vm.trust.verify import TrustAnchors
from lrms_vm.trust.verify_list import SignedList, open_list
from tests import lists
from tests.certs.make_certs import HOUR, Authority, Identity, ec_key, name, person, rsa_key

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")

NOW = datetime.now(UTC)  # openssl signs with the time of this machine
CA = Authority.root(name("Test CA"), at=NOW, key=rsa_key(number=7))
ALICE = CA.issue(person("Alice Example"), key=rsa_key())
ANCHORS = TrustAnchors((CA.pem,), (CA.crl(),))
LIST = lists.payload(
    **{"dc:date:created": show_time(NOW - HOUR), "dc:date:expires": show_time(NOW + HOUR), "dc:title": "Äh, a list"}
)
CRLF = LIST.replace(b"\n", b"\r\n")
CLEAR = [
    ["smime", "-sign"],
    ["smime", "-sign", "-binary"],
    ["smime", "-sign", "-text"],
    ["smime", "-sign", "-crlfeol"],
    ["smime", "-sign", "-binary", "-crlfeol"],
    ["smime", "-sign", "-from", "a@example.org", "-to", "b@example.org", "-subject", "a list"],
    ["smime", "-sign", "-md", "sha512"],
    ["smime", "-sign", "-nosmimecap"],
    ["cms", "-sign"],
    ["cms", "-sign", "-binary"],
    ["cms", "-sign", "-text"],
    ["cms", "-sign", "-cades"],
    ["cms", "-sign", "-keyid"],
    ["cms", "-sign", "-keyopt", "rsa_padding_mode:pss", "-keyopt", "rsa_pss_saltlen:digest"],
]
INSIDE = [
    ["smime", "-sign", "-nodetach"],
    ["smime", "-sign", "-nodetach", "-outform", "DER"],
    ["smime", "-sign", "-nodetach", "-outform", "PEM"],
    ["cms", "-sign", "-nodetach"],
    ["cms", "-sign", "-nodetach", "-binary", "-outform", "DER"],
    ["cms", "-sign", "-nodetach", "-binary", "-outform", "PEM"],
    ["cms", "-sign", "-nodetach", "-text", "-outform", "DER"],
    ["cms", "-sign", "-nodetach", "-crlfeol"],
]


def openssl(arguments: Sequence[str | Path], *, expected: int = 0) -> str:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == expected, done.stderr
    return done.stderr


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a list, a signer and a CA."""
    (tmp_path / "list.json").write_bytes(LIST)
    (tmp_path / "cert.pem").write_bytes(ALICE.pem)
    (tmp_path / "key.pem").write_bytes(ALICE.key_pem)
    (tmp_path / "ca.pem").write_bytes(CA.pem)
    return tmp_path


def sign(place: Path, arguments: Sequence[str]) -> bytes:
    who = ["-signer", place / "cert.pem", "-inkey", place / "key.pem"]
    openssl([*arguments[:2], "-in", place / "list.json", *who, *arguments[2:], "-out", place / "signed"])
    return (place / "signed").read_bytes()


def opened(signed: bytes) -> SignedList:
    return open_list(signed, anchors=ANCHORS, policy=lists.policy(), at=datetime.now(UTC))


@pytest.mark.parametrize("arguments", CLEAR, ids=" ".join)
def test_a_list_that_openssl_clear_signs_is_believed(place: Path, arguments: list[str]) -> None:
    signed = sign(place, arguments)
    found = opened(signed)
    assert (found.form, found.content.identifier, found.content.title) == ("smime", lists.LIST, "Äh, a list")
    changed = signed.replace(b"images.example.org/a.img", b"images.example.com/a.img")
    assert changed != signed
    with pytest.raises(RequestError) as caught:
        opened(changed)
    assert caught.value.code == "list-bytes-differ"


@pytest.mark.parametrize("arguments", INSIDE, ids=" ".join)
def test_a_list_that_openssl_signs_around_is_believed(place: Path, arguments: list[str]) -> None:
    found = opened(sign(place, arguments))
    assert found.form == ("cms" if "-outform" in arguments else "smime")
    assert found.content.title == "Äh, a list"


@pytest.mark.parametrize("form", ["smime", "cms"])
def test_the_commands_of_the_documentation_sign_for_us(place: Path, form: str) -> None:
    more = ["-outform", "DER", "-nodetach"] if form == "cms" else []
    assert (
        opened(sign(place, ["cms", "-sign", "-binary", "-nosmimecap", "-cades", "-md", "sha256", *more])).form == form
    )


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["cms", "-sign", "-nodetach", "-stream", "-outform", "DER"], "signature-malformed"),
        (["cms", "-sign", "-noattr", "-binary"], "signed-attributes-missing"),
        (["smime", "-sign", "-noattr"], "signed-attributes-missing"),
        (["cms", "-sign", "-nocerts"], "certificate-missing"),
        (["smime", "-sign", "-nocerts"], "certificate-missing"),
        (["smime", "-sign", "-md", "sha1"], "digest-not-allowed"),
        (["cms", "-sign", "-md", "sha1", "-nodetach", "-outform", "PEM"], "digest-not-allowed"),
        (["cms", "-sign", "-binary", "-outform", "DER"], "signature-malformed"),
        (["smime", "-sign", "-outform", "PEM"], "signature-malformed"),
        (["cms", "-data_create", "-outform", "DER"], "signature-malformed"),
        (["cms", "-digest_create", "-outform", "DER"], "signature-malformed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_what_else_openssl_can_make_is_refused(place: Path, arguments: list[str], code: str) -> None:
    who = [] if "_create" in arguments[1] else ["-signer", place / "cert.pem", "-inkey", place / "key.pem"]
    openssl([*arguments, "-in", place / "list.json", *who, "-out", place / "signed"])
    with pytest.raises(RequestError) as caught:
        opened((place / "signed").read_bytes())
    assert caught.value.code == code


def test_a_list_with_two_signers_is_refused(place: Path) -> None:
    bob = CA.issue(person("Bob Example"), key=rsa_key(number=2))
    (place / "bob.pem").write_bytes(bob.pem + bob.key_pem)
    sign(place, ["cms", "-sign", "-signer", str(place / "bob.pem")])
    with pytest.raises(RequestError) as caught:
        opened((place / "signed").read_bytes())
    assert caught.value.code == "signer-count"


@pytest.mark.parametrize("who", [ALICE, CA.issue(person("Alice Example"), key=ec_key(2))], ids=["rsa", "ec"])
@pytest.mark.parametrize("tool", ["cms", "smime"])
@pytest.mark.parametrize("form", ["smime", "cms"])
def test_openssl_believes_what_we_sign(place: Path, who: Identity, tool: str, form: str) -> None:
    signed = sign_list(LIST, who.signer(), form=form, digest="sha256", at=NOW)
    assert opened(signed).form == form
    (place / "signed").write_bytes(signed)
    inform = ["-inform", "DER"] if form == "cms" else []
    out = ["-CAfile", place / "ca.pem", "-purpose", "any", "-out", place / "out"]
    binary = ["-binary"] if form == "cms" else []
    openssl([tool, "-verify", *binary, *inform, "-in", place / "signed", *out])
    assert (place / "out").read_bytes() == (LIST if form == "cms" else CRLF)


def test_openssl_refuses_what_was_changed_in_ours(place: Path) -> None:
    signed = sign_list(LIST, ALICE.signer(), form="smime", digest="sha256", at=NOW)
    (place / "signed").write_bytes(signed.replace(b"example.org/a.img", b"example.com/a.img"))
    openssl(["cms", "-verify", "-in", place / "signed", "-CAfile", place / "ca.pem", "-purpose", "any"], expected=4)


@pytest.mark.parametrize(
    "change",
    [
        lambda signed, boundary: signed.replace(b"{", b"--" + boundary + b"\n{", 1),
        lambda signed, boundary: signed.replace(b"{", b"--" + boundary + b"x\n{", 1),
        lambda signed, boundary: signed.replace(b"\n--" + boundary + b"\n", b"\n\n--" + boundary + b"\n", 1),
        lambda signed, boundary: signed.replace(b"\n--" + boundary + b"\nContent", b"\r\n--" + boundary + b"\nContent"),
        lambda signed, boundary: signed.replace(b"\n--" + boundary + b"\n", b"\n--" + boundary + b" \n"),
        lambda signed, boundary: signed.replace(b"\r\n", b"\n"),
        lambda signed, boundary: signed.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"),
        lambda signed, boundary: signed.replace(b"This is an", b"{}\n--\nThis is no"),
        lambda signed, boundary: signed.replace(b"{", b"Content-Type: text/plain\r\n\r\n{", 1),
        lambda signed, boundary: signed.replace(b"{", b"\r\n{", 1),
        lambda signed, boundary: signed + signed,
        lambda signed, boundary: signed.replace(b"--" + boundary + b"--", b"--" + boundary + b"--\n" + CRLF),
    ],
    ids=range(12),
)  # fmt: skip
def test_what_we_read_of_a_changed_message_is_what_openssl_reads(place: Path, change: object) -> None:
    signed = sign(place, ["smime", "-sign"])
    boundary = signed.partition(b'boundary="')[2].partition(b'"')[0]
    assert callable(change)
    changed: bytes = change(signed, boundary)
    assert changed != signed
    try:
        found = opened(changed)
    except RequestError as error:
        assert error.code in ("smime-malformed", "list-bytes-differ")
        return
    (place / "changed").write_bytes(changed)
    out = ["-CAfile", place / "ca.pem", "-purpose", "any", "-out", place / "out"]
    openssl(["cms", "-verify", "-in", place / "changed", *out])
    assert (place / "out").read_bytes() == CRLF
    assert found.content == opened(signed).content
