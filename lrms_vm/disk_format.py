"""What a file is, told by its first and last bytes: a signature says who made the bytes, not what they are. Pure.

A raw disk has no mark of its own, so everything that has one is not raw. The marks are those that readers go by: qemu
(block/*.c, the *_probe functions), file(1), and each format's own description. Those shorter than four bytes, or whose
place is inside a boot sector's code, count only together with more: a boot sector may begin with anything.
Disks with a partition table (MBR, GPT) or a file system are raw, also where their tables contradict each other: only
the guest reads them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from lrms_vm.errors import RequestError

HEAD_BYTES = 36 << 10  # as far as the second volume descriptor of an ISO 9660 file system
TAIL_BYTES = 1536  # three sectors: what stands at the end of vhd, vmdk and dmg
SECTOR_BYTES = 512

_AT_START: tuple[tuple[bytes, str], ...] = (
    (b"QFI\xfb\0\0\0\x01", "qcow"),
    (b"QFI\xfb\0\0\0\x02", "qcow2"),
    (b"QFI\xfb\0\0\0\x03", "qcow2"),
    (b"QFI\xfb", "qcow of a version that is not known"),
    (b"KDMV", "vmdk"),
    (b"COWD", "vmdk"),
    (b"conectix", "vhd"),
    (b"vhdxfile", "vhdx"),
    (b"QED\0", "qed"),
    (b"WithoutFreeSpace", "parallels"),
    (b"WithouFreSpacExt", "parallels"),
    (b"Bochs Virtual HD Image", "bochs"),
    (b"#!/bin/sh\n#V2.0 Format\n", "cloop"),
    (b"#!/bin/sh\n#V1.0 Format\n", "cloop"),
    (b"LUKS\xba\xbe", "luks"),
    (b"SKUL\xba\xbe", "luks"),  # the second header of LUKS2
    (b"hsqs", "squashfs"),
    (b"sqsh", "squashfs"),
    (b"\x7fELF", "an ELF program"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"LZIP\x01", "lzip"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!\x1a\x07", "rar"),
    (b"MSWIM\0\0\0", "wim"),
    (b"070701", "cpio"),
    (b"070702", "cpio"),
    (b"070707", "cpio"),
    (b"!<arch>\n", "ar"),
)
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")  # a first block, or the end of an empty stream
_DISC = (b"CD001", b"BEA01", b"CDROM")  # ISO 9660, UDF (ECMA 167), High Sierra
_DISC_AT = (32769, 34817, 32777)


def detect(head: bytes, tail: bytes = b"") -> str:
    """ "raw", or the name of what it is instead.

    `head` is the first `HEAD_BYTES` and `tail` the last `TAIL_BYTES`, each less where the file is shorter.

    >>> detect(b"QFI" + bytes([251, 0, 0, 0, 3]) + bytes(504)), detect(bytes(510) + b"U" + bytes([170]))
    ('qcow2', 'raw')
    """
    for mark, name in _AT_START:
        if head.startswith(mark):
            return name
    return next((name for probe in _PROBES if (name := probe(head, tail))), "raw")


def require_raw(head: bytes, tail: bytes, *, source: str) -> None:
    """Raises `RequestError` "image-not-raw", saying what it is."""
    found = detect(head, tail)
    if found != "raw":
        raise not_raw(found, source=source)


def not_raw(found: str, *, source: str) -> RequestError:
    """The refusal of a file that is a `found`."""
    return RequestError(
        f"{source}: the file is {found}, expected a raw disk",
        hint="make it raw, e.g. `qemu-img convert -O raw`, and sign the result",
        code="image-not-raw",
    )


def _vmdk_descriptor(head: bytes, tail: bytes) -> str:
    """Text: comments and blank lines, then version=N; or the comment that every writer begins with."""
    text = head[:4096]
    if text[:21].lower() == b"# disk descriptorfile":
        return "vmdk"
    for line in text.split(b"\n"):
        line = line.rstrip(b" \r")
        if line and not line.startswith(b"#"):
            return "vmdk" if line[:9] in (b"version=1", b"version=2", b"version=3") else ""
    return ""


def _vhd_footer(head: bytes, tail: bytes) -> str:
    """A fixed-size vhd is a raw disk and one sector; old writers left that a byte short. The sum tells it from data."""
    for size in (SECTOR_BYTES, SECTOR_BYTES - 1):
        footer = tail[-size:].ljust(SECTOR_BYTES, b"\0")
        if len(tail) >= size and footer.startswith(b"conectix"):
            (told,) = struct.unpack_from(">I", footer, 64)
            if ~(sum(footer) - sum(footer[64:68])) & 0xFFFFFFFF == told:
                return "vhd"
    return ""


def _dmg_trailer(head: bytes, tail: bytes) -> str:
    """The block "koly", version 4, 512 bytes long; not always on a sector's boundary."""
    return "dmg" if b"koly\0\0\0\x04\0\0\x02\0" in tail[-2 * SECTOR_BYTES :] else ""


def _vmdk_footer(head: bytes, tail: bytes) -> str:
    """A stream-optimised vmdk ends with a marker, the header again, and an end-of-stream marker of zeros."""
    footer, end = tail[-1024:-512], tail[-512:]
    return "vmdk" if footer.startswith(b"KDMV") and len(end) == 512 and not any(end) else ""


def _vdi(head: bytes, tail: bytes) -> str:
    return "vdi" if head[64:68] == b"\x7f\x10\xda\xbe" else ""


def _disc(head: bytes, tail: bytes) -> str:
    """An optical disc, also one that boots as a disk as well (hybrid): its readers look at sector 16 and 17."""
    return "iso9660" if any(head[at : at + 5] in _DISC for at in _DISC_AT) else ""


def _compressed(head: bytes, tail: bytes) -> str:
    if head[:3] == b"\x1f\x8b\x08" and len(head) > 10 and not head[3] & 0xE0:  # RFC 1952: reserved flags are zero
        return "gzip"
    if head[:3] == b"BZh" and head[3:4] in b"123456789" and head[4:10] in _BZIP2_BLOCKS:
        return "bzip2"
    if head[:3] == b"\x5d\0\0" and head[5:13] == b"\xff" * 8 and len(head) > 13:
        return "lzma"
    if 0x50 <= int.from_bytes(head[:1], "big") <= 0x5F and head[1:4] == b"\x2a\x4d\x18":
        return "zstd"  # a frame to skip, before the first that counts; lz4 has the same
    return ""


def _tar(head: bytes, tail: bytes) -> str:
    """By the header's own sum (POSIX pax, ustar): nothing else has that by chance. An OVA is a tar led by its .ovf."""
    header = head[:SECTOR_BYTES]
    if len(header) < SECTOR_BYTES or not header[0]:
        return ""
    told = header[148:156].strip(b" \0")
    if not told or told.strip(b"01234567"):
        return ""
    if int(told, 8) != sum(header) - sum(header[148:156]) + 8 * 32:
        return ""
    return "ova" if header[:100].rstrip(b"\0").lower().endswith(b".ovf") else "tar"


def _program(head: bytes, tail: bytes) -> str:
    """A PE program, and so a kernel with EFI stub, where the header that MZ leads to is there."""
    if head[:2] != b"MZ" or len(head) < 64:
        return ""
    (at,) = struct.unpack_from("<I", head, 60)
    return "a PE program or kernel" if head[at : at + 4] == b"PE\0\0" else ""


_PROBES: tuple[Callable[[bytes, bytes], str], ...] = (
    *(_vmdk_descriptor, _vhd_footer, _dmg_trailer, _vmdk_footer),
    *(_vdi, _disc, _compressed, _tar, _program),
)
