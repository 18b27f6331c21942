"""The site's kernel is what the configuration says: hashed once, then known by its inode's stamp until that changes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from lrms_vm.config import Kernel
from lrms_vm.errors import NodeError
from lrms_vm.paths import Places
from lrms_vm.store import stamp_of, write_durably


def require_digests(kernel: Kernel, places: Places) -> None:
    """Raises `NodeError` for a file that differs: another node's copy may be good."""
    for path, expected in ((kernel.vmlinuz, kernel.vmlinuz_sha256), (kernel.initrd, kernel.initrd_sha256)):
        if not path:
            continue  # the image's own boot loader finds it
        try:
            with open(path, "rb") as file:
                stamp = list(stamp_of(os.fstat(file.fileno())))
                note = places.state_dir / "kernels" / f"{expected}.json"
                if _noted(note) == stamp:
                    continue
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != expected:
                raise NodeError(
                    f"{path}: sha256 {found}, expected {expected}",
                    hint=f"install kernel {kernel.name} again, or correct [kernels.{kernel.name}]",
                    code="kernel-differs",
                )
            note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(note, json.dumps(stamp).encode())
        except OSError as error:
            raise NodeError(f"{path}: cannot check: {error.strerror}", code="kernel-missing") from error


def size_bytes(kernel: Kernel) -> int:
    """Of vmlinuz and initrd, which QEMU keeps in its memory. Raises `NodeError`."""
    try:
        return sum(os.stat(path).st_size for path in (kernel.vmlinuz, kernel.initrd) if path)
    except OSError as error:
        raise NodeError(f"{error.filename}: cannot look: {error.strerror}", code="kernel-missing") from error


def _noted(note: Path) -> object:
    try:
        return json.loads(note.read_bytes())
    except (FileNotFoundError, ValueError):
        return None  # never hashed here, or cut short by a crash: hash it
