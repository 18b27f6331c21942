"""Codes are a promise: each is in the table of docs/trust.md, and the table has no others."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    *(ROOT / "lrms_vm" / "trust").glob("*.py"),
    *(ROOT / "lrms_vm" / one for one in ("anchors.py", "signing.py", "signing_list.py", "cli/image_sign_list.py")),
]
SOURCES += [ROOT / "lrms_vm" / one for one in ("trust_state.py", "list_copy.py", "list_refresh.py", "lists.py")]
SOURCES += [ROOT / "lrms_vm" / "cli" / "image_trust.py", ROOT / "lrms_vm" / "site_policy.py"]
# codes are passed as code="...", in tables as ("...", "a sentence"), or as the second of three
_CODE = re.compile(
    r'code="([a-z0-9-]+)"|^\s+\d+: \("([a-z-]+)",|return \d, "([a-z-]+)",|code="[a-z-]+" if \w+ else "([a-z-]+)"'
    r'|damaged\(.*, error, "([a-z-]+)"\)',
    re.M,
)
ELSEWHERE = {"accepted", "config-missing", "config-unsafe"}
OF_THE_CACHE = {"state-unsafe", "state-unwritable", "cache-unwritable"}  # docs/cache.md has these


def rows() -> list[tuple[list[str], list[str]]]:
    """The codes of each line of the table, and its other cells: exit code, meaning, remedy."""
    table = (ROOT / "docs" / "trust.md").read_text().partition("\n## Codes")[2]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| `")]
    return [(re.findall(r"`([a-z0-9-]+)`", first), rest) for first, *rest in cells]


def test_every_code_says_whose_turn_it_is_and_what_to_do() -> None:
    for codes, rest in rows():
        assert len(rest) == 3, f"{codes}: expected exit code, meaning and remedy"
        exit_code, meaning, remedy = rest
        assert int(exit_code) in (0, 64, 75, 77, 78) and meaning
        assert remedy.startswith(("builder: ", "user: ", "site: ", "whoever ", "as the message ")) or codes == [
            "accepted"
        ]


def test_the_table_has_every_code_and_no_other() -> None:
    used = {word for path in SOURCES for match in _CODE.finditer(path.read_text()) for word in match.groups() if word}
    documented = {word for codes, _ in rows() for word in codes}
    assert used - documented - OF_THE_CACHE == set()
    assert documented - used - ELSEWHERE == set()
