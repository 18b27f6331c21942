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
SOURCES.append(ROOT / "lrms_vm" / "cli" / "image_trust.py")
# codes are passed as code="...", in tables as ("...", "a sentence"), or as the second of three
_CODE = re.compile(
    r'code="([a-z0-9-]+)"|^\s+\d+: \("([a-z-]+)",|return \d, "([a-z-]+)",|code="[a-z-]+" if \w+ else "([a-z-]+)"', re.M
)
ELSEWHERE = {"accepted", "config-missing", "config-unsafe"}
OF_THE_CACHE = {"state-unsafe", "state-unwritable", "cache-unwritable"}  # docs/cache.md has these


def test_the_table_has_every_code_and_no_other() -> None:
    used = {word for path in SOURCES for match in _CODE.finditer(path.read_text()) for word in match.groups() if word}
    table = (ROOT / "docs" / "trust.md").read_text().partition("\n## Codes")[2]
    documented = {
        word
        for line in table.splitlines()
        if line.startswith("| `")
        for word in re.findall(r"`([a-z0-9-]+)`", line.split("|")[1])
    }
    assert used - documented - OF_THE_CACHE == set()
    assert documented - used - ELSEWHERE == set()
