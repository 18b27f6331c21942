"""Reading a CA directory: what is believed, and what is too much."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lrms_vm import anchors as reader
from lrms_vm.anchors import read_anchors
from lrms_vm.errors import ConfigError

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


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "absent", "0123abcd.r1"])
def test_a_link_that_leaves_or_leads_nowhere_is_not_followed(directory: Path, target: str) -> None:
    (directory.parent / "outside").write_bytes(b"")
    (directory / "0123abcd.r1").symlink_to(target)
    assert refused(directory) == "ca-dir-unsafe"


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
def test_what_others_can_write_is_not_believed(directory: Path) -> None:
    assert read_anchors(directory).certificates
    for path, mode in ((directory / "Test-CA.pem", 0o666), (directory, 0o777), (directory.parent, 0o777)):
        old = path.stat().st_mode
        path.chmod(mode)
        assert refused(directory, root=True) == "ca-dir-unsafe"
        path.chmod(old)
    os.chown(directory / "0123abcd.r0", 12345, 0)
    assert refused(directory, root=True) == "ca-dir-unsafe"
