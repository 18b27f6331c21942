"""Both ways with `openssl cms`, `openssl smime`, `openssl dgst` and `openssl pkeyutl`: every key and digest that we allow.

What the command line of `lrms-vm image verify` says of such files is in test_trust_openssl.py.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from lrms_vm.errors import LrmsVmError
from lrms_vm.signing import bare_signature, detached_cms
from lrms_vm.trust import cms
from lrms_vm.trust.policy import parse_policy
from lrms_vm.trust.verify import SignatureFiles, TrustAnchors, check_bytes, check_claim
from tests.certs.make_certs import Authority, Identity, ec_key, ed25519_key, name, person, rsa_key
from tests.hostile.mutants import joined, signer_info, taken_apart

NOW = datetime.now(UTC)
IMAGE = b"\0" * 512 + random.Random(5).randbytes(1 << 16)
CA = Authority.root(name("Test CA"), at=NOW, key=rsa_key(number=7))
SUB = CA.sub(name("Sub CA"), key=ec_key(1001))
WHO: dict[str, Identity] = {
    "rsa": CA.issue(person("Alice Example"), key=rsa_key()),
    "rsa4096": CA.issue(person("Alice Example"), key=rsa_key(4096)),
    "p256": CA.issue(person("Alice Example"), key=ec_key(1)),
    "p384": CA.issue(person("Alice Example"), key=ec_key(2, ec.SECP384R1())),
    "p521": CA.issue(person("Alice Example"), key=ec_key(3, ec.SECP521R1())),
    "sub": SUB.issue(person("Alice Example"), key=rsa_key(number=2)),
    "ed25519": CA.issue(person("Alice Example"), key=ed25519_key()),
}
SIGNING = [who for who in WHO if who != "ed25519"]  # openssl 3.0: "no default digest" for Ed25519
DIGESTS = ("sha256", "sha384", "sha512")
ANCHORS = TrustAnchors((CA.pem,), (CA.crl(), SUB.crl()))
RULES = "".join(
    f"""[[builder]]
name = "{ca}"
issuer = "CN={ca},DC=TestGrid,DC=org"
subject = "CN=Alice Example,O=People,DC=TestGrid,DC=org"
images = ["*"]
signatures = ["cms", "dgst"]
"""
    for ca in ("Test CA", "Sub CA")
)
POLICY = parse_policy(f'version = 1\n[defaults]\nnamespaces = "ignore"\n{RULES}'.encode(), source="trust.toml")


@dataclass(frozen=True)
class Site:
    base: Path

    def openssl(self, *words: str) -> bytes:
        done = subprocess.run(
            ["openssl", *words], cwd=self.base, capture_output=True, timeout=60, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, (words, done.stderr.decode())
        return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    base = tmp_path_factory.mktemp("interop")
    for who, identity in WHO.items():
        (base / f"{who}.crt").write_bytes(identity.pem)
        (base / f"{who}.key").write_bytes(identity.key_pem)
    (base / "sub_ca.crt").write_bytes(SUB.pem)
    (base / "ca.pem").write_bytes(b"".join((CA.pem, *ANCHORS.crls)))
    (base / "image").write_bytes(IMAGE)
    return Site(base)


def answer(files: SignatureFiles, image: bytes = IMAGE) -> str:
    try:
        claim = check_claim(
            files, anchors=ANCHORS, policy=POLICY, image_name="x", user=None, partition="", at=datetime.now(UTC)
        )
        digests = {one: hashlib.new(one, image).digest() for one in DIGESTS}
        check_bytes(claim, digests=digests, size_bytes=len(image))
    except LrmsVmError as error:
        return error.code
    return "accepted"


def agreed(p7s: bytes) -> bool:
    """Accepted for this image and no other."""
    files = SignatureFiles("cms", p7s)
    return (answer(files), answer(files, IMAGE + b"\0")) == ("accepted", "bytes-differ")


OPTIONS: dict[str, Sequence[str]] = {
    "plain": (),
    "cades": ("-cades", "-nosmimecap"),
    "keyid": ("-keyid",),
    "chain": ("-certfile", "sub_ca.crt"),
}


class TestTheirsByUs:
    @pytest.mark.parametrize("digest", DIGESTS)
    @pytest.mark.parametrize("who", SIGNING)
    def test_cms(self, site: Site, who: str, digest: str) -> None:
        for number, (kind, options) in enumerate(OPTIONS.items()):
            if who == "sub" and kind != "chain":
                continue  # whose CA in between must come along
            form = ("DER", "PEM")[number % 2]
            words = ("-in", "image", "-signer", f"{who}.crt", "-inkey", f"{who}.key", "-outform", form)
            p7s = site.openssl("cms", "-sign", "-binary", "-md", digest, *options, *words)
            assert agreed(p7s), (kind, form)

    @pytest.mark.parametrize("digest", DIGESTS)
    def test_cms_with_pss(self, site: Site, digest: str) -> None:
        pss = ("-keyopt", "rsa_padding_mode:pss", "-keyopt", "rsa_pss_saltlen:digest")
        signer = ("-signer", "rsa.crt", "-inkey", "rsa.key", *pss)
        assert agreed(
            site.openssl("cms", "-sign", "-binary", *signer, "-md", digest, "-in", "image", "-outform", "DER")
        )

    def test_cms_with_another_pss_salt_is_refused(self, site: Site) -> None:
        pss = ("-keyopt", "rsa_padding_mode:pss", "-keyopt", "rsa_pss_saltlen:max")
        signer = ("-signer", "rsa.crt", "-inkey", "rsa.key", *pss)
        p7s = site.openssl("cms", "-sign", "-binary", *signer, "-md", "sha256", "-in", "image", "-outform", "DER")
        assert answer(SignatureFiles("cms", p7s)) == "signature-algorithm-not-allowed"

    @pytest.mark.parametrize("digest", DIGESTS)
    @pytest.mark.parametrize("form", ["DER", "PEM"])
    @pytest.mark.parametrize("who", ["rsa", "rsa4096", "sub"])
    def test_smime(self, site: Site, who: str, form: str, digest: str) -> None:
        """EC keys make a PKCS#7 with id-ecPublicKey for the signature's algorithm: see the next."""
        words = ("-in", "image", "-signer", f"{who}.crt", "-inkey", f"{who}.key", "-outform", form)
        chain = ("-certfile", "sub_ca.crt")
        assert agreed(site.openssl("smime", "-sign", "-binary", "-md", digest, *chain, *words))

    @pytest.mark.parametrize("who", ["p256", "p384", "p521"])
    def test_smime_with_ec(self, site: Site, who: str) -> None:
        words = ("-in", "image", "-signer", f"{who}.crt", "-inkey", f"{who}.key", "-outform", "DER")
        assert agreed(site.openssl("smime", "-sign", "-binary", "-md", "sha256", *words))

    @pytest.mark.parametrize("digest", DIGESTS)
    @pytest.mark.parametrize("who", SIGNING)
    def test_dgst(self, site: Site, who: str, digest: str) -> None:
        signed = site.openssl("dgst", f"-{digest}", "-sign", f"{who}.key", "image")
        pem = WHO[who].pem + (SUB.pem if who == "sub" else b"")
        files = SignatureFiles("dgst", signed, digest, pem)
        assert (answer(files), answer(files, IMAGE[:-1])) == ("accepted", "bytes-differ")

    def test_ed25519_by_pkeyutl(self, site: Site) -> None:
        """The attributes signed by hand: openssl 3.0 has the key but no CMS for it."""
        tree = taken_apart(detached_cms(WHO["ed25519"].signer(), hashlib.sha512(IMAGE).digest(), "sha512", NOW))
        info = signer_info(tree)[1]
        (site.base / "attributes").write_bytes(b"\x31" + joined(next(one for one in info if one[0] == 0xA0))[1:])
        info[-1][1] = site.openssl("pkeyutl", "-sign", "-rawin", "-inkey", "ed25519.key", "-in", "attributes")
        assert agreed(joined(tree))


class TestOursByThem:
    @pytest.mark.parametrize("digest", DIGESTS)
    @pytest.mark.parametrize("who", SIGNING)
    def test_cms_and_smime(self, site: Site, who: str, digest: str) -> None:
        chain = (SUB.certificate,) if who == "sub" else ()
        p7s = detached_cms(WHO[who].signer(*chain), hashlib.new(digest, IMAGE).digest(), digest, NOW)
        (site.base / "p7s").write_bytes(p7s)
        check = ("-inform", "DER", "-in", "p7s", "-content", "image", "-CAfile", "ca.pem", "-out", os.devnull)
        site.openssl("cms", "-verify", "-binary", "-purpose", "any", "-crl_check_all", "-x509_strict", "-cades", *check)
        site.openssl("smime", "-verify", "-binary", *check)
        printed = site.openssl("cms", "-cmsout", "-print", "-inform", "DER", "-in", "p7s", "-noout").decode()
        assert "signingTime" in printed and "signingCertificateV2" in printed
        assert site.openssl("cms", "-cmsout", "-inform", "DER", "-in", "p7s", "-outform", "DER") == p7s  # it is DER

    @pytest.mark.parametrize("digest", DIGESTS)
    @pytest.mark.parametrize("who", SIGNING)
    def test_dgst(self, site: Site, who: str, digest: str) -> None:
        signed = bare_signature(WHO[who].signer(), hashlib.new(digest, IMAGE).digest(), digest)
        (site.base / "signature").write_bytes(signed)
        (site.base / "public").write_bytes(site.openssl("x509", "-in", f"{who}.crt", "-pubkey", "-noout"))
        assert b"OK" in site.openssl("dgst", f"-{digest}", "-verify", "public", "-signature", "signature", "image")

    def test_ed25519_by_pkeyutl(self, site: Site) -> None:
        found = cms.parse(detached_cms(WHO["ed25519"].signer(), hashlib.sha512(IMAGE).digest(), "sha512", NOW))
        (site.base / "attributes").write_bytes(found.signed_bytes)
        (site.base / "signature").write_bytes(found.value)
        words = ("-rawin", "-certin", "-inkey", "ed25519.crt", "-in", "attributes", "-sigfile", "signature")
        assert b"Verified" in site.openssl("pkeyutl", "-verify", *words)


def test_a_key_for_pss_alone_is_refused_whatever_it_signs(site: Site) -> None:
    """Its certificate says with which digest and salt only; the library that we verify with does not look."""
    (site.base / "sub_ca.key").write_bytes(CA.key_pem)
    (site.base / "root.crt").write_bytes(CA.pem)
    site.openssl("genpkey", "-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "pss.key")
    (site.base / "extensions").write_text("keyUsage=critical,digitalSignature\nsubjectKeyIdentifier=hash\n")
    issued = ("-CA", "root.crt", "-CAkey", "sub_ca.key", "-set_serial", "4711", "-days", "2", "-extfile", "extensions")
    subject = ("-subj", "/DC=org/DC=TestGrid/O=People/CN=Alice Example")
    site.openssl("req", "-new", "-key", "pss.key", *subject, "-out", "pss.csr")
    site.openssl("x509", "-req", "-in", "pss.csr", *issued, "-out", "pss.crt")
    words = ("-in", "image", "-signer", "pss.crt", "-inkey", "pss.key", "-outform", "DER")
    p7s = site.openssl("cms", "-sign", "-binary", "-md", "sha256", *words)
    assert answer(SignatureFiles("cms", p7s)) in ("weak-key", "signature-algorithm-not-allowed")
    certificate = (site.base / "pss.crt").read_bytes()
    assert answer(SignatureFiles("dgst", b"x" * 256, "sha256", certificate)) == "weak-key"
