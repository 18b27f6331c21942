"""Image files that want to be something else, each refused by name, end to end through the cache.

Numbers are those of the threat list in reference/trust-and-images.md. Every file here is properly signed: the builder
is hostile, or was fooled. C100 to C102 (grub menus) have no test: nothing on the host reads a boot loader's files.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import socket
import struct
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lrms_vm import cache, lease
from lrms_vm.errors import LrmsVmError, RequestError
from lrms_vm.fetch import Fetch
from lrms_vm.image import ImageEntry
from lrms_vm.paths import Places
from tests.cache_fakes import FakeDecide, acquire, leftovers, places_at
from tests.hostile.qcow2_files import DEFECTS, defect

CANARY = b"the canary's secret\n"
BOTH = ("raw", "qcow2")


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return places_at(tmp_path)


def signed(path: Path, *, digest_of: bytes | None = None) -> ImageEntry:
    """The entry of a file, its signature elsewhere: beside it there may be no place."""
    signature = path.with_name("signature.p7s") if path.parent.is_dir() else path
    content = path.read_bytes() if digest_of is None else digest_of
    signature.write_text(f"sha256 {hashlib.sha256(content).hexdigest()}")
    return ImageEntry(name="hep", url=str(path), signature_url=str(signature))


def refusal(places: Places, entry: ImageEntry, formats: tuple[str, ...] = BOTH, **more: object) -> str:
    """Why the cache does not take it; and that nothing of it stays."""
    with pytest.raises(LrmsVmError) as caught:
        acquire(places, Fetch(), entry=entry, decide=FakeDecide(formats=formats), **more)  # type: ignore[arg-type]
    assert isinstance(caught.value, RequestError), caught.value
    assert (leftovers(places), cache.entries(places), list(lease.leases(places))) == ([], [], [])
    return caught.value.code


def make(path: Path, *options: str, size: str = "64M") -> Path:
    subprocess.run(["qemu-img", "create", "-q", *options, str(path), size], check=True, capture_output=True)
    return path


def qemu_img(*words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True)


# --- C80 to C98: qcow2 with a defect


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defective_qcow2_is_refused_by_name(places: Places, tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.qcow2"
    path.write_bytes(defect(name))
    assert refusal(places, signed(path)) == DEFECTS[name][2]


@pytest.mark.parametrize("name", ["backing-passwd", "data-file", "encrypted-luks", "virtual-1-pib"])
def test_where_policy_takes_raw_only_no_qcow2_is_even_looked_into(places: Places, tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.qcow2"
    path.write_bytes(defect(name))
    assert refusal(places, signed(path), ("raw",)) == "image-not-raw"


def _backing(path: Path) -> None:
    canary = path.with_name("canary")
    canary.write_bytes(CANARY * 1000)
    make(path, "-f", "qcow2", "-F", "raw", "-b", str(canary))


def _chain(path: Path) -> None:
    base = make(path.with_name("0.qcow2"), "-f", "qcow2")
    for number in range(1, 20):
        base = make(path.with_name(f"{number}.qcow2"), "-f", "qcow2", "-F", "qcow2", "-b", str(base))
    base.rename(path)


def _data_file(path: Path) -> None:
    make(path, "-f", "qcow2", "-o", f"data_file={path.with_name('canary')}")


def _snapshot(path: Path) -> None:
    make(path, "-f", "qcow2")
    qemu_img("snapshot", "-c", "with-state", path)


def _encrypted(path: Path) -> None:
    secret = ("--object", "secret,id=s,data=x", "-o", "encrypt.format=aes,encrypt.key-secret=s")
    make(path, "-f", "qcow2", *secret)


def _bitmap(path: Path) -> None:
    make(path, "-f", "qcow2")
    qemu_img("bitmap", "--add", "-f", "qcow2", path, "b")


def _zeros(path: Path) -> None:
    raw = path.with_name("zeros")
    with raw.open("wb") as file:
        for _ in range(64):
            file.write(bytes([1]) * (1 << 20))
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, path)
    raw.unlink()


@pytest.mark.parametrize(
    ("made", "code"),
    [
        (_backing, "qcow2-backing-file"),
        (_chain, "qcow2-backing-file"),
        (_data_file, "qcow2-data-file"),
        (_snapshot, "qcow2-snapshots"),
        (_encrypted, "qcow2-encrypted"),
        (_bitmap, "qcow2-feature"),
        (lambda path: make(path, "-f", "qcow2", "-o", "compression_type=zstd"), "qcow2-feature"),
        (lambda path: make(path, "-f", "qcow2", "-o", "extended_l2=on"), "qcow2-feature"),
        (lambda path: make(path, "-f", "qcow2", "-o", "refcount_bits=64"), "qcow2-feature"),
        (lambda path: make(path, "-f", "qcow2", "-o", "cluster_size=2M", size="1P"), "image-virtual-too-large"),
        (_zeros, "image-ratio"),
    ],
)
def test_what_qemu_makes_of_it_is_refused_by_name(
    places: Places, tmp_path: Path, made: Callable[[Path], object], code: str
) -> None:
    path = tmp_path / "image.qcow2"
    made(path)
    assert refusal(places, signed(path)) == code


# --- C87, C91, C92: other formats, said to be raw


@pytest.mark.parametrize(
    ("format", "options"),
    [
        *(("qcow", ""), ("vdi", ""), ("vhdx", ""), ("qed", ""), ("parallels", ""), ("vpc", "subformat=dynamic")),
        *(("vpc", "subformat=fixed"), ("vdi", "static=on"), ("vhdx", "subformat=fixed")),
        *(("vmdk", f"subformat={one}") for one in ("monolithicSparse", "streamOptimized", "monolithicFlat")),
        *(("vmdk", f"subformat={one}") for one in ("twoGbMaxExtentSparse", "twoGbMaxExtentFlat")),
    ],
)
def test_another_format_is_refused_by_name(places: Places, tmp_path: Path, format: str, options: str) -> None:
    path = make(tmp_path / "image.raw", "-f", format, *(["-o", options] if options else []), size="8M")
    with pytest.raises(RequestError, match={"vpc": "vhd"}.get(format, format)):
        acquire(places, Fetch(), entry=signed(path), decide=FakeDecide(formats=BOTH))
    assert refusal(places, signed(path)) == "image-not-raw"


VMDK = """# Disk DescriptorFile
version=1
CID=fffffffe
parentCID=ffffffff
createType="monolithicFlat"
RW 2048 FLAT "/etc/shadow" 0
"""


@pytest.mark.parametrize("text", [VMDK, VMDK.partition("\n")[2], "#x\n\n" + VMDK, VMDK.replace("\n", "\r\n")])
def test_a_vmdk_descriptor_that_names_a_host_file_is_refused(places: Places, tmp_path: Path, text: str) -> None:
    path = tmp_path / "image.raw"
    path.write_text(text)
    with path.open("r+b") as file:
        file.truncate(1 << 20)
    assert refusal(places, signed(path)) == "image-not-raw"


MBR = b"\xeb\x63\x90" + bytes(443) + b"\x80\x20\x21\x00\x83" + bytes(59) + b"\x55\xaa"
OVERLAP = MBR[:446] + struct.pack("<8B2I", *[0] * 4, 0xEE, *[0] * 3, 1, 9) * 2 + bytes(32) + b"\x55\xaaEFI PART"
MARKS = {
    "bochs": b"Bochs Virtual HD Image",
    "cloop": b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop",
    "dmg": bytes(4096) + b"koly\0\0\0\x04\0\0\x02\0" + bytes(500),
    "qcow2 that a guest wrote over its own disk": b"QFI\xfb\0\0\0\x03" + bytes(96) + b"/etc/shadow",
    "qcow-version-4": b"QFI\xfb\0\0\0\x04",
    "iso": bytes(32768) + b"\1CD001\1" + bytes(2048),
    "hybrid-iso": MBR + bytes(32256) + b"\1CD001\1" + bytes(2048),
    "luks1": b"LUKS\xba\xbe\0\1",
    "luks2": b"LUKS\xba\xbe\0\2",
    "squashfs": b"hsqs" + bytes(4092),
    "elf": b"\x7fELF" + bytes(4092),
}


@pytest.mark.parametrize("name", MARKS)
def test_a_mark_of_another_format_is_refused(places: Places, tmp_path: Path, name: str) -> None:
    path = tmp_path / "image.raw"
    path.write_bytes(MARKS[name].ljust(8192 if name != "dmg" else 0, b"\0"))
    assert refusal(places, signed(path), ("raw",)) == "image-not-raw"


def _tar(**members: dict[str, object]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, attributes in members.items():
            member = tarfile.TarInfo(name)
            for key, value in attributes.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return out.getvalue()


BOMBS = {
    "bz2-64-mib-in-79-bytes": bz2.compress(bytes(64 << 20)),
    "xz": lzma.compress(bytes(16 << 20)),
    "zstd-long-window": b"\x28\xb5\x2f\xfd\x00\xf8" + bytes(64),
    "gzip-in-gzip": gzip.compress(gzip.compress(bytes(16 << 20))),
    "ova-two-disks": _tar(**{"a.ovf": {"size": 3}, "a.vmdk": {"size": 9}, "b.vmdk": {"size": 9}}),
    "tar-dotdot": _tar(**{"../../etc/passwd": {"size": 3}}),
    "tar-absolute": _tar(**{"/etc/passwd": {"size": 3}}),
    "tar-link": _tar(**{"disk.raw": {"type": tarfile.SYMTYPE, "linkname": "/etc/shadow"}}),
    "tar-hard-link": _tar(**{"disk.raw": {"type": tarfile.LNKTYPE, "linkname": "/etc/shadow"}}),
    "tar-device": _tar(**{"disk.raw": {"type": tarfile.BLKTYPE, "devmajor": 8}}),
    "tar-of-many": _tar(**{f"{number}": {} for number in range(2000)}),
}


@pytest.mark.parametrize("name", BOMBS)
def test_nothing_is_ever_unpacked(places: Places, tmp_path: Path, name: str) -> None:
    path = tmp_path / "image.raw"
    path.write_bytes(BOMBS[name])
    start = time.monotonic()
    assert refusal(places, signed(path)) == "image-not-raw"
    assert time.monotonic() - start < 10.0


# --- C103, C104: what only the guest will read is the guest's affair


@pytest.mark.parametrize(
    "disk",
    {
        "mbr": MBR,
        "gpt-and-mbr-that-overlap": OVERLAP,
        "ext4-broken": bytes(1024) + b"\xff" * 56 + b"\x53\xef" + b"\xff" * 900,
        "xfs-broken": b"XFSB" + b"\xff" * 500,
        "random": os.urandom(100_000).replace(b"CD001", b"xxxxx"),
    }.items(),
    ids=lambda pair: pair[0],
)
def test_a_disk_that_is_broken_inside_is_taken_as_it_is(
    places: Places, tmp_path: Path, disk: tuple[str, bytes]
) -> None:
    path = tmp_path / "image.raw"
    path.write_bytes(disk[1].ljust(40_000, b"\0"))
    image = acquire(places, Fetch(), entry=signed(path))
    assert Path(image.path).read_bytes() == path.read_bytes()


# --- C96, C106, C107: what is no file of a sensible size


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(path) if len(str(path)) > 100 else str(path))


@pytest.mark.parametrize(
    "made",
    [
        _fifo,
        _socket,
        lambda path: path.mkdir(),
        lambda path: os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5)),  # /dev/zero
        lambda path: os.mknod(path, 0o600 | 0o060000, os.makedev(7, 99)),  # a block device that is not there
        lambda path: path.symlink_to("/etc/passwd"),
        lambda path: path.symlink_to(path),
    ],
    ids=["fifo", "socket", "directory", "endless device", "block device", "link", "loop"],
)
def test_what_is_no_file_is_refused_at_once(places: Places, tmp_path: Path, made: Callable[[Path], object]) -> None:
    path = tmp_path / "image.raw"
    made(path)
    start = time.monotonic()
    assert refusal(places, signed(path, digest_of=b"")) in ("image-not-a-file", "image-unreadable")
    assert time.monotonic() - start < 10.0


@pytest.mark.parametrize("path", ["/proc/self/mem", "/dev/zero", "/dev/stdin", "/proc/self/fd/0", "/proc/kmsg"])
def test_the_hosts_own_files_are_no_images(places: Places, tmp_path: Path, path: str) -> None:
    signature = tmp_path / "s.p7s"
    signature.write_text(f"sha256 {hashlib.sha256(b'').hexdigest()}")
    entry = ImageEntry(name="hep", url=path, signature_url=str(signature))
    start = time.monotonic()
    assert refusal(places, entry) in ("image-not-a-file", "image-unreadable", "image-empty")
    assert time.monotonic() - start < 10.0


def test_an_empty_file_is_refused(places: Places, tmp_path: Path) -> None:
    path = tmp_path / "image.raw"
    path.touch()
    assert refusal(places, signed(path)) == "image-empty"


def test_a_file_of_exbibytes_without_content_is_refused_at_once(places: Places, tmp_path: Path) -> None:
    path = tmp_path / "image.raw"
    path.touch()
    for exponent in (63, 60, 53, 44, 43):  # as large as the file system has them
        try:
            os.truncate(path, (1 << exponent) - 4096)
            break
        except OSError:
            continue
    assert path.stat().st_size > 1 << 42
    start = time.monotonic()
    assert refusal(places, signed(path, digest_of=b"")) == "image-too-large"
    assert time.monotonic() - start < 10.0


# --- the host's files stay the host's


def test_no_host_file_gets_into_the_cache(places: Places, tmp_path: Path) -> None:
    """tests/contract/test_convert.py shows that the sandbox alone would be enough, too."""
    path = tmp_path / "image.qcow2"
    _backing(path)
    refusal(places, signed(path))
    kept = [one.read_bytes() for one in places.state_dir.rglob("*") if one.is_file()]
    assert not any(CANARY in content for content in kept)
