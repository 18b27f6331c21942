"""`policy check`, `policy explain` and `image verify --all`, as they are typed."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from lrms_vm.cli import main
from lrms_vm.signing import bare_signature, detached_cms
from tests.certs.make_certs import HOUR, Authority, Identity, name, person

NOW = datetime.now(UTC)
CA = Authority.root(name("Test CA"), at=NOW)
ALICE, BOB = CA.issue(person("Alice Example")), CA.issue(person("Bob Example"))
IMAGE = b"\0" * 1024 + b"a disk" * 100
RULES = """
[[builder]]
name = "alice"
issuer = "CN=Test CA,DC=TestGrid,DC=org"
subject = "CN=Alice Example,O=People,DC=TestGrid,DC=org"
images = ["atlas*"]
signatures = ["cms", "dgst"]
[[runner]]
name = "production"
users = ["nobody"]
images = ["atlas*"]
partitions = ["grid"]
tier = "sealed"
[tiers.sealed]
max_mem = "2G"
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory with trust.toml, its CA directory and an image signed by Alice."""
    place = tmp_path / "certificates"
    place.mkdir()
    (place / f"{CA.subject_hash}.0").write_bytes(CA.pem)
    (place / f"{CA.subject_hash}.r0").write_bytes(CA.crl())
    (place / f"{CA.subject_hash}.namespaces").write_text('TO Issuer SELF PERMIT Subject "/DC=org/DC=TestGrid/.*"')
    write(tmp_path, RULES)
    (tmp_path / "atlas.img").write_bytes(IMAGE)
    sign(tmp_path, ALICE)
    return tmp_path


def write(site: Path, rules: str, *, defaults: str = "") -> Path:
    path = site / "trust.toml"
    path.write_text(
        f'version = 1\n[defaults]\nca_dir = "{site}/certificates"\ncontact = "grid@example.org"\n{defaults}\n{rules}'
    )
    return path


def sign(site: Path, who: Identity, *, suffix: str = "p7s", image: bytes = IMAGE) -> None:
    digest = hashlib.sha256(image).digest()
    made = (
        detached_cms(who.signer(), digest, "sha256", NOW)
        if suffix == "p7s"
        else bare_signature(who.signer(), digest, "sha256")
    )
    (site / f"atlas.img.{suffix}").write_bytes(made)
    (site / "atlas.img.crt").write_bytes(who.pem)


def checked(site: Path, capsys: pytest.CaptureFixture[str], exit_code: int) -> dict[str, Any]:
    """Findings by code."""
    assert main(["policy", "check", str(site / "trust.toml"), "--json"]) == exit_code
    answer = json.loads(capsys.readouterr().out)
    assert answer["good"] is (exit_code == 0)
    return {one["code"]: one for one in answer["findings"]}


def explain(site: Path, *words: str, user: str = "nobody", partition: str = "grid") -> int:
    target = ["explain", str(site / "atlas.img"), "--policy", str(site / "trust.toml")]
    return main(["policy", *target, "--user", user, "--partition", partition, *words])


class TestCheck:
    def test_a_policy_that_means_what_it_says_is_good(self, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert {one["level"] for one in checked(site, capsys, 0).values()} <= {"note", "warning"}

    def test_every_mistake_in_the_file_has_its_line(self, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = write(site, RULES + '[[runner]]\nname = "x"\nusers = ["*"]\nimages = ["*"]\ntier = "open"\nuser = 1\n')
        assert main(["policy", "check", str(path)]) == 78
        out = capsys.readouterr().out
        assert f"{path}:21: error: [[runner]] 2 tier: there is no [tiers.open] [policy-invalid]" in out
        assert f"{path}:21: error: [[runner]] 2 user: unknown key [policy-invalid]" in out

    def test_what_is_not_toml_is_told_so(self, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write(site, "[[builder")
        assert "policy-unreadable" in checked(site, capsys, 78)

    def test_no_such_file_is_a_usage_error(self, site: Path) -> None:
        assert main(["policy", "check", str(site / "absent.toml")]) == 64

    def test_a_file_that_others_can_write_is_told(self, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (site / "trust.toml").chmod(0o666)
        assert checked(site, capsys, 0)["config-unsafe"]["level"] == "warning"  # a draft may lie anywhere

    @pytest.mark.parametrize(
        ("crl", "code"), [(None, "crl-missing"), (CA.crl(until=-HOUR, since=-2 * HOUR), "crl-expired")]
    )
    def test_a_crl_that_a_builder_needs_is_an_error(
        self, site: Path, capsys: pytest.CaptureFixture[str], crl: bytes | None, code: str
    ) -> None:
        path = site / "certificates" / f"{CA.subject_hash}.r0"
        path.unlink() if crl is None else path.write_bytes(crl)
        found = checked(site, capsys, 78)[code]
        assert found["where"].endswith("trust.toml:7")
        assert "CN=Test CA" in found["message"] and "fetch-crl" in found["message"]

    def test_a_builders_ca_that_is_not_there_is_an_error(self, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write(site, RULES.replace("CN=Test CA", "CN=Tset CA"))
        assert "openssl x509" in checked(site, capsys, 78)["ca-missing"]["message"]

    def test_no_ca_directory_is_an_error(self, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (site / "certificates").rename(site / "elsewhere")
        assert "ca-dir-missing" in checked(site, capsys, 78)

    def test_a_mapfile_that_cannot_be_read_is_an_error(self, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (site / "groupmapfile").write_text("one two three\n")
        rules = RULES.replace('users = ["nobody"]', 'fqan = ["/atlas"]')
        write(site, rules, defaults=f'voms_mapfile = "{site}/groupmapfile"')
        assert "line 1" in checked(site, capsys, 78)["mapfile-unreadable"]["message"]


class TestExplain:
    def test_both_rules_the_tier_and_the_end_are_told(self, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert explain(site) == 0
        out = capsys.readouterr().out
        for words in (
            f"builder    rule 'alice' ({site}/trust.toml:7)",
            f"runner     rule 'production' ({site}/trust.toml:13)",
            "tier       sealed: network none, memory 2048 MiB",
            "directories of the host: work_dir, root inside: no",
            f"until      {CA.certificate.not_valid_after_utc:%Y}"[:11],
            "bytes      not read here",
        ):
            assert words in out

    def test_for_machines(self, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert explain(site, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["accepted"], found["builder"], found["runner"], found["tier"]) == (
            True,
            "alice",
            "production",
            "sealed",
        )

    def test_of_a_refused_user_the_nearest_rule_is_told_and_whom_to_ask(
        self, site: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert explain(site, user="games") == 77
        out = capsys.readouterr().out
        assert "builder    rule 'alice'" in out
        assert f"the nearest rule, 'production' ({site}/trust.toml:13), is for other users" in out
        assert "what next  ask grid@example.org" in out
        assert explain(site, partition="debug") == 77
        assert "is for grid only, of the partitions" in capsys.readouterr().out

    def test_a_builder_in_audit_would_accept_and_does_not(self, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write(site, RULES.replace('name = "alice"', 'name = "alice"\naudit = true'))
        assert explain(site, "--json") == 77
        found = json.loads(capsys.readouterr().out)
        assert found["code"] == "builder-in-audit"
        assert f"'alice' ({site}/trust.toml:7)" in found["reason"] and "Alice Example" in found["reason"]

    def test_without_a_crl_nobody_can_tell(self, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (site / "certificates" / f"{CA.subject_hash}.r0").unlink()
        assert explain(site) == 75
        assert "refused    crl-missing" in capsys.readouterr().out


class TestVerifyAll:
    def verify(self, site: Path, *words: str) -> int:
        target = [str(site / "atlas.img"), "--policy", str(site / "trust.toml")]
        return main(["image", "verify", "--all", *target, *words])

    def test_every_signature_is_told_and_the_first_counts(self, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
        sign(site, BOB, suffix="sha256")
        assert self.verify(site) == 0
        first, second = capsys.readouterr().out.splitlines()
        assert "atlas.img.p7s: accepted (a job looks at this one): signed by CN=Alice Example" in first
        assert "atlas.img.sha256: not-a-builder: CN=Bob Example" in second

    def test_a_good_second_signature_does_not_help(self, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
        sign(site, ALICE, suffix="sha256")
        sign(site, ALICE, image=b"another")
        assert self.verify(site, "--json") == 77
        found = json.loads(capsys.readouterr().out)["signatures"]
        assert [one["code"] for one in found] == ["bytes-differ", "accepted"]

    def test_an_unsigned_image_is_not_signed(self, site: Path) -> None:
        (site / "atlas.img.p7s").unlink()
        assert self.verify(site) == 77
