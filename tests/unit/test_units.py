from __future__ import annotations

import pytest

from lrms_vm.errors import UsageError
from lrms_vm.units import parse_duration_s, parse_memory_mib, parse_size_bytes


@pytest.mark.parametrize(
    ("text", "bare", "mib"),
    [("4G", "M", 4096), ("4096", "M", 4096), ("1500K", "M", 2), ("1", "", 1), ("1.5G", "M", 1536), ("2GiB", "M", 2048)],
)
def test_memory_is_powers_of_1024_and_rounded_up(text: str, bare: str, mib: int) -> None:
    assert parse_memory_mib(text, bare=bare, source="test") == mib


@pytest.mark.parametrize("text", ["", "four", "-1", "1e9", "4X", "1,5G", "٣", "9" * 16, "4 G B", "0x10", "4G\n4G"])
def test_an_unreadable_size_names_its_source_and_what_it_read(text: str) -> None:
    with pytest.raises(UsageError, match="--vm-memory: cannot read"):
        parse_size_bytes(text, bare="M", source="--vm-memory")


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("12h", 43200), ("35d", 3024000)])
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration_s(text, source="test") == seconds


@pytest.mark.parametrize("text", ["", "5", "5w", "-5m", "5 m", "5m5s", "٥m"])
def test_an_unreadable_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration_s(text, source="test")
