"""What pygrub says of an image is the image's to choose: taken only where it is what was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrms_vm import pygrub
from lrms_vm.errors import RequestError

D = Path("/var/lib/lrms_vm/jobs/slurm-7.n1/boot")


def test_kernel_initrd_and_arguments() -> None:
    said = f"kernel {D}/boot_kernel.a\0ramdisk {D}/boot_ramdisk.b\0args  root=/dev/xvda quiet\0\0".encode()
    assert pygrub.parse(said, D) == (f"{D}/boot_kernel.a", f"{D}/boot_ramdisk.b", "root=/dev/xvda quiet")


@pytest.mark.parametrize(
    "said",
    [
        "",  # its restricted half failed, and it ended with 0
        f"ramdisk {D}/boot_ramdisk.b\0args x\0\0",
        "kernel /etc/shadow\0\0",
        f"kernel {D}/../boot_kernel.a\0\0",
        f"kernel {D}/boot_kernel.a\0ramdisk /etc/shadow\0\0",
        f"kernel {D}/boot_kernel.a\0args a\nb\0\0",
        f"kernel {D}/boot_kernel.a\0args {'a' * 1024}\0\0",
        f"kernel {D}/boot_kernel.a\0args {'a' * 5000}\0\0",
    ],
)
def test_anything_else_is_the_images_fault(said: str) -> None:
    with pytest.raises(RequestError) as raised:
        pygrub.parse(said.encode(), D)
    assert raised.value.code == "kernel-not-in-image"


def test_the_first_kernel_counts() -> None:
    said = f"kernel {D}/a\0args x\0kernel /etc/shadow\0\0".encode()
    assert pygrub.parse(said, D) == (f"{D}/a", "", "x")
