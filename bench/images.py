"""Images of the sizes the goals name, sparse and dense, signed by the demo's builder; removed at the end."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from types import TracebackType

from demo import site
from demo.layout import NODES, Layout
from demo.progress import say, step
from lrms_vm import cache, store
from lrms_vm import config as configuration

GIB = 1 << 30
SPARE_BYTES = 8 * GIB  # never fill the machine's disk


class Images:
    """Owns the files it makes: they are gone when the block ends."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.names: list[tuple[str, str]] = []  # (image name, what it is)

    def __enter__(self) -> Images:
        self._make("bench-1GiB", GIB, dense=True)
        self._make("bench-20GiB-sparse", 20 * GIB, dense=False)
        free = shutil.disk_usage(self.layout.images).free
        gib = min(20, (free - SPARE_BYTES) // (2 * GIB))  # the image and its copy in the cache
        if gib < 20:
            say(f"       only {free // GIB} GiB of disk free: the dense image has {gib} GiB, not 20")
        self._make("bench-20GiB", gib * GIB, dense=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, _ in self.names:
            image = site.image_path(self.layout, name)
            for path in (image, site.signature_path(image)):
                path.unlink(missing_ok=True)
        site.configure(self.layout)
        self._evict()

    def _evict(self) -> None:
        """Out of the nodes' caches too: 40 GiB that no job will ask for."""
        sources = {str(site.image_path(self.layout, name)) for name, _ in self.names}
        for node in NODES:
            places = configuration.load(self.layout.config(node)).places
            with store.changing(places, deadline=time.monotonic() + 30):
                for entry in cache.entries(places):
                    if entry.source in sources:
                        store.remove(places, entry.sha256)

    def _make(self, name: str, size_bytes: int, *, dense: bool) -> None:
        path = site.image_path(self.layout, name)
        self.names.append((name, f"{size_bytes // GIB} GiB {'dense' if dense else 'sparse'}"))
        with step(f"image {name}: {self.names[-1][1]}"):
            site.copy_sparse(site.image_path(self.layout, "minimal"), path)
            if dense:
                _fill(path, size_bytes)
            os.truncate(path, size_bytes)
            site.sign(self.layout, path, who="builder")


def _fill(path: Path, size_bytes: int) -> None:
    """Append bytes that are no hole and do not compress, up to the size."""
    block = os.urandom(4 << 20)
    with path.open("ab") as file:
        position = file.tell()
        while position < size_bytes:
            position += file.write(position.to_bytes(8, "big") + block[8 : min(len(block), size_bytes - position)])
