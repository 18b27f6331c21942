"""The table in README.md is true: every case is there, every test exists, every code is one of ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
SOURCES = "".join(path.read_text() for path in (TESTS.parent / "lrms_vm").rglob("*.py"))
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (TESTS / "hostile" / "README.md").read_text().splitlines()
    if re.match(r"\| C\d", line)
]
_NUMBERED = [*range(1, 136), *range(140, 148), *range(150, 157)]
_LETTERED = {21: "abcdefghijklmnop", 30: "abcde", 36: "abcd", 59: "a"}


def test_every_case_is_there_once() -> None:
    cases = [case for row in ROWS for case in row[0].split(", ")]
    expected = {f"C{number}" for number in _NUMBERED}
    expected |= {f"C{number}{letter}" for number, letters in _LETTERED.items() for letter in letters}
    assert sorted(cases) == sorted(expected)


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_its_tests_and_codes_exist(row: list[str]) -> None:
    _, what, codes, tests = row
    assert what
    for named in tests.split("; "):
        file, function = named.split(" ")
        assert f"def {function}(" in (TESTS / file).read_text(), named
    for code in re.findall(r"`([^`]+)`", codes):
        assert f'"{code}"' in SOURCES or code == "accepted", code
