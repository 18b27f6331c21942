"""Against the real `openssl`: what it signs we accept, what we sign it accepts, and where it can be led astray we are not.

The command lines are those of docs/trust.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from lrms_vm import signing
from lrms_vm.errors import LrmsVmError
from lrms_vm.trust.policy import parse_policy
from lrms_vm.trust.verify import SignatureFiles, TrustAnchors, check_bytes, check_claim
from tests.certs.make_certs import Authority, ec_key, name, person, rsa_key

NOW = datetime.now(UTC)
CA = Authority.root(name("Test CA"), at=NOW, key=rsa_key(number=7))
ALICE = CA.issue(person("Alice Example"), key=rsa_key())
ALICE_EC = CA.issue(person("Alice Example"), key=ec_key(2, ec.SECP384R1()))
BOB = CA.issue(person("Bob Example"), key=rsa_key(number=2))
REVOKED = CA.issue(person("Alice Example"), key=rsa_key(number=3))

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")


@dataclass(frozen=True)
class Site:
    """A directory with a CA, a policy and an image."""

    base: Path

    @property
    def image(self) -> Path:
        return self.base / "vm_image.img"

    def openssl(self, *words: str | Path) -> subprocess.CompletedProcess[bytes]:
        argv = ["openssl", *map(str, words)]
        return subprocess.run(argv, cwd=self.base, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)

    def must(self, *words: str | Path) -> bytes:
        done = self.openssl(*words)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def lrms_vm(self, *words: str | Path, code: int = 0) -> str:
        argv = [sys.executable, "-m", "lrms_vm", "image", *map(str, words)]
        done = subprocess.run(argv, capture_output=True, timeout=60, stdin=subprocess.DEVNULL, text=True)
        assert done.returncode == code, (done.returncode, done.stderr)
        assert done.stderr.count("\n") == 1, done.stderr  # one sentence
        return done.stdout

    def verify(self, *words: str | Path, code: int = 0, image: Path | None = None) -> dict[str, object]:
        policy = ("--policy", self.base / "trust.toml")
        found = json.loads(self.lrms_vm("verify", image or self.image, *policy, "--json", *words, code=code))
        assert found["accepted"] is (code == 0)
        assert {"accepted", "code", "reason", "signer", "issuer", "rule", "digest"} <= set(found)
        return found  # type: ignore[no-any-return]

    def sign_cms(self, *options: str, who: str = "alice", image: Path | None = None) -> bytes:
        image = image or self.image
        words = ("-signer", f"{who}.crt", "-inkey", f"{who}.key", "-in", image, "-outform", "DER")
        self.must("cms", "-sign", *options, *words, "-out", f"{image}.p7s")
        return Path(f"{image}.p7s").read_bytes()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    directory = tmp_path / "certificates"
    directory.mkdir()
    (directory / f"{CA.subject_hash}.0").write_bytes(CA.pem)
    (directory / f"{CA.subject_hash}.r0").write_bytes(CA.crl([REVOKED.certificate]))
    (directory / f"{CA.subject_hash}.signing_policy").write_text(
        "access_id_CA X509 '/DC=org/DC=TestGrid/CN=Test CA'\n"
        "pos_rights globus CA:sign\n"
        "cond_subjects globus '\"/DC=org/DC=TestGrid/*\"'\n"
    )
    for who, identity in (("alice", ALICE), ("alice_ec", ALICE_EC), ("bob", BOB), ("revoked", REVOKED)):
        (tmp_path / f"{who}.crt").write_bytes(identity.pem)
        (tmp_path / f"{who}.key").write_bytes(identity.key_pem)
    (tmp_path / "trust.toml").write_text(rules(directory))
    random.seed(20261122)
    (tmp_path / "vm_image.img").write_bytes(random.randbytes(1 << 20))
    return Site(tmp_path)


def rules(ca_dir: Path) -> str:
    return f"""version = 1
[defaults]
ca_dir = "{ca_dir}"
[[builder]]
name = "alice"
issuer = "CN=Test CA,DC=TestGrid,DC=org"
subject = "CN=Alice Example,O=People,DC=TestGrid,DC=org"
images = ["vm_image", "zeros*"]
signatures = ["cms", "dgst"]
[[runner]]
name = "all"
users = ["atlas001"]
images = ["*"]
"""


DOCUMENTED = ("-binary", "-nosmimecap", "-cades", "-md", "sha256")


@pytest.mark.parametrize("who", ["alice", "alice_ec"])
@pytest.mark.parametrize(
    "options",
    [
        DOCUMENTED,
        ("-binary",),
        ("-binary", "-md", "sha512"),
        ("-binary", "-md", "sha384", "-keyid"),
        ("-binary", "-keyopt", "rsa_padding_mode:pss", "-keyopt", "rsa_pss_saltlen:digest"),
    ],
    ids=" ".join,
)
def test_what_openssl_signs_is_accepted(site: Site, who: str, options: Sequence[str]) -> None:
    if who == "alice_ec" and "-keyopt" in options:
        return  # PSS is RSA's
    if "-keyopt" in options:  # -keyopt belongs to the signer before it
        words = ("-signer", f"{who}.crt", "-inkey", f"{who}.key", *options[1:], "-md", "sha256", "-in", site.image)
        site.must("cms", "-sign", "-binary", *words, "-outform", "DER", "-out", f"{site.image}.p7s")
    else:
        site.sign_cms(*options, who=who)
    found = site.verify("--user", "atlas001")
    assert found["digest"] == "sha256:" + hashlib.sha256(site.image.read_bytes()).hexdigest()
    assert (found["signer"], found["rule"]) == ("CN=Alice Example,O=People,DC=TestGrid,DC=org", "alice")


def test_smime_and_pem_are_accepted_too(site: Site) -> None:
    words = ("-binary", "-in", site.image, "-signer", "alice.crt", "-inkey", "alice.key", "-out", f"{site.image}.p7s")
    site.must("smime", "-sign", "-md", "sha256", *words, "-outform", "DER")
    site.verify()
    site.must("cms", "-sign", *words, "-outform", "PEM")
    site.verify()


@pytest.mark.parametrize("who", ["alice", "alice_ec"])
@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
def test_what_we_sign_openssl_accepts(site: Site, who: str, digest: str) -> None:
    cert = ("--cert", site.base / f"{who}.crt", "--key", site.base / f"{who}.key", "--digest", digest)
    site.lrms_vm("sign", site.image, *cert)
    check = ("-CAfile", f"certificates/{CA.subject_hash}.0", "-out", os.devnull)
    site.must("cms", "-verify", "-binary", "-inform", "DER", "-in", f"{site.image}.p7s", "-content", site.image, *check)
    site.must(
        "cms",
        "-verify",
        "-cades",
        "-binary",
        "-inform",
        "DER",
        "-in",
        f"{site.image}.p7s",
        "-content",
        site.image,
        *check,
    )
    assert site.verify()["code"] == "accepted"
    os.unlink(f"{site.image}.p7s")
    site.lrms_vm("sign", site.image, *cert, "--form", "dgst")
    (site.base / "pubkey.pem").write_bytes(site.must("x509", "-in", f"{who}.crt", "-pubkey", "-noout"))
    site.must("dgst", f"-{digest}", "-verify", "pubkey.pem", "-signature", f"{site.image}.{digest}", site.image)
    assert site.verify()["code"] == "accepted"


@pytest.mark.parametrize("who", ["alice", "alice_ec"])
def test_the_three_lines_of_2007_with_sha256(site: Site, who: str) -> None:
    (site.base / "pubkey.pem").write_bytes(site.must("x509", "-in", f"{who}.crt", "-pubkey", "-noout"))
    site.must("dgst", "-sha256", "-sign", f"{who}.key", "-out", f"{site.image}.sha256", site.image)
    site.must("dgst", "-sha256", "-verify", "pubkey.pem", "-signature", f"{site.image}.sha256", site.image)
    shutil.copy(site.base / f"{who}.crt", f"{site.image}.crt")
    assert site.verify()["code"] == "accepted"
    with open(site.image, "r+b") as image:
        image.seek(4711)
        image.write(b"?")
    assert site.verify(code=77)["code"] == "bytes-differ"


def test_the_names_of_2007_are_found(site: Site) -> None:
    """vm_image.sha256 for vm_image.img, as the talk's slide has it."""
    site.must("dgst", "-sha256", "-sign", "alice.key", "-out", "vm_image.sha256", site.image)
    assert site.verify(code=77)["code"] == "certificate-missing"
    shutil.copy(site.base / "alice.crt", site.base / "vm_image.crt")
    assert site.verify()["code"] == "accepted"


def test_sha1_as_in_2007_needs_leave(site: Site) -> None:
    site.must("dgst", "-sha1", "-sign", "alice.key", "-out", f"{site.image}.sha1", site.image)
    assert site.verify("--cert", site.base / "alice.crt", code=77)["code"] == "digest-not-allowed"
    text = rules(site.base / "certificates").replace('"dgst"]', '"dgst"]\nallow_sha1_until = "2999-01-01"')
    (site.base / "trust.toml").write_text(text)
    assert site.verify("--cert", site.base / "alice.crt")["code"] == "accepted"


class TestTheBinaryTrap:
    """Without -binary, openssl signs an image up to the first line that begins with a zero byte."""

    def test_random_data_cut_short_is_refused(self, site: Site) -> None:
        data = bytearray(site.image.read_bytes())
        data[1000:1002] = b"\n\0"
        site.image.write_bytes(data)
        site.sign_cms()
        data[-1] ^= 1
        site.image.write_bytes(data)
        check = ("-inform", "DER", "-in", f"{site.image}.p7s", "-content", site.image, "-out", os.devnull)
        trapped = site.openssl("cms", "-verify", *check, "-CAfile", f"certificates/{CA.subject_hash}.0")
        assert trapped.returncode == 0, "openssl no longer falls for it: say so in docs/trust.md"
        assert site.verify(code=77)["code"] == "bytes-differ"

    def test_a_disk_that_starts_with_zeros_is_refused_for_what_it_is(self, site: Site) -> None:
        image = site.base / "zeros.img"
        image.write_bytes(b"\0" * 1_000_000 + b"a file system")
        site.sign_cms(image=image)
        assert site.verify(code=77, image=image)["code"] == "signed-nothing"
        site.sign_cms(*DOCUMENTED, image=image)
        assert site.verify(image=image)["code"] == "accepted"

    def test_line_ends_made_canonical_are_refused(self, site: Site) -> None:
        site.image.write_bytes(b"one\ntwo\n" * 1000)
        site.sign_cms()
        assert site.verify(code=77)["code"] == "bytes-differ"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("-binary", "-noattr"), "signed-attributes-missing"),
        (("-binary", "-nodetach"), "signature-not-detached"),
        (("-binary", "-nocerts"), "certificate-missing"),
        (("-binary", "-md", "sha1"), "digest-not-allowed"),
        (("-binary", "-md", "md5"), "digest-not-allowed"),
        (("-binary", "-signer", "bob.crt", "-inkey", "bob.key"), "signer-count"),
        (("-binary", "-stream", "-nodetach"), "signature-malformed"),
        (("-binary", "-econtent_type", "1.2.3.4"), "signature-malformed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_other_forms_that_openssl_makes_are_refused(site: Site, options: Sequence[str], code: str) -> None:
    site.image.write_bytes(site.image.read_bytes()[:4000])
    site.sign_cms(*options)
    assert site.verify(code=77)["code"] == code


def test_the_answers_of_image_verify(site: Site) -> None:
    crl = site.base / "certificates" / f"{CA.subject_hash}.r0"
    assert site.verify(code=77)["code"] == "not-signed"
    site.sign_cms(*DOCUMENTED, who="bob")
    refused = site.verify(code=77)
    assert (refused["code"], refused["signer"]) == ("not-a-builder", "CN=Bob Example,O=People,DC=TestGrid,DC=org")
    site.sign_cms(*DOCUMENTED, who="revoked")
    assert site.verify(code=77)["code"] == "signer-revoked"
    site.sign_cms(*DOCUMENTED)
    assert site.verify("--user", "mallory", code=77)["code"] == "runner-not-allowed"
    assert site.verify("--name", "other", code=77)["code"] == "builder-not-for-image"
    crl.write_bytes(CA.crl(until=-signing.datetime.resolution))
    assert site.verify(code=75)["code"] == "crl-expired"
    crl.unlink()
    assert site.verify(code=75)["code"] == "crl-missing"
    crl.write_bytes(CA.crl())
    (site.base / "trust.toml").write_text("version = 1\nunknown = 1\n")
    assert site.verify(code=78)["code"] == "policy-invalid"
    assert site.verify(code=64, image=site.base / "absent")["code"] == "image-unreadable"
    assert site.verify("--signature", "/nonexistent", code=64)["code"] == "file-unreadable"


def test_a_policy_that_anybody_can_write_is_not_believed(site: Site) -> None:
    site.sign_cms(*DOCUMENTED)
    if os.geteuid() == 0:
        (site.base / "trust.toml").chmod(0o666)
        assert site.verify(code=78)["code"] == "config-unsafe"


def test_mutants_of_a_signature_never_pass_for_another_image(site: Site) -> None:
    """The oracle is what is accepted: most single-bit mutants still parse (reference/trust-and-images.md 7)."""
    original = site.sign_cms(*DOCUMENTED)
    image = site.image.read_bytes()
    digests = {"sha256": hashlib.sha256(image).digest()}
    changed = {one: hashlib.new(one, image[:-1] + b"?").digest() for one in ("sha256", "sha384", "sha512")}
    anchors = TrustAnchors((CA.pem,), (CA.crl(),))
    policy = parse_policy(
        rules(site.base).replace("[defaults]", '[defaults]\nnamespaces = "ignore"').encode(), source="trust.toml"
    )
    accepted = 0
    bits = random.sample(range(len(original) * 8), 1500)
    for bit in bits:
        mutant = bytearray(original)
        mutant[bit // 8] ^= 1 << bit % 8
        files = SignatureFiles("cms", bytes(mutant))
        try:
            claim = check_claim(
                files, anchors=anchors, policy=policy, image_name="vm_image", user=None, partition="", at=NOW
            )
        except LrmsVmError as error:
            assert error.code
            continue
        with pytest.raises(LrmsVmError):
            check_bytes(claim, digests=changed, size_bytes=len(image))
        endorsement = check_bytes(claim, digests=digests | changed | digests, size_bytes=len(image))
        assert endorsement.signer == "CN=Alice Example,O=People,DC=TestGrid,DC=org"
        accepted += 1
    assert accepted <= 20, "only corners that nobody signs may change: version numbers, NULLs"


def test_a_key_with_a_password_is_not_asked_for_without_a_terminal(site: Site) -> None:
    pem = ALICE.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (site.base / "locked.key").write_bytes(pem)
    site.lrms_vm("sign", site.image, "--cert", site.base / "alice.crt", "--key", site.base / "locked.key", code=64)
    site.lrms_vm("sign", site.image, "--cert", site.base / "alice.crt", "--key", site.base / "bob.key", code=64)
    site.lrms_vm(
        "sign", site.base / "absent", "--cert", site.base / "alice.crt", "--key", site.base / "alice.key", code=64
    )
    assert not Path(f"{site.image}.p7s").exists()
