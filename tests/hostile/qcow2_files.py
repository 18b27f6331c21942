"""Small qcow2 files made byte by byte: a sound one, and ones with a single defect each, named for it.

Run as a program to have them all as files: `python tests/hostile/qcow2_files.py DIRECTORY`.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path

CLUSTER = 65536
COPIED = 1 << 63
COMPRESSED = 1 << 62
DATA = bytes(range(256)) * 256
# Where things are in the sound file, in clusters.
HEADER, REFTABLE, REFBLOCK, L1, L2, FIRST, SECOND = range(7)
CLUSTERS = 7
VIRTUAL = 4 * CLUSTER
EXTENSIONS_AT = 112


def sound(*, version: int = 3) -> bytearray:
    """A disk of four clusters: data, a hole, data, zeros. `qemu-img check` finds nothing to say about it."""
    file = bytearray(CLUSTERS * CLUSTER)
    put(file, 0, ">4sI", b"QFI\xfb", version)
    put(file, 20, ">IQ", 16, VIRTUAL)
    put(file, 36, ">IQQI", 1, L1 * CLUSTER, REFTABLE * CLUSTER, 1)
    if version == 3:
        put(file, 96, ">II", 4, 112)
    put(file, REFTABLE * CLUSTER, ">Q", REFBLOCK * CLUSTER)
    put(file, REFBLOCK * CLUSTER, f">{CLUSTERS}H", *[1] * CLUSTERS)
    put(file, L1 * CLUSTER, ">Q", L2 * CLUSTER | COPIED)
    zeros = 1 if version == 3 else 0
    put(file, L2 * CLUSTER, ">4Q", FIRST * CLUSTER | COPIED, 0, SECOND * CLUSTER | COPIED, zeros)
    file[FIRST * CLUSTER : CLUSTERS * CLUSTER] = DATA + DATA[::-1]
    return file


def disk() -> bytes:
    """What is in `sound`."""
    return DATA + bytes(CLUSTER) + DATA[::-1] + bytes(CLUSTER)


def put(file: bytearray, at: int, form: str, *values: object) -> None:
    struct.pack_into(form, file, at, *values)


def extension(file: bytearray, kind: int, data: bytes) -> None:
    """As the first and only one."""
    put(file, EXTENSIONS_AT, ">II", kind, len(data))
    file[EXTENSIONS_AT + 8 : EXTENSIONS_AT + 8 + len(data)] = data


def backing(name: bytes) -> Callable[[bytearray], None]:
    def make(file: bytearray) -> None:
        put(file, 8, ">QI", 4096, len(name))
        file[4096 : 4096 + len(name)] = name

    return make


def field(at: int, form: str, *values: object) -> Callable[[bytearray], None]:
    return lambda file: put(file, at, form, *values)


def with_extension(kind: int, data: bytes) -> Callable[[bytearray], None]:
    return lambda file: extension(file, kind, data)


def all_of(*changes: Callable[[bytearray], None]) -> Callable[[bytearray], None]:
    def make(file: bytearray) -> None:
        for change in changes:
            change(file)

    return make


def resized(size: int) -> Callable[[bytearray], None]:
    def make(file: bytearray) -> None:
        del file[size:]
        file.extend(bytes(size - len(file)))

    return make


def at(cluster: int, entry: int = 0, size: int = 8) -> int:
    return cluster * CLUSTER + entry * size


def compressed(offset: int, sectors: int) -> int:
    return COMPRESSED | (sectors - 1) << 54 | offset


def _incompatible(bit: int) -> Callable[[bytearray], None]:
    return field(72, ">Q", 1 << bit)


# defect: (numbers of trust-and-images.md section 7, the change, the code of the refusal)
DEFECTS: dict[str, tuple[str, Callable[[bytearray], None], str]] = {
    "backing-passwd": ("C80", backing(b"/etc/passwd"), "qcow2-backing-file"),
    "backing-json": ("C81", backing(b'json:{"driver":"file","filename":"/etc/shadow"}'), "qcow2-backing-file"),
    "backing-nbd": ("C82", backing(b"nbd://127.0.0.1:10809/x"), "qcow2-backing-file"),
    "backing-ssh": ("C82", backing(b"ssh://root@127.0.0.1/etc/shadow"), "qcow2-backing-file"),
    "backing-offset-without-length": ("C80", field(8, ">Q", 4096), "qcow2-backing-file"),
    "backing-length-without-offset": ("C80", field(16, ">I", 11), "qcow2-backing-file"),
    "backing-format-alone": ("C80", with_extension(0xE2792ACA, b"raw"), "qcow2-backing-file"),
    "backing-itself": ("C97", backing(b"backing-itself.qcow2"), "qcow2-backing-file"),
    "data-file": (
        "C83",
        all_of(_incompatible(2), with_extension(0x44415441, b"/etc/passwd")),
        "qcow2-data-file",
    ),
    "data-file-bit-alone": ("C83", _incompatible(2), "qcow2-data-file"),
    "data-file-name-alone": ("C84", with_extension(0x44415441, b"/etc/passwd"), "qcow2-data-file"),
    "data-file-raw-bit": ("C83", field(88, ">Q", 2), "qcow2-data-file"),
    "feature-unknown": ("C85", _incompatible(5), "qcow2-feature"),
    "feature-last-bit": ("C85", _incompatible(63), "qcow2-feature"),
    "feature-compression": ("C85", all_of(_incompatible(3), field(104, ">B", 1)), "qcow2-feature"),
    "feature-compression-type-alone": ("C85", field(104, ">B", 1), "qcow2-feature"),
    "feature-extended-l2": ("C85", _incompatible(4), "qcow2-feature"),
    "feature-bitmaps": ("C85", with_extension(0x23852875, bytes(24)), "qcow2-feature"),
    "feature-extension-unknown": ("C85", with_extension(0x12345678, b"x"), "qcow2-feature"),
    "feature-refcount-bits": ("C90", field(96, ">I", 6), "qcow2-feature"),
    "dirty": ("C86", _incompatible(0), "qcow2-dirty"),
    "corrupt": ("C86", _incompatible(1), "qcow2-corrupt"),
    "version-4": ("C87", field(4, ">I", 4), "image-not-raw"),
    "version-1": ("C87", field(4, ">I", 1), "image-not-raw"),
    "version-0": ("C87", field(4, ">I", 0), "image-not-raw"),
    "encrypted-aes": ("C88", field(32, ">I", 1), "qcow2-encrypted"),
    "encrypted-luks": ("C88", field(32, ">I", 2), "qcow2-encrypted"),
    "encrypted-header-alone": ("C88", with_extension(0x0537BE77, bytes(16)), "qcow2-encrypted"),
    "snapshots": ("C89", field(60, ">IQ", 1, at(SECOND)), "qcow2-snapshots"),
    "snapshots-offset-alone": ("C89", field(64, ">Q", at(SECOND)), "qcow2-snapshots"),
    "header-short": ("C90", resized(60), "qcow2-malformed"),
    "header-short-v3": ("C90", resized(80), "qcow2-malformed"),
    "header-length-0": ("C90", field(100, ">I", 0), "qcow2-malformed"),
    "header-length-huge": ("C90", field(100, ">I", 0xFFFFFFF8), "qcow2-malformed"),
    "cluster-bits-8": ("C90", field(20, ">I", 8), "qcow2-malformed"),
    "cluster-bits-22": ("C90", field(20, ">I", 22), "qcow2-malformed"),
    "cluster-bits-huge": ("C90", field(20, ">I", 0xFFFFFFFF), "qcow2-malformed"),
    "extension-endless": ("C90", field(EXTENSIONS_AT, ">II", 0x6803F857, 0xFFFFFFFF), "qcow2-malformed"),
    "extensions-too-many": (
        "C90",
        lambda file: put(file, EXTENSIONS_AT, ">400I", *[0x6803F857, 0] * 200),
        "qcow2-malformed",
    ),
    "l1-off-end": ("C90", field(40, ">Q", 1 << 40), "qcow2-malformed"),
    "l1-wraps": ("C90", field(40, ">Q", 0xFFFFFFFFFFFF0000), "qcow2-malformed"),
    "l1-unaligned": ("C90", field(40, ">Q", L1 * CLUSTER + 512), "qcow2-malformed"),
    "l1-over-header": ("C90", field(40, ">Q", 0), "qcow2-malformed"),
    "l1-over-refcounts": ("C90", field(40, ">Q", at(REFBLOCK)), "qcow2-malformed"),
    "l1-empty": ("C90", field(36, ">I", 0), "qcow2-malformed"),
    "l1-huge": ("C90", field(36, ">I", 0xFFFFFFFF), "qcow2-malformed"),
    "l1-reserved-bit": ("C90", field(at(L1), ">Q", L2 * CLUSTER | COPIED | 1), "qcow2-malformed"),
    "l1-entry-not-copied": ("C90", field(at(L1), ">Q", L2 * CLUSTER), "qcow2-malformed"),
    "l2-off-end": ("C90", field(at(L1), ">Q", 99 * CLUSTER | COPIED), "qcow2-malformed"),
    "l2-unaligned": ("C90", field(at(L1), ">Q", L2 * CLUSTER + 512 | COPIED), "qcow2-malformed"),
    "l2-is-l1": ("C90", field(at(L1), ">Q", L1 * CLUSTER | COPIED), "qcow2-malformed"),
    "l2-is-header": ("C90", field(at(L1), ">Q", COPIED), "qcow2-malformed"),
    "l2-used-twice": (
        "C90",
        all_of(field(36, ">I", 2), field(at(L1, 1), ">Q", L2 * CLUSTER | COPIED)),
        "qcow2-malformed",
    ),
    "data-is-header": ("C90", field(at(L2), ">Q", COPIED | 1 << 9), "qcow2-malformed"),
    "data-is-l2": ("C90", field(at(L2), ">Q", L2 * CLUSTER | COPIED), "qcow2-malformed"),
    "data-is-refcounts": ("C90", field(at(L2), ">Q", REFBLOCK * CLUSTER | COPIED), "qcow2-malformed"),
    "data-used-twice": ("C90", field(at(L2, 1), ">Q", FIRST * CLUSTER | COPIED), "qcow2-malformed"),
    "data-off-end": ("C90", field(at(L2), ">Q", 99 * CLUSTER | COPIED), "qcow2-malformed"),
    "data-unaligned": ("C90", field(at(L2), ">Q", FIRST * CLUSTER + 512 | COPIED), "qcow2-malformed"),
    "data-reserved-bit": ("C90", field(at(L2), ">Q", FIRST * CLUSTER | COPIED | 2), "qcow2-malformed"),
    "data-not-copied": ("C90", field(at(L2), ">Q", FIRST * CLUSTER), "qcow2-malformed"),
    "copied-without-data": ("C90", field(at(L2, 1), ">Q", COPIED), "qcow2-malformed"),
    "compressed-off-end": ("C90", field(at(L2), ">Q", compressed(99 * CLUSTER, 1)), "qcow2-malformed"),
    "compressed-past-end": ("C90", field(at(L2, 1), ">Q", compressed(7 * CLUSTER - 512, 2)), "qcow2-malformed"),
    "compressed-in-header": ("C90", field(at(L2, 1), ">Q", compressed(512, 1)), "qcow2-malformed"),
    "compressed-in-l2": ("C90", field(at(L2, 1), ">Q", compressed(L2 * CLUSTER, 1)), "qcow2-malformed"),
    "compressed-copied": ("C90", field(at(L2, 1), ">Q", COPIED | compressed(SECOND * CLUSTER, 1)), "qcow2-malformed"),
    "refcount-table-off-end": ("C90", field(48, ">Q", 1 << 40), "qcow2-malformed"),
    "refcount-table-absent": ("C90", field(48, ">QI", 0, 0), "qcow2-malformed"),
    "refcount-table-huge": ("C90", field(56, ">I", 0xFFFFFFFF), "qcow2-malformed"),
    "refcount-block-is-its-table": ("C90", field(at(REFTABLE), ">Q", at(REFTABLE)), "qcow2-malformed"),
    "refcount-block-twice": ("C90", field(at(REFTABLE, 1), ">Q", at(REFBLOCK)), "qcow2-malformed"),
    "refcount-block-unaligned": ("C90", field(at(REFTABLE), ">Q", at(REFBLOCK) | 512), "qcow2-malformed"),
    "refcount-behind-end": ("C90", field(at(REFBLOCK, 9, 2), ">H", 1), "qcow2-malformed"),
    "refcount-0-of-data": ("C90", field(at(REFBLOCK, FIRST, 2), ">H", 0), "qcow2-refcount"),
    "refcount-2-of-data": ("C90", field(at(REFBLOCK, FIRST, 2), ">H", 2), "qcow2-refcount"),
    "refcount-of-a-leak": ("C90", field(at(L2), ">Q", 0), "qcow2-refcount"),
    "refcounts-absent": ("C90", field(at(REFTABLE), ">Q", 0), "qcow2-refcount"),
    "virtual-1-pib": ("C93", field(24, ">Q", 1 << 50), "image-virtual-too-large"),
    "virtual-16-eib": ("C93", field(24, ">Q", (1 << 64) - 512), "image-virtual-too-large"),
    "virtual-ratio": ("C94", field(24, ">Q", 512 << 20), "image-ratio"),
    "virtual-odd": ("C98", field(24, ">Q", VIRTUAL - 1), "qcow2-size"),
    "virtual-0": ("C98", field(24, ">Q", 0), "qcow2-size"),
    "l1-too-short-for-disk": ("C90", all_of(resized(9 << 20), field(24, ">Q", 768 << 20)), "qcow2-malformed"),
}


def defect(name: str) -> bytes:
    file = sound()
    DEFECTS[name][1](file)
    return bytes(file)


def main(directory: Path) -> None:
    (directory / "sound.qcow2").write_bytes(sound())
    for name in DEFECTS:
        (directory / f"{name}.qcow2").write_bytes(defect(name))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
