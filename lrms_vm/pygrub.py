"""The kernel out of an image, by Xen's pygrub in its restricted mode, where the site lets dom0 look inside at all.

libxl would run it on the guest's overlay: it plugs that into dom0 as a disk of dom0's own, which pygrub's user may not
open (docs/xen.md). The verified base has the same bytes, is a file, and anybody may read it. So it runs here, before
there is a guest, in a mount name space of its own: what it mounts goes with it, however it ends.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lrms_vm.command import run
from lrms_vm.domain import Domain
from lrms_vm.errors import NodeError, RequestError

UNSHARE = "/usr/bin/unshare"
TIMEOUT_S = 60.0
MAX_OUTPUT_BYTES = 4096
MAX_CMDLINE = 1023  # xen/include/public/xen.h, MAX_GUEST_CMDLINE with its NUL


def take(domain: Domain, directory: Path, *, timeout_s: float) -> Domain:
    """Fill `directory`, which is not there yet, with kernel and initrd; return the domain that boots them.

    What the image says is hostile: its own reader could be made to fail, so a failure is the image's, not the node's.
    Raises `RequestError`, `NodeError`.
    """
    argv = [UNSHARE, "--mount", "--propagation=private", "--", domain.bootloader, *domain.bootloader_args.split()]
    argv += ["--output-format=simple0", f"--output-directory={directory}", domain.base_path]
    try:
        directory.mkdir(mode=0o700)
        said = run(argv, timeout_s=min(timeout_s, TIMEOUT_S))
        kernel, initrd, cmdline = parse(said, directory)
        if not all(Path(path).is_file() for path in (kernel, initrd) if path):  # it removes what turned out empty
            raise _nothing("an empty file")
    except OSError as error:
        raise NodeError(f"{directory}: {error.strerror}", code="state-unwritable") from error
    except NodeError as error:
        if error.code not in ("command-failed", "command-timeout"):
            raise
        raise _nothing(error.message) from error
    return replace(domain, kernel_path=kernel, initrd_path=initrd, cmdline=cmdline, bootloader="", bootloader_args="")


def parse(said: bytes, directory: Path) -> tuple[str, str, str]:
    """Kernel, initrd (or ""), arguments, of pygrub's output format "simple0". Pure. Raises `RequestError`.

    It ends with 0 as well when its restricted half failed: then it says nothing.

    >>> parse(b"kernel /d/boot_kernel.x\\0args root=/dev/xvda\\0\\0", Path("/d"))
    ('/d/boot_kernel.x', '', 'root=/dev/xvda')
    """
    if len(said) > MAX_OUTPUT_BYTES:
        raise _nothing("too long an answer")
    found: dict[str, str] = {}
    for field in said.decode("utf-8", "replace").split("\0"):
        word, _, value = field.partition(" ")
        found.setdefault(word, value)
    for word in ("kernel", "ramdisk"):
        if word in found and Path(found[word]).parent != directory:
            raise _nothing(f"{word} {found[word]!r:.80}")
    cmdline = found.get("args", "").strip()
    if "kernel" not in found or not cmdline.isprintable() or len(cmdline) > MAX_CMDLINE:
        raise _nothing("no kernel" if "kernel" not in found else f"arguments {cmdline!r:.80}")
    return found["kernel"], found.get("ramdisk", ""), cmdline


def _nothing(why: str) -> RequestError:
    return RequestError(
        f"the image's own kernel: pygrub finds none that it can take: {why}",
        hint="the image needs a grub.cfg with a menuentry; or leave --vm-kernel out",
        code="kernel-not-in-image",
    )
