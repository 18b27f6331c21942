"""The strict qcow2 reader: what it accepts is one disk and refers to nothing outside; each defect has its code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrms_vm import qcow2
from lrms_vm.errors import RequestError
from tests.hostile.qcow2_files import (
    CLUSTER,
    DEFECTS,
    L1,
    L2,
    REFBLOCK,
    SECOND,
    VIRTUAL,
    at,
    compressed,
    defect,
    put,
    sound,
)

IMAGE_CODES = {"image-not-raw": "qcow2-version"}  # the version is seen earlier, by disk_format


def check(file: bytes, *, max_virtual_bytes: int = 1 << 40, max_ratio: int = 100) -> qcow2.Header:
    return qcow2.check(
        lambda offset, size: bytes(file[offset : offset + size]),
        len(file),
        max_virtual_bytes=max_virtual_bytes,
        max_ratio=max_ratio,
        source="x.qcow2",
    )


@pytest.mark.parametrize("version", [2, 3])
def test_a_sound_file_is_accepted(version: int) -> None:
    header = check(sound(version=version))
    assert (header.version, header.virtual_size_bytes, header.cluster_bytes) == (version, VIRTUAL, CLUSTER)


@pytest.mark.parametrize("name", DEFECTS)
def test_each_defect_is_refused_by_its_code(name: str) -> None:
    with pytest.raises(RequestError) as caught:
        check(defect(name))
    expected = DEFECTS[name][2]
    assert caught.value.code == IMAGE_CODES.get(expected, expected)
    assert "x.qcow2" in caught.value.message and caught.value.hint


@pytest.mark.parametrize("bits", [1, 2, 0x80, 1 << 40])
def test_bits_that_may_be_ignored_are(bits: int) -> None:
    file = sound()
    put(file, 80, ">Q", bits)
    check(file)


def test_clusters_may_be_shared_by_compressed_data_only() -> None:
    file = sound()
    put(file, at(L2, 2), ">2Q", compressed(SECOND * CLUSTER, 3), compressed(SECOND * CLUSTER + 2048, 2))
    put(file, at(REFBLOCK, SECOND, 2), ">H", 2)
    check(file)
    put(file, at(L2), ">Q", compressed(L1 * CLUSTER, 1))
    with pytest.raises(RequestError, match="used twice"):
        check(file)


def test_the_limits_are_those_given() -> None:
    check(sound(), max_virtual_bytes=VIRTUAL, max_ratio=1)
    with pytest.raises(RequestError, match="max_virtual") as caught:
        check(sound(), max_virtual_bytes=VIRTUAL - 1)
    assert caught.value.code == "image-virtual-too-large"


def test_a_fine_grained_giant_is_refused_before_its_tables_are_read() -> None:
    """32 GiB of 512-byte clusters would take minutes to look through."""
    file = sound()
    put(file, 20, ">IQ", 9, 1 << 40)
    reads = []

    def read(offset: int, size: int) -> bytes:
        reads.append(size)
        return bytes(file[offset : offset + size])

    with pytest.raises(RequestError) as caught:
        qcow2.check(read, 1 << 36, max_virtual_bytes=1 << 50, max_ratio=100, source="x")
    assert caught.value.code == "qcow2-too-large"
    assert sum(reads) < 4096


@given(st.integers(0, 400), st.binary(min_size=1, max_size=16))
def test_no_header_makes_it_stumble(offset: int, data: bytes) -> None:
    file = sound()
    file[offset : offset + len(data)] = data
    try:
        check(file, max_ratio=10)
    except RequestError as error:
        assert error.code.startswith(("qcow2-", "image-"))


@given(st.sampled_from([1, 2, 3, 4]), st.integers(0, 40), st.integers(0, (1 << 64) - 1))
def test_no_table_makes_it_stumble(cluster: int, entry: int, value: int) -> None:
    file = sound()
    put(file, at(cluster, entry), ">Q", value)
    try:
        check(file)
    except RequestError as error:
        assert error.code.startswith("qcow2-")


@given(st.integers(0, 8 * CLUSTER))
def test_no_length_makes_it_stumble(size: int) -> None:
    file = bytes(sound())[:size].ljust(size, b"\0")
    try:
        check(file)
    except RequestError as error:
        assert error.code.startswith(("qcow2-", "image-"))


def test_every_code_is_in_the_manual() -> None:
    root = Path(__file__).parents[2]
    sources = [root / "lrms_vm" / f"{name}.py" for name in ("qcow2", "disk_format", "convert", "trust/forms")]
    used = {
        code for path in sources for code in re.findall(r'"((?:qcow2|image|sandbox)-[a-z]+[a-z-]*)"', path.read_text())
    }
    manual = (root / "docs" / "images.md").read_text()
    assert used - {"image-blocked"} == {code for code in used if f"`{code}`" in manual}  # blocks: docs/trust.md
    assert {one[2] for one in DEFECTS.values()} <= used
