"""What a guest boots, and what the site must name for it. Pure.

    boot     guest           vmlinuz                  initrd    cmdline
    direct   every           the kernel               its own   the site's, else `cmdline_for`
    guest    pv, pvh (Xen)   GRUB for Xen (pvgrub)    none      none: the image's grub.cfg says
    guest    hvm, and QEMU   none: firmware, disk     none      none
    pygrub   pv              none: dom0 looks inside  none      none

pvgrub runs in the guest, with the guest's rights; pygrub reads the image's file system in dom0, so it is off until the
site says `pygrub = "restricted"`: then it runs as `pygrub_uid`, without a root directory of its own (XSA-443).
"""

from __future__ import annotations

from typing import Protocol

GUESTS = ("pv", "pvh", "hvm")
DIRECT, GUEST, PYGRUB = "direct", "guest", "pygrub"
BOOTS = (DIRECT, GUEST, PYGRUB)
RESTRICTED = "restricted"
HINT = "see docs/images.md, kernels"


class SiteKernel(Protocol):
    """What is asked of config.Kernel."""

    @property
    def vmlinuz(self) -> str: ...
    @property
    def initrd(self) -> str: ...
    @property
    def cmdline(self) -> str: ...
    @property
    def guest(self) -> str: ...
    @property
    def boot(self) -> str: ...


def guest_of(kernel: SiteKernel, hypervisor: str) -> str:
    """What the guest is on Xen: "pv", "pvh" or "hvm". Empty: not Xen's."""
    return (kernel.guest or "pv") if hypervisor == "xen" else ""


def cmdline_for(kernel: SiteKernel, hypervisor: str) -> str:
    """The kernel's arguments; the image's boot loader knows its own."""
    if kernel.boot != DIRECT:
        return ""
    where = "root=/dev/xvda rw console=hvc0" if hypervisor == "xen" else "root=/dev/vda rw console=ttyS0"
    return kernel.cmdline or f"{where} quiet"


def problem(kernel: SiteKernel, hypervisor: str, *, pygrub: str, pygrub_uid: int) -> str:
    """What keeps this kernel from booting here, for a person; empty: nothing."""
    if kernel.boot not in BOOTS:
        return f"boot: expected one of {', '.join(BOOTS)}, got {kernel.boot!r:.40}"
    if kernel.guest not in ("", *GUESTS):
        return f"guest: expected one of {', '.join(GUESTS)}, got {kernel.guest!r:.40}"
    if kernel.guest and hypervisor != "xen":
        return f"guest: {kernel.guest!r} is for Xen, the hypervisor is {hypervisor!r}"
    if kernel.boot == PYGRUB:
        if guest_of(kernel, hypervisor) != "pv":
            return 'boot: "pygrub" is for guests that are "pv" on Xen'
        if pygrub != RESTRICTED or pygrub_uid < 1:
            return (
                'boot: "pygrub" reads images in dom0: say pygrub = "restricted" and a pygrub_uid that runs nothing else'
            )
    given = {name: bool(getattr(kernel, name)) for name in ("vmlinuz", "initrd", "cmdline")}
    needed = {DIRECT: ("vmlinuz", "initrd"), PYGRUB: ()}.get(kernel.boot)
    if needed is None:
        needed = ("vmlinuz",) if guest_of(kernel, hypervisor) in ("pv", "pvh") else ()
    for name in needed:
        if not given[name]:
            return f"{name} is missing, which boot = {kernel.boot!r} takes"
    unused = [
        name
        for name in given
        if given[name] and name not in (*needed, *(("cmdline",) if kernel.boot == DIRECT else ()))
    ]
    return f"{unused[0]}: nothing uses it with boot = {kernel.boot!r}" if unused else ""
