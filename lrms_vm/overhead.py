"""How much memory a hypervisor takes for a guest beyond the guest's own. Pure.

    QEMU   32 MiB + 4 MiB a vCPU + the kernel and initrd it hands over + 1/256 of the guest's memory
           + 128 MiB in emulation, tb-size in templates/domain-qemu.xml.j2
    Xen    1 MiB a vCPU + 1/128 of the guest's memory (xl.cfg(5), shadow_memory)

QEMU's figures were measured (docs/confinement.md): the process is 10 MiB when it starts and keeps -kernel and -initrd
whole; page tables are 1/512 of what a guest touches, and KVM has a second set. What remains of the 32 MiB is for the
devices' buffers. A site that knows better says memory_overhead_mib.
"""

from __future__ import annotations

QEMU_MIB = 32
QEMU_VCPU_MIB = 4
EMULATION_MIB = 128
QEMU_SHARE = 256
XEN_VCPU_MIB = 1
XEN_SHARE = 128


def fixed_mib(hypervisor: str, *, vcpus: int, kernel_bytes: int) -> int:
    """What does not depend on the guest's memory. `kernel_bytes`: vmlinuz and initrd together."""
    if hypervisor == "xen":
        return XEN_VCPU_MIB * vcpus
    kernel_mib = -(-kernel_bytes >> 20)
    return QEMU_MIB + QEMU_VCPU_MIB * vcpus + kernel_mib + (EMULATION_MIB if hypervisor == "qemu" else 0)


def guest_mib(total_mib: int, hypervisor: str, *, vcpus: int, kernel_bytes: int) -> int:
    """The largest guest that fits into `total_mib` with its hypervisor; may be 0 or less.

    >>> guest_mib(4096, "kvm", vcpus=4, kernel_bytes=50 << 20)
    3982
    """
    share = XEN_SHARE if hypervisor == "xen" else QEMU_SHARE
    return (total_mib - fixed_mib(hypervisor, vcpus=vcpus, kernel_bytes=kernel_bytes)) * share // (share + 1)


def overhead_mib(memory_mib: int, hypervisor: str, *, vcpus: int, kernel_bytes: int) -> int:
    """What the hypervisor takes for a guest of `memory_mib`.

    >>> overhead_mib(3982, "kvm", vcpus=4, kernel_bytes=50 << 20)
    114
    """
    share = XEN_SHARE if hypervisor == "xen" else QEMU_SHARE
    return fixed_mib(hypervisor, vcpus=vcpus, kernel_bytes=kernel_bytes) + -(-memory_mib // share)
