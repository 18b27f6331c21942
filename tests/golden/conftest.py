"""Golden files: `pytest tests/golden --update-golden` rewrites them, the diff is reviewed; a missing one fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/*.xml")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with the golden file of this name."""
    # None where pytest was started further up: options of this directory are then not known
    update = request.config.getoption("--update-golden", default=False)

    def check(name: str, text: str) -> None:
        path = Path(__file__).parent / name
        if update:
            path.write_text(text)
        assert path.exists(), f"{path} is missing: look at the text, then run with --update-golden"
        assert text == path.read_text()

    return check
