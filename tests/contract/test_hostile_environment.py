"""What a job's environment could tell root's programs, and does not: cases C142, C151 and C152 of tests/hostile/README.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lrms_vm.signing import load_signer, sign_image
from tests.certs.make_certs import Authority, Identity, ec_key, name, person

NOW = datetime.now(UTC)
CA = Authority.root(name("Test CA"), at=NOW)
EVIL = Authority.root(name("Test CA"), at=NOW, key=ec_key(66))
is_root = pytest.mark.skipif("os.geteuid() != 0", reason="only root has hooks")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """An image by Alice, a policy that names her, the real CA's directory, and another's."""
    for directory, ca in (("certificates", CA), ("evil", EVIL)):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / f"{ca.subject_hash}.0").write_bytes(ca.pem)
        (tmp_path / directory / f"{ca.subject_hash}.r0").write_bytes(ca.crl())
        permit = 'TO Issuer SELF PERMIT Subject ".*"\n'
        (tmp_path / directory / f"{ca.subject_hash}.namespaces").write_text(permit)
    (tmp_path / "trust.toml").write_text(
        f"""version = 1
[defaults]
ca_dir = "{tmp_path}/certificates"
[[builder]]
name = "alice"
issuer = "CN=Test CA,DC=TestGrid,DC=org"
subject = "CN=Alice Example,O=People,DC=TestGrid,DC=org"
images = ["*"]
"""
    )
    return tmp_path


def signed(site: Path, ca: Authority) -> Path:
    image = site / "disk.img"
    image.write_bytes(b"a disk" * 100)
    alice: Identity = ca.issue(person("Alice Example"))
    signer = load_signer(alice.pem, alice.key_pem, password=lambda: b"", at=NOW)
    sign_image(image, signer, form="cms", digest="sha256", at=NOW)
    return image


def code_of(site: Path, image: Path, environ: dict[str, str], policy: Path | None = None) -> str:
    """As a hook calls it: isolated Python, but whatever environment it was given."""
    argv = [sys.executable, "-I", "-m", "lrms_vm", "image", "verify", str(image), "--json"]
    argv += ["--policy", str(policy or site / "trust.toml")]
    environment = {"PATH": "/usr/bin:/bin", **environ}
    done = subprocess.run(argv, env=environment, cwd=site, capture_output=True, text=True, timeout=60)
    return str(json.loads(done.stdout)["code"])


def test_without_any_of_it_the_answers_are_these(site: Path) -> None:
    assert code_of(site, signed(site, CA), {}) == "accepted"
    assert code_of(site, signed(site, EVIL), {}) in ("signer-untrusted", "signer-path-invalid", "crl-invalid")


@pytest.mark.parametrize(
    "variable", ["X509_CERT_DIR", "SSL_CERT_DIR", "SSL_CERT_FILE", "CURL_CA_BUNDLE", "X509_USER_PROXY"]
)
def test_c152_no_variable_names_other_cas(site: Path, variable: str) -> None:
    place = site / "evil"
    value = place / f"{EVIL.subject_hash}.0" if variable.endswith(("FILE", "BUNDLE", "PROXY")) else place
    assert code_of(site, signed(site, EVIL), {variable: str(value)}) != "accepted"
    assert code_of(site, signed(site, CA), {variable: str(value)}) == "accepted"


@is_root
def test_c151_no_variable_names_code_that_root_loads(site: Path) -> None:
    """OPENSSL_CONF may name a provider, which is a shared object: with it a job would be root."""
    marker = site / "marker"
    (site / "evil.c").write_text(
        "#include <fcntl.h>\n"
        f'__attribute__((constructor)) static void run(void) {{ open("{marker}", O_CREAT | O_WRONLY, 0600); }}\n'
    )
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", "evil.so", "evil.c"], cwd=site, check=True, timeout=60)
    (site / "evil.cnf").write_text(
        f"openssl_conf = a\n[a]\nproviders = b\n[b]\nevil = c\n[c]\nmodule = {site}/evil.so\nactivate = 1\n"
    )
    (site / "sitecustomize.py").write_text(f"open({str(marker)!r}, 'w')\n")
    (site / "hashlib.py").write_text(f"open({str(marker)!r}, 'w')\n")
    hostile = {
        "OPENSSL_CONF": f"{site}/evil.cnf",
        "OPENSSL_MODULES": str(site),
        "OPENSSL_ENGINES": str(site),
        "PYTHONPATH": str(site),
        "PYTHONSTARTUP": f"{site}/hashlib.py",
        "PYTHONHOME": str(site),
        "PYTHONINSPECT": "1",
        "BASH_ENV": f"{site}/hashlib.py",
    }
    assert code_of(site, signed(site, CA), hostile) == "accepted"
    assert not marker.exists()
    # That this test can fail at all: the same library without our door before it.
    subprocess.run(
        [sys.executable, "-c", "import hashlib; hashlib.sha256(b'')"],
        env={"OPENSSL_CONF": hostile["OPENSSL_CONF"]},
        timeout=60,
    )
    assert marker.exists()


@is_root
class TestC142ThePolicyFile:
    def test_one_that_others_can_write_is_not_believed(self, site: Path) -> None:
        image = signed(site, CA)
        for mode in (0o666, 0o620, 0o602):
            (site / "trust.toml").chmod(mode)
            assert code_of(site, image, {}) == "config-unsafe"

    def test_somebody_elses_is_not_believed(self, site: Path) -> None:
        image = signed(site, CA)
        os.chown(site / "trust.toml", 12345, 0)
        assert code_of(site, image, {}) == "config-unsafe"

    def test_a_link_is_not_followed_and_a_directory_or_pipe_is_no_file(self, site: Path) -> None:
        image = signed(site, CA)
        (site / "link.toml").symlink_to("trust.toml")
        os.mkfifo(site / "pipe.toml")
        for other in ("link.toml", "pipe.toml", "evil", "absent.toml"):
            assert code_of(site, image, {}, policy=site / other) in ("config-missing", "config-unsafe")

    def test_c146_one_of_ten_megabytes_is_not_read(self, site: Path) -> None:
        image = signed(site, CA)
        with open(site / "trust.toml", "ab") as file:
            file.write(b"#" * 10_000_000)
        assert code_of(site, image, {}) in ("config-unsafe", "policy-unreadable")

    def test_a_directory_above_that_others_can_write_is_not_believed(self, site: Path) -> None:
        image = signed(site, CA)
        (site / "open").mkdir()
        (site / "open").chmod(0o777)
        (site / "open" / "trust.toml").write_bytes((site / "trust.toml").read_bytes())
        assert code_of(site, image, {}, policy=site / "open" / "trust.toml") == "config-unsafe"
