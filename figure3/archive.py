"""An initramfs as the kernel reads it (newc, its buffer-format.rst), of any size: the root disk is a file in it. Pure
but for the files it is given to copy."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

DIRECTORY = 0o040755
PROGRAM = 0o100755
DATA = 0o100644
Content = bytes | Path


def write(target: BinaryIO, entries: Mapping[str, tuple[int, Content]]) -> None:
    """Write the archive: path, mode and content of each, in this order; owner root, time 0."""
    for inode, (name, (mode, content)) in enumerate(entries.items(), 1):
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        _head(target, inode, name, mode, size)
        if isinstance(content, Path):
            with content.open("rb") as source:
                shutil.copyfileobj(source, target, 1 << 20)
        else:
            target.write(content)
        _pad(target, size)
    _head(target, 0, "TRAILER!!!", 0, 0)


def _head(target: BinaryIO, inode: int, name: str, mode: int, size: int) -> None:
    fields = (inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + "".join(f"{field:08X}" for field in fields).encode() + name.encode() + b"\0"
    target.write(head)
    _pad(target, len(head))


def _pad(target: BinaryIO, written: int) -> None:
    target.write(b"\0" * (-written % 4))
