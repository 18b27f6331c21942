"""A second opinion on qcow2: whatever our reader accepts, qemu finds nothing wrong with, and reads as the same disk.

Mutants are made from a fixed seed, of files made here and by qemu-img, in the header and the tables more than in data.
Not the other way round: we refuse much that qemu takes.
"""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import time
from pathlib import Path

import pytest

from lrms_vm import convert, qcow2
from lrms_vm.errors import RequestError
from tests.hostile.qcow2_files import sound

MUTANTS = 100  # of each original
CANARY = b"the canary's secret\n"
ORIGINALS = ("v3", "v2", "-o cluster_size=512", "-c -o cluster_size=4k", "-c -o compat=0.10,cluster_size=1k", "resized")
WORDS = (0, 1, 2, 511, 512, 1 << 16, 3 << 16, 1 << 31, (1 << 32) - 1, 1 << 62, 1 << 63, (1 << 64) - 1)


def original(name: str, directory: Path) -> bytes:
    if name in ("v2", "v3"):
        return bytes(sound(version=int(name[1])))
    raw, path = directory / "raw", directory / "q"
    rng = random.Random(name)
    with raw.open("wb") as file:
        for _ in range(12):
            file.seek(rng.randrange(0, 1 << 20) // 512 * 512)
            file.write(rng.randbytes(300) * 12)
        file.truncate(1 << 20)
    options = name.split() if name != "resized" else ["-o", "cluster_size=8k"]
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, raw, path], check=True)
    if name == "resized":
        subprocess.run(["qemu-img", "resize", "-q", "-f", "qcow2", path, "3M"], check=True)
        subprocess.run(["qemu-img", "resize", "-q", "-f", "qcow2", "--shrink", path, "512k"], check=True)
    return path.read_bytes()


def mutant(file: bytes, rng: random.Random, canary: bytes) -> bytes:
    """One to three changes, mostly where they matter."""
    changed = bytearray(file)
    cluster = 1 << struct.unpack_from(">I", file, 20)[0]
    (l1,) = struct.unpack_from(">Q", file, 40)
    (l2,) = struct.unpack_from(">Q", file, l1)
    (refcounts,) = struct.unpack_from(">Q", file, 48)
    (block,) = struct.unpack_from(">Q", file, refcounts)
    tables = (l1, l2 & 0x00FFFFFFFFFFFE00, refcounts, block)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind = rng.randrange(8)
        where = rng.choice((rng.randrange(112), rng.choice(tables) + rng.randrange(min(256, cluster))))
        if kind < 3:
            changed[where] ^= 1 << rng.randrange(8)
        elif kind < 5:
            struct.pack_into(">Q", changed, where // 8 * 8, rng.choice((*WORDS, rng.randrange(len(file)), *tables)))
        elif kind == 5:
            at = rng.randrange(len(changed))
            changed[at] ^= 1 + rng.randrange(255)
        elif kind == 6:
            del changed[rng.randrange(max(0, len(changed) - 2 * cluster), len(changed)) :]
            changed.extend(bytes(rng.choice((0, 0, 511, cluster))))
            if len(changed) < len(file):
                return bytes(changed)
        else:
            struct.pack_into(">QI", changed, 8, cluster // 2, len(canary))
            changed[cluster // 2 : cluster // 2 + len(canary)] = canary
    return bytes(changed)


def accepted(file: bytes) -> qcow2.Header | None:
    try:
        return qcow2.check(
            lambda offset, size: file[offset : offset + size],
            len(file),
            max_virtual_bytes=64 << 20,
            max_ratio=100,
            source="mutant",
        )
    except RequestError:
        return None


def told(*words: object) -> dict[str, object]:
    done = subprocess.run(["qemu-img", *map(str, words)], capture_output=True, timeout=30)
    return {**json.loads(done.stdout), "exit": done.returncode}


@pytest.mark.parametrize("name", ORIGINALS)
def test_what_our_reader_accepts_qemu_reads_as_the_same_disk(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    canary.write_bytes(CANARY * 10_000)
    first = original(name, tmp_path)
    assert accepted(first) is not None
    rng, source, target, agreed = random.Random(f"qcow2 {name}"), tmp_path / "m", tmp_path / "r", 0
    for number in range(MUTANTS):
        file = mutant(first, rng, os.fsencode(canary)) if number else first
        header = accepted(file)
        if header is None:
            continue
        agreed += 1
        source.write_bytes(file)
        info = told("info", "-f", "qcow2", "--output=json", source)
        check = told("check", "-f", "qcow2", "--output=json", source)
        assert info["virtual-size"] == header.virtual_size_bytes, (number, info)
        assert not {"backing-filename", "encrypted", "snapshots"} & set(info), (number, info)
        assert not {"corruptions", "leaks", "check-errors-fixed"} & {k for k, v in check.items() if v}, (number, check)
        assert (check["exit"], check["check-errors"]) == (0, 0), (number, check)
        target.unlink(missing_ok=True)
        try:
            convert.to_raw(source, target, max_virtual_bytes=header.virtual_size_bytes, deadline=time.monotonic() + 20)
        except RequestError as error:  # compressed data that does not unpack: only who unpacks it can tell
            assert "-c" in name and error.code == "image-unconvertible", (number, error)
            continue
        assert target.stat().st_size == header.virtual_size_bytes
        assert CANARY not in target.read_bytes()
    assert 1 < agreed < MUTANTS // 2
