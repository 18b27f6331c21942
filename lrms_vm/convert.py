"""The signed bytes made into the raw disk that boots: raw stays as it is, qcow2 is converted once, in a sandbox.

Called with bytes whose signature was accepted: verify first, then look inside. Our own reader (qcow2.py) decides what
is converted, and how large it gets; qemu-img, which is a large parser in C, does it as nobody, with no network, seeing
/usr, the one file and the other, and is told the format: it never guesses. What it wrote is hashed here as any image.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lrms_vm import command, disk_format, qcow2
from lrms_vm.command import ENVIRONMENT, Identity
from lrms_vm.errors import NodeError, RequestError, SiteError
from lrms_vm.fetch import unprivileged
from lrms_vm.hashing import hash_fd
from lrms_vm.ingest import Received
from lrms_vm.store import Vouched, stamp_of

if TYPE_CHECKING:
    from lrms_vm.trust.verify import Claim

BWRAP, SETPRIV, PRLIMIT, QEMU_IMG = "/usr/bin/bwrap", "/usr/bin/setpriv", "/usr/bin/prlimit", "/usr/bin/qemu-img"
MAX_MEMORY_BYTES = 1 << 30  # address space; it takes less than 256 MiB, also for 2 MiB clusters
MAX_PROCESSES = 512  # of the user, with what else runs as nobody: each thread counts
MAX_TOLD_BYTES = 4096
_SYSTEM = ("/lib", "/lib64", "/lib32")


def as_raw(part: Path, received: Received, claim: Claim, *, source: str, deadline: float) -> tuple[Vouched, Received]:
    """Make part/image the raw disk, if it is not. Returns (what was signed, what is there now).

    Raises `RequestError` for what `look` refuses and for what qemu-img cannot read, `SiteError` when the `deadline`
    (monotonic) passes, `NodeError` where there is no sandbox, `OSError` from the disk.
    """
    image, raw = part / "image", part / "raw"
    fd = os.open(image, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        header = look(fd, claim, source=source, deadline=deadline)
    finally:
        os.close(fd)
    if header is None:
        return Vouched(received.digests, received.size_bytes), received
    raw.unlink(missing_ok=True)  # of one that was killed here: a partial can be taken up again
    try:
        digests = to_raw(image, raw, max_virtual_bytes=header.virtual_size_bytes, deadline=deadline, source=source)
        if raw.lstat().st_size != header.virtual_size_bytes:
            raise RequestError(
                f"{source}: qemu-img finds a disk of {raw.lstat().st_size} bytes in the qcow2, we find one of "
                f"{header.virtual_size_bytes}",
                hint="the file means different things to different readers: make it anew",
                code="image-ambiguous",
            )
        raw.rename(image)
    finally:
        raw.unlink(missing_ok=True)
    vouched = Vouched(received.digests, received.size_bytes, "qcow2")
    return vouched, Received(digests, stamp_of(image.lstat()))


def look(fd: int, claim: Claim, *, source: str, deadline: float) -> qcow2.Header | None:
    """Look into verified bytes: None for a raw disk, the header for a qcow2 that may be converted.

    Raises `RequestError` ("image-not-raw" or a code of qcow2.py), `SiteError` when the `deadline` passes.
    """
    size_bytes = os.fstat(fd).st_size
    head = os.pread(fd, disk_format.HEAD_BYTES, 0)
    tail = os.pread(fd, disk_format.TAIL_BYTES, max(0, size_bytes - disk_format.TAIL_BYTES))
    found = disk_format.detect(head, tail)
    header = None
    if found == "qcow2" and "qcow2" in claim.formats:

        def read(offset: int, size: int) -> bytes:
            if time.monotonic() > deadline:
                raise _late(source)
            return os.pread(fd, size, offset)

        limits = {"max_virtual_bytes": claim.max_virtual_bytes, "max_ratio": claim.max_ratio}
        header = qcow2.check(read, size_bytes, **limits, source=source)
    elif found != "raw":
        raise disk_format.not_raw(found, source=source)
    disk_bytes = header.virtual_size_bytes if header else size_bytes
    if claim.virtual_size_bytes not in (None, disk_bytes):
        raise RequestError(
            f"{source}: the disk has {disk_bytes} bytes, its signed list says {claim.virtual_size_bytes}",
            hint="the list's endorser must put it right",
            code="image-size-differs",
        )
    return header


def to_raw(
    source_path: Path, target_path: Path, *, max_virtual_bytes: int, deadline: float, source: str = ""
) -> dict[str, bytes]:
    """Convert a qcow2 that was checked into a new file, read-only and synced; return its digests.

    The new file is sparse and at most `max_virtual_bytes` long. Raises as `as_raw` does.
    """
    identity = unprivileged()
    fd = os.open(target_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if identity is not None:
            os.fchown(fd, identity.uid, identity.gid)
        _run(
            sandbox_argv(
                source_path,
                target_path,
                identity=identity,
                max_bytes=max_virtual_bytes,
                max_cpu_s=int(command.remaining_s(deadline)) + 10,
                links={path: os.path.islink(path) for path in _SYSTEM if os.path.exists(path)},
            ),
            source=source or str(source_path),
            target=target_path,
            deadline=deadline,
        )
        if identity is not None:
            os.fchown(fd, os.geteuid(), os.getegid())
        os.fchmod(fd, 0o444)
        os.fsync(fd)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or not 0 < status.st_size <= max_virtual_bytes:
            raise NodeError(f"{target_path}: not what was made there: {status}", code="sandbox-failed")
        return hash_fd(fd, status.st_size, {"sha256"})
    finally:
        os.close(fd)


def sandbox_argv(
    source: Path, target: Path, *, identity: Identity | None, max_bytes: int, max_cpu_s: int, links: dict[str, bool]
) -> list[str]:
    """The command. As root: bwrap makes the name spaces, then setpriv gives up root for good. Else bwrap does both.

    `links`: which of the host's top directories for libraries there are, and whether each is a link into /usr.
    """
    system = [
        word
        for path, is_link in links.items()
        for word in (("--symlink", f"usr{path}", path) if is_link else ("--ro-bind", path, path))
    ]
    limits = {
        "as": MAX_MEMORY_BYTES,
        "cpu": max_cpu_s,
        "fsize": max_bytes,
        "nproc": MAX_PROCESSES,
        "nofile": 64,
        "stack": 1 << 20,  # and so each thread's
        "core": 0,
    }
    drop = []
    if identity is not None:
        drop = [SETPRIV, f"--reuid={identity.uid}", f"--regid={identity.gid}", "--clear-groups", "--no-new-privs"]
        drop += ["--inh-caps=-all", "--"]
    keep = ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID") if identity is not None else ("--unshare-user",)
    return [
        *(BWRAP, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        *("--die-with-parent", "--cap-drop", "ALL", *keep),
        *("--ro-bind", "/usr", "/usr", *system, "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"),
        *("--dev", "/dev"),
        *("--ro-bind", str(source), "/image", "--bind", str(target), "/raw", "--chdir", "/", "--"),
        *drop,
        *(PRLIMIT, *(f"--{name}={value}" for name, value in limits.items()), "--"),
        *(QEMU_IMG, "convert", "-f", "qcow2", "-O", "raw", "-S", "64k", "/image", "/raw"),
    ]


def _run(argv: list[str], *, source: str, target: Path, deadline: float) -> None:
    environment = {**ENVIRONMENT, "MALLOC_ARENA_MAX": "1"}  # more would be address space, and so against its limit
    with command.streaming(argv, identity=None, environment=environment) as process:
        try:
            process.wait(command.remaining_s(deadline))
        except subprocess.TimeoutExpired as error:
            raise _late(source) from error
        told = _told(process)
    if process.returncode == 0:
        return
    text = told.decode("utf-8", "replace").strip()
    said = "".join(c if c.isprintable() else "?" for c in (text if len(text) <= 300 else f"...{text[-300:]}"))
    for full in (errno.ENOSPC, errno.EDQUOT):
        if os.strerror(full) in said:
            raise OSError(full, os.strerror(full), str(target))
    if text.startswith(("bwrap:", "setpriv:", "prlimit:")) or process.returncode in (126, 127):
        raise NodeError(
            f"the sandbox for converting images ended with {process.returncode}: {said}",
            hint="apt install bubblewrap qemu-utils util-linux",
            code="sandbox-failed",
        )
    raise RequestError(
        f"{source}: qemu-img cannot convert the qcow2 (exit {process.returncode}): {said or 'it was killed'}",
        hint="make it anew with `qemu-img convert -O raw`, and sign the result",
        code="image-unconvertible",
    )


def _told(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    try:
        return os.read(process.stderr.fileno(), MAX_TOLD_BYTES)
    except BlockingIOError:
        return b""


def _late(source: str) -> SiteError:
    return SiteError(
        f"{source}: the deadline passed while the qcow2 was looked at or converted",
        hint="try again later; a raw image need not be converted",
        code="image-conversion-slow",
    )
