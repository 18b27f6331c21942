"""The checkout, installed where users may execute it: in a virtual environment of its own.

Not editable: what runs as root must not change under a cluster that is up. Installed again only when the content
of the checkout changed.
"""

from __future__ import annotations

import configparser
import hashlib
import shutil
import tempfile
from pathlib import Path

from demo.layout import CHECKOUT, Layout
from demo.programs import run

_PARTS = (
    *("lrms_vm", "templates", "prologue", "epilogue", "spank", "guest"),
    *("setup.cfg", "pyproject.toml", "README.md"),
)
_MADE = ("*.pyc", "__pycache__", "*.so", "*.o", "lrms-vm-guest", "test_*")  # not sources: no reason to install again


def install(layout: Layout) -> bool:
    """Bring `layout.opt` up to date; return whether anything had to be done. Raises `DemoError`."""
    done = _environment(layout)
    return _package(layout) or done


def requirements() -> list[str]:
    """What setup.cfg says the package needs, and `lrms-vm submit` for DRMAA."""
    parser = configparser.ConfigParser()
    parser.read(CHECKOUT / "setup.cfg")
    texts = (parser["options"]["install_requires"], parser["options.extras_require"]["drmaa"])
    return [line for text in texts for line in text.split("\n")[1:]]


def digest(parts: tuple[str, ...] = _PARTS) -> str:
    """Of every file's name and content that an installation is made from."""
    total = hashlib.sha256()
    for part in parts:
        root = CHECKOUT / part
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.is_file() and not any(path.match(pattern) for pattern in _MADE):
                total.update(f"{path.relative_to(CHECKOUT)}\0{path.stat().st_mode}\0".encode())
                total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _environment(layout: Layout) -> bool:
    wanted = [*requirements(), "setuptools", "wheel"]
    stamp = layout.opt / "requirements"
    if _says(stamp, "\n".join(wanted)):
        return False
    venv = layout.opt / "venv"
    if not layout.python.exists():
        run(["/usr/bin/python3", "-m", "venv", venv], timeout_s=120)
    run([layout.python, "-m", "pip", "install", "-q", *wanted], timeout_s=900, pip=True)
    stamp.write_text("\n".join(wanted))
    return True


def _package(layout: Layout) -> bool:
    now = digest()
    stamp = layout.opt / "digest"
    if _says(stamp, now):
        return False
    with tempfile.TemporaryDirectory() as name:  # a build in the checkout would leave its own files there
        source = Path(name)
        copy_sources(source)
        options = ["--no-deps", "--no-build-isolation", "--force-reinstall", "--no-cache-dir"]
        run([layout.python, "-m", "pip", "install", "-q", *options, source], timeout_s=300, pip=True)
    stamp.write_text(now)
    return True


def copy_sources(target: Path) -> None:
    """What an installation is made from, without what was built from it."""
    target.mkdir(parents=True, exist_ok=True)
    for part in _PARTS:
        if (CHECKOUT / part).is_dir():
            shutil.copytree(CHECKOUT / part, target / part, symlinks=True, ignore=shutil.ignore_patterns(*_MADE))
        elif (CHECKOUT / part).exists():
            shutil.copy2(CHECKOUT / part, target / part)


def _says(stamp: Path, text: str) -> bool:
    return stamp.exists() and stamp.read_text() == text
