"""Before anything is signed: whose key it is, and whether it may sign at all. Interop is in contract/test_trust_openssl.py."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from lrms_vm.errors import LrmsVmError
from lrms_vm.signing import Signer, load_signer, sign_image
from tests.certs.make_certs import DAY, HOUR, Authority, Identity, ec_key, ed25519_key, name, person, rsa_key

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
CA = Authority.root(name("Test CA"), at=NOW)
SUB = CA.sub(name("Sub CA"))
ALICE = SUB.issue(person("Alice Example"))


def never() -> bytes:
    raise AssertionError("no password is needed")


def loaded(who: Identity = ALICE, key: bytes | None = None, chain: bytes = b"") -> Signer:
    return load_signer(who.pem, key or who.key_pem, chain, password=never, at=NOW)


def refused(who: Identity = ALICE, key: bytes | None = None) -> str:
    with pytest.raises(LrmsVmError) as caught:
        loaded(who, key)
    return caught.value.code


def test_a_chain_may_be_in_either_file_and_counts_once() -> None:
    both = load_signer(ALICE.pem + SUB.pem, ALICE.key_pem, SUB.pem + ALICE.pem, password=never, at=NOW)
    assert both.chain == loaded(chain=SUB.pem).chain == (SUB.certificate,)


def test_somebody_elses_key_is_refused() -> None:
    assert refused(key=CA.key_pem) == "key-mismatch"


@pytest.mark.parametrize("key", [b"junk", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", ALICE.pem])
def test_what_is_no_key_is_refused(key: bytes) -> None:
    assert refused(key=key) == "key-unreadable"


def test_a_password_is_asked_for_only_where_there_is_one() -> None:
    locked = ALICE.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    assert load_signer(ALICE.pem, locked, password=lambda: b"secret", at=NOW).certificate == ALICE.certificate
    for wrong in (b"wrong", b""):
        with pytest.raises(LrmsVmError) as caught:
            load_signer(ALICE.pem, locked, password=lambda wrong=wrong: wrong, at=NOW)
        assert caught.value.code == "key-unreadable"


@pytest.mark.parametrize(
    ("who", "code"),
    [
        (CA.issue(person("Alice"), until=-HOUR), "signer-expired"),
        (CA.issue(person("Alice"), since=DAY), "signer-expired"),
        (CA.issue(person("Alice"), key=rsa_key(1024)), "weak-key"),
        (CA.issue(person("Alice"), digital_signature=False), "signer-key-usage"),
        (CA, "signer-is-ca"),
    ],
)
def test_who_would_be_refused_later_is_refused_now(who: Identity, code: str) -> None:
    assert refused(who) == code


@pytest.mark.parametrize("form", ["cms", "dgst"])
def test_files_are_whole_and_readable_and_nothing_else_is_left(tmp_path: Path, form: str) -> None:
    image = tmp_path / "x.raw"
    image.write_bytes(b"\0" * 5000)
    for _ in range(2):
        done = sign_image(image, loaded(), form=form, digest="sha256", at=NOW)
    names = {"cms": {"x.raw.p7s"}, "dgst": {"x.raw.sha256", "x.raw.crt"}}[form]
    assert {path.name for path in done.files} == names
    assert {path.name for path in tmp_path.iterdir()} == names | {"x.raw"}
    assert {path.stat().st_mode & 0o777 for path in done.files} == {0o644}


@pytest.mark.parametrize("form", ["cms", "dgst"])
def test_ed25519_needs_cms_with_sha512(tmp_path: Path, form: str) -> None:
    image = tmp_path / "x.raw"
    image.write_bytes(b"disk")
    with pytest.raises(LrmsVmError):
        sign_image(image, loaded(CA.issue(person("A"), key=ed25519_key())), form=form, digest="sha256", at=NOW)


def test_what_is_no_image_is_not_signed(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path in (tmp_path, tmp_path / "absent", tmp_path / "empty", Path("/dev/zero")):
        with pytest.raises(LrmsVmError):
            sign_image(path, loaded(CA.issue(person("A"), key=ec_key(5))), form="cms", digest="sha256", at=NOW)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
