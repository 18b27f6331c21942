"""Reading a CA directory: what is believed, and what is too much."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lrms_vm import anchors as reader
from lrms_vm.anchors import CaDirectory, read_anchors
from lrms_vm.errors import ConfigError
from tests.certs.make_certs import Authority, name, person

# Tests run as anybody, so ownership is asked for only where root runs them.
is_root = pytest.mark.skipif("os.geteuid() != 0", reason="only root has files of root")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    place = tmp_path / "certificates"
    place.mkdir(mode=0o755)
    (place / "Test-CA.pem").write_bytes(b"certificate")
    (place / "0123abcd.0").symlink_to("Test-CA.pem")
    (place / "0123abcd.r0").write_bytes(b"crl")
    (place / "0123abcd.namespaces").write_bytes(b"names")
    (place / "0123abcd.signing_policy").write_bytes(b"policy")
    (place / "README").write_bytes(b"no")
    return place


def refused(directory: Path, *, root: bool = False) -> str:
    with pytest.raises(ConfigError) as caught:
        read_anchors(directory, must_be_root_owned=root)
    return caught.value.code


def test_hash_names_are_read_and_others_are_not(directory: Path) -> None:
    found = read_anchors(directory, must_be_root_owned=False)
    assert (found.certificates, found.crls) == ((b"certificate",), (b"crl",))
    assert (found.namespaces, found.signing_policies) == ((("0123abcd", b"names"),), (("0123abcd", b"policy"),))
    assert found.source == str(directory)


def test_an_empty_directory_trusts_nobody(tmp_path: Path) -> None:
    assert read_anchors(tmp_path, must_be_root_owned=False).certificates == ()


def test_no_directory_is_a_configuration_error(tmp_path: Path) -> None:
    assert refused(tmp_path / "absent") == "ca-dir-missing"
    (tmp_path / "file").write_bytes(b"")
    assert refused(tmp_path / "file") == "ca-dir-missing"


@pytest.mark.parametrize("target", ["absent", "0123abcd.r1", "/", "/dev/zero"])
def test_a_link_that_leads_nowhere_or_to_no_file_is_not_followed(directory: Path, target: str) -> None:
    (directory / "0123abcd.r1").symlink_to(target)
    assert refused(directory) == "ca-dir-unsafe"


def test_links_to_where_debians_packages_keep_the_files_are_followed(directory: Path) -> None:
    kept = directory.parent / "igtf-policy"
    kept.mkdir()
    (kept / "Other-CA.pem").write_bytes(b"another certificate")
    (directory / "Other-CA.pem").symlink_to(kept / "Other-CA.pem")
    for old_and_new in ("11111111.0", "22222222.0"):
        (directory / old_and_new).symlink_to("Other-CA.pem")
    found = read_anchors(directory, must_be_root_owned=False)
    assert found.certificates == (b"certificate", b"another certificate")


def test_a_fifo_does_not_hold_us_up(directory: Path) -> None:
    os.mkfifo(directory / "0123abcd.1")
    assert refused(directory) == "ca-dir-unsafe"


def test_a_file_that_is_too_long_is_refused(directory: Path) -> None:
    os.truncate(directory / "0123abcd.r0", reader.MAX_BYTES["crl"] + 1)
    assert refused(directory) == "ca-dir-unsafe"


def test_too_many_files_are_refused(directory: Path) -> None:
    for number in range(reader.MAX_FILES + 1):
        (directory / f"{number:08x}.2").touch()
    assert refused(directory) == "ca-dir-unsafe"


@is_root
def test_a_link_to_where_others_can_write_is_not_believed(directory: Path) -> None:
    kept = directory.parent / "kept"
    kept.mkdir(mode=0o755)
    (kept / "crl").write_bytes(b"another crl")
    (directory / "0123abcd.r1").symlink_to(kept / "crl")
    assert read_anchors(directory).crls == (b"crl", b"another crl")
    kept.chmod(0o777)
    assert refused(directory, root=True) == "ca-dir-unsafe"


class TestOnlyWhatIsAbove:
    """A job's decision reads the files of its signer's CAs and no others."""

    NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
    ROOT = Authority.root(name("Root CA"), at=NOW)
    SUB = ROOT.sub(name("Sub CA"))
    ALICE = SUB.issue(person("Alice Example"))

    @pytest.fixture
    def certificates(self, tmp_path: Path) -> Path:
        place = tmp_path / "certificates"
        place.mkdir(mode=0o755)
        for ca in (self.ROOT, self.SUB):
            (place / f"{ca.subject_hash}.0").write_bytes(ca.pem)
            (place / f"{ca.subject_hash}.r0").write_bytes(ca.crl())
            (place / f"{ca.subject_hash}.namespaces").write_bytes(ca.subject_hash.encode())
            (place / f"{ca.subject_hash}.crl_url").write_bytes(b"http://ca.example.org/crl")
            (place / f"{ca.subject_hash}.info").write_bytes(b"alias = x")
        os.mkfifo(place / "0123abcd.0")  # another CA's file, that nobody could read
        return place

    def test_the_whole_path_is_read(self, certificates: Path) -> None:
        found = CaDirectory(certificates, must_be_root_owned=False).above([self.ALICE.certificate])
        assert set(found.certificates) == {self.ROOT.pem, self.SUB.pem}
        assert len(found.crls) == 2
        assert {stem for stem, _ in found.namespaces} == {self.ROOT.subject_hash, self.SUB.subject_hash}
        assert refused(certificates) == "ca-dir-unsafe"

    def test_a_sub_ca_that_came_with_the_signature_is_looked_up_too(self, certificates: Path) -> None:
        (certificates / f"{self.SUB.subject_hash}.0").unlink()
        found = CaDirectory(certificates, must_be_root_owned=False).above(
            [self.ALICE.certificate, self.SUB.certificate]
        )
        assert found.certificates == (self.ROOT.pem,)
        assert len(found.crls) == 2

    def test_of_an_unknown_ca_there_is_nothing(self, certificates: Path) -> None:
        other = Authority.root(name("Other CA"), at=self.NOW).issue(person("Alice Example"))
        found = CaDirectory(certificates, must_be_root_owned=False).above([other.certificate])
        assert (found.certificates, found.crls, found.namespaces) == ((), (), ())


@is_root
def test_what_others_can_write_is_not_believed(directory: Path) -> None:
    assert read_anchors(directory).certificates
    for path, mode in ((directory / "Test-CA.pem", 0o666), (directory, 0o777), (directory.parent, 0o777)):
        old = path.stat().st_mode
        path.chmod(mode)
        assert refused(directory, root=True) == "ca-dir-unsafe"
        path.chmod(old)
    os.chown(directory / "0123abcd.r0", 12345, 0)
    assert refused(directory, root=True) == "ca-dir-unsafe"
