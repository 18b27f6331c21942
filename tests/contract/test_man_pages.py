"""The manual pages as man(1) and groff(1) read them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_make_man_s_pages_raise_no_warning(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "manual", "man", str(tmp_path)], cwd=ROOT, check=True, timeout=60)
    pages = sorted(tmp_path.iterdir())
    assert [page.name for page in pages] == ["lrms-vm.1", "lrms_vm-trust.toml.5", "lrms_vm.toml.5"]
    for page in pages:
        done = subprocess.run(
            ["groff", "-man", "-ww", "-Tutf8", "-P-cbou", str(page)], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, ""), page.name
        assert "NAME" in done.stdout and "SEE ALSO" in done.stdout
