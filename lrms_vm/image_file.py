"""An image as a file of whoever signs or checks it: read through one descriptor, and the same before and after."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from lrms_vm.errors import RequestError, UsageError
from lrms_vm.hashing import Leaves, tree_of_fd
from lrms_vm.trust import tree

LEAF_BYTES = 32


class ImageFile:
    """An open image. Raises `UsageError` for what cannot be read, `RequestError` "signed-nothing" for an empty one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise self.unreadable(error) from error
        self._before = os.fstat(self.fd)
        self.size_bytes = self._before.st_size
        try:
            if not stat.S_ISREG(self._before.st_mode):
                raise UsageError(f"{path}: not a regular file", code="image-unreadable")
            if self.size_bytes == 0:
                raise RequestError(f"{path}: an image of no bytes", code="signed-nothing")
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> ImageFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)

    def require_unchanged(self) -> None:
        """Raises `RequestError` if anybody wrote to it since it was opened."""
        before, after = self._before, os.fstat(self.fd)
        if (before.st_size, before.st_mtime_ns, before.st_ctime_ns) != (
            after.st_size,
            after.st_mtime_ns,
            after.st_ctime_ns,
        ):
            raise RequestError(f"{self.path}: changed while it was read", hint="stop its writer", code="image-changing")

    def unreadable(self, error: OSError) -> UsageError:
        return UsageError(f"{self.path}: cannot read the image: {error.strerror}", code="image-unreadable")


class TreeAhead:
    """An image's chunk tree, begun in a child while it is still asked who vouches for the image.

    Loading the trust core takes a fifth of a second, in which the cores can already hash. Nothing is believed of what
    is read: the claim decides afterwards whether this is the tree it needs. Made before any thread is started.
    """

    chunk_bytes = tree.CHUNK_BYTES  # what `image sign --list` gives; for others it was in vain

    def __init__(self, path: Path) -> None:
        self._file = ImageFile(path)
        ours, theirs = os.pipe()
        self._pipe = open(ours, "rb")  # noqa: SIM115
        self._child = os.fork()
        if self._child == 0:
            code = 1
            try:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.close(ours)
                _tell(theirs, self._file)
                code = 0
            finally:
                os._exit(code)
        os.close(theirs)

    def __enter__(self) -> TreeAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        os.kill(self._child, signal.SIGKILL)  # ours, and not waited for yet: the number is nobody else's
        os.waitpid(self._child, 0)
        self._file.__exit__(kind, error, trace)

    def result(self, progress: Callable[[int], None] | None) -> tuple[Leaves, int]:
        """The tree, and how many bytes it is of. Raises `RequestError` if the image changed, `UsageError`."""
        for line in self._pipe:
            word, _, text = line.decode("ascii", "replace").strip().partition(" ")
            if word == "done" and progress is not None:
                progress(int(text))
            if word == "leaves":
                leaves = bytes.fromhex(text)
                self._file.require_unchanged()
                parts = (leaves[at : at + LEAF_BYTES] for at in range(0, len(leaves), LEAF_BYTES))
                return Leaves(self.chunk_bytes, tuple(parts)), self._file.size_bytes
            if word == "error":
                raise self._file.unreadable(OSError(0, text))
        raise UsageError(f"{self._file.path}: whoever read it was ended", code="image-unreadable")


def _tell(pipe: int, file: ImageFile) -> None:
    """The child's half: lines "done BYTES", then "leaves HEX" or "error TEXT"."""
    with open(pipe, "wb", buffering=0) as told:

        def progress(done_bytes: int) -> None:
            told.write(b"done %d\n" % done_bytes)

        try:
            found = tree_of_fd(file.fd, file.size_bytes, TreeAhead.chunk_bytes, progress=progress)
            line = "leaves " + b"".join(found.leaves).hex()
        except OSError as error:
            line = f"error {error.strerror}"
        view = memoryview(line.encode() + b"\n")
        while view:
            view = view[told.write(view) or 0 :]
