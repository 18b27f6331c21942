"""python -m manual pages | man [DIRECTORY]: write what is generated."""

from __future__ import annotations

import sys
from pathlib import Path

from manual import man, troubleshooting

if sys.argv[1:2] == ["pages"]:
    (troubleshooting.ROOT / "docs/troubleshooting.md").write_text(troubleshooting.page())
elif sys.argv[1:2] == ["man"]:
    place = Path(sys.argv[2] if len(sys.argv) > 2 else man.ROOT / "build/man")
    place.mkdir(parents=True, exist_ok=True)
    for name, text in man.pages().items():
        (place / name).write_text(text)
else:
    sys.exit(__doc__)
