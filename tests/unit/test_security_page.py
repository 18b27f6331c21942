"""docs/security.md is true as far as a test can tell: each test that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
PAGE = (TESTS.parent / "docs/security.md").read_text()
NAMED = sorted(set(re.findall(r"([a-z_]+/[a-z_/]+\.py) (test_\w+)", PAGE)))


@pytest.mark.parametrize(("file", "function"), NAMED)
def test_each_test_that_the_page_names_is_there(file: str, function: str) -> None:
    assert f"def {function}(" in (TESTS / file).read_text()


def test_each_boundary_in_the_picture_has_its_words_and_its_tests() -> None:
    picture = PAGE.partition("## The boundaries")[2].partition("What crosses")[0]
    letters = set(re.findall(r"=([A-F])=|\(([D])\)|\b([C]): ", picture))
    assert {letter for group in letters for letter in group if letter} == set("ABCDEF")
    for letter in "ABCDEF":
        assert re.search(rf"^\| {letter} \|", PAGE, re.M), letter
        assert re.search(rf"\*\*{letter}, ", PAGE), letter


def test_each_page_that_it_names_is_there() -> None:
    for name in re.findall(r"\]\(([\w-]+\.md)\)", PAGE):
        assert (TESTS.parent / "docs" / name).is_file(), name
