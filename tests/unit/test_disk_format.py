"""Formats by their bytes: everything that has a mark is not raw; disks of all kinds are."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrms_vm.disk_format import HEAD_BYTES, TAIL_BYTES, detect, require_raw
from lrms_vm.errors import RequestError

BOOT_CODE = b"\xeb\x63\x90" + bytes(range(256)) + bytes(range(187))  # jump over the parameters, as grub does
MBR = BOOT_CODE[:446] + b"\x80\x20\x21\x00\x83" + bytes(59) + b"\x55\xaa"
GPT = (
    BOOT_CODE[:446]
    + b"\0\0\2\0\xee\xff\xff\xff\1\0\0\0\xff\xff\xff\xff"
    + bytes(48)
    + b"\x55\xaa"
    + b"EFI PART\0\0\1\0"
)
EXT4 = bytes(1024 + 56) + b"\x53\xef" + bytes(900)


def vhd_footer() -> bytes:
    footer = bytearray(b"conectix" + struct.pack(">IIQI4s", 2, 0x10000, 0xFFFFFFFFFFFFFFFF, 0, b"qemu") + bytes(480))[
        :512
    ]
    struct.pack_into(">I", footer, 64, ~sum(footer) & 0xFFFFFFFF)
    return bytes(footer)


def tar(name: bytes = b"disk.raw") -> bytes:
    header = bytearray(512)
    header[: len(name)] = name
    header[100:136] = b"0000644\x000000000\x000000000\x0000000001000"
    header[148:156] = b" " * 8
    header[257:265] = b"ustar\x0000"
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def at(offset: int, mark: bytes, first: bytes = b"") -> bytes:
    return first.ljust(offset, b"\0") + mark


HEADS = {
    "qcow": b"QFI\xfb\0\0\0\x01",
    "qcow2": b"QFI\xfb\0\0\0\x03",
    "qcow of a version that is not known": b"QFI\xfb\0\0\0\x04",
    "vmdk": b"KDMV\1\0\0\0",
    "vmdk ": b"COWD",
    "vmdk  ": b"# Disk DescriptorFile\nversion=1\nextent",
    "vmdk   ": b'# comment\n \n#another\r\nversion=3\nRW 1 FLAT "/etc/passwd" 0\n',
    "vhd": b"conectix\0\0\0\2",
    "vhdx": b"vhdxfile",
    "vdi": at(64, b"\x7f\x10\xda\xbe\1\0\1\0", b"<<< Oracle VM VirtualBox Disk Image >>>\n"),
    "qed": b"QED\0",
    "parallels": b"WithoutFreeSpace",
    "parallels ": b"WithouFreSpacExt",
    "bochs": b"Bochs Virtual HD Image\0",
    "cloop": b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n",
    "luks": b"LUKS\xba\xbe\0\2",
    "squashfs": b"hsqs",
    "an ELF program": b"\x7fELF\2\1\1",
    "gzip": b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x4b\x04",
    "bzip2": b"BZh91AY&SY",
    "bzip2 ": b"BZh9\x17rE8P\x90",
    "xz": b"\xfd7zXZ\0\0\4",
    "zstd": b"\x28\xb5\x2f\xfd\x04",
    "zstd ": b"\x50\x2a\x4d\x18\4\0\0\0abcd\x28\xb5\x2f\xfd",
    "lz4": b"\x04\x22\x4d\x18\x64",
    "lzma": b"\x5d\0\0\x80\0" + b"\xff" * 8 + b"\0\1",
    "zip": b"PK\3\4",
    "7z": b"7z\xbc\xaf\x27\x1c",
    "tar": tar(),
    "ova": tar(b"appliance.ovf"),
    "iso9660": at(32769, b"CD001\1"),
    "iso9660 ": at(34817, b"CD001\1"),
    "iso9660   ": at(32769, b"BEA01\1"),
    "a PE program or kernel": at(128, b"PE\0\0", b"MZ" + bytes(58) + b"\x80"),
}


@pytest.mark.parametrize("name", HEADS)
def test_what_has_a_mark_is_named(name: str) -> None:
    head = HEADS[name].ljust(HEAD_BYTES, b"\0")
    assert detect(head, bytes(TAIL_BYTES)) == name.strip()
    with pytest.raises(RequestError, match=name.strip()) as caught:
        require_raw(head, b"", source="x.img")
    assert caught.value.code == "image-not-raw"


@pytest.mark.parametrize(
    ("name", "tail"),
    {
        "vhd": vhd_footer(),
        "vhd ": vhd_footer()[:511],
        "dmg": b"koly\0\0\0\x04\0\0\x02\0" + bytes(500),
        "dmg ": b"koly\0\0\0\x04\0\0\x02\0" + bytes(803),
        "vmdk": b"KDMV" + bytes(1020),
    }.items(),
)
def test_what_has_its_mark_at_the_end_is_named(name: str, tail: bytes) -> None:
    assert detect(MBR.ljust(HEAD_BYTES, b"\0"), tail.rjust(TAIL_BYTES, b"\1")) == name.strip()


def test_a_disc_that_boots_as_a_disk_too_is_a_disc() -> None:
    assert detect(at(32769, b"CD001\1", MBR)) == detect(at(32769, b"CD001\1", GPT)) == "iso9660"


@pytest.mark.parametrize(
    "head",
    [
        *(MBR, GPT, GPT + MBR, EXT4, at(1024, b"\xe2\xe1\xf5\xe0"), b"XFSB" + bytes(508), bytes(HEAD_BYTES)),
        *(b"\xeb\x58\x90MSDOS5.0", b"\xfa\xb8\0\x10\x8e\xd0", b"MZ" + MBR[2:], b"LABELONE", b"", b"\0"),
        *(b"BZh", b"\x1f\x8b", b"PK", b"\n" * 4096, b"#" * 4096, b"# Disk", at(64, b"\x7f\x10"), at(257, b"ustar")),
    ],
)
def test_disks_and_data_are_raw(head: bytes) -> None:
    assert detect(head, bytes(TAIL_BYTES)) == "raw"
    require_raw(head, b"", source="x")


def test_the_name_of_a_footer_in_data_is_no_footer() -> None:
    """The last sector of a disk may hold part of any file, this one for example."""
    for data in (b"conectix" + b"x" * 504, b"koly" + b"x" * 508, b"KDMV" + b"x" * 1020):
        assert detect(EXT4, data.rjust(TAIL_BYTES, b"x")) == "raw"


@given(st.binary(max_size=2048), st.binary(max_size=TAIL_BYTES))
def test_anything_gets_a_name(head: bytes, tail: bytes) -> None:
    assert detect(head, tail)


@given(st.binary(min_size=445, max_size=445).map(lambda code: b"\xeb" + code))
def test_a_boot_sector_is_raw_whatever_its_code(code: bytes) -> None:
    assert detect((code + MBR[446:]).ljust(HEAD_BYTES, b"\0"), bytes(TAIL_BYTES)) == "raw"
