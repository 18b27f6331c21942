"""What the hypervisor takes is computed so that guest and hypervisor together fit into the job."""

from __future__ import annotations

import pytest

from lrms_vm.overhead import fixed_mib, guest_mib, overhead_mib

KERNEL = 57 << 20  # of the demo's kernel and initrd


@pytest.mark.parametrize("kind", ["qemu", "kvm", "xen"])
@pytest.mark.parametrize("vcpus", [1, 4, 64])
@pytest.mark.parametrize("total_mib", [512, 700, 4096, 1 << 20])
def test_guest_and_overhead_fill_the_job_and_never_more(kind: str, vcpus: int, total_mib: int) -> None:
    guest = guest_mib(total_mib, kind, vcpus=vcpus, kernel_bytes=KERNEL)
    if guest > 0:
        used = guest + overhead_mib(guest, kind, vcpus=vcpus, kernel_bytes=KERNEL)
        assert total_mib - 1 <= used <= total_mib


@pytest.mark.parametrize(
    ("memory_mib", "vcpus", "measured_mib"),
    [(256, 1, 161 + 1), (1024, 1, 161 + 3), (4096, 1, 162 + 9), (1024, 2, 158 + 3), (1024, 4, 162 + 3)],
)
def test_no_guest_that_was_measured_took_more(memory_mib: int, vcpus: int, measured_mib: int) -> None:
    """Emulated, after its boot: anonymous memory beyond the guest's own, and the kernel's for it (docs/confinement.md).
    The translation cache may still grow to its 128 MiB."""
    assert measured_mib < overhead_mib(memory_mib, "qemu", vcpus=vcpus, kernel_bytes=KERNEL) < measured_mib + 100


def test_a_kernel_without_emulation_needs_no_translation_cache() -> None:
    with_it = fixed_mib("qemu", vcpus=1, kernel_bytes=0)
    assert fixed_mib("kvm", vcpus=1, kernel_bytes=1) == with_it - 128 + 1
    assert fixed_mib("xen", vcpus=2, kernel_bytes=KERNEL) == 2
