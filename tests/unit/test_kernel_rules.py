"""What a kernel of the site's must name, by how it boots and under which hypervisor."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lrms_vm import kernel_rules
from lrms_vm.config import Kernel, parse
from lrms_vm.errors import ConfigError

DIRECT = Kernel("k", "/boot/vmlinuz", "/boot/initrd", "0" * 64, "0" * 64)
GRUB = Kernel("k", "/usr/lib/grub-xen/grub-x86_64-xen.bin", vmlinuz_sha256="0" * 64, boot="guest")
FROM_DISK = Kernel("k", boot="guest")
PYGRUB = Kernel("k", boot="pygrub")


def problem(kernel: Kernel, hypervisor: str = "xen", *, pygrub: str = "off", uid: int = 0) -> str:
    return kernel_rules.problem(kernel, hypervisor, pygrub=pygrub, pygrub_uid=uid)


@pytest.mark.parametrize(
    ("kernel", "hypervisor"),
    [
        *((DIRECT, hypervisor) for hypervisor in ("qemu", "kvm", "xen")),
        *((replace(DIRECT, guest=guest), "xen") for guest in kernel_rules.GUESTS),
        (GRUB, "xen"),
        (replace(GRUB, guest="pvh"), "xen"),
        (replace(FROM_DISK, guest="hvm"), "xen"),
        (FROM_DISK, "kvm"),
    ],
)
def test_what_boots(kernel: Kernel, hypervisor: str) -> None:
    assert problem(kernel, hypervisor) == ""


@pytest.mark.parametrize(
    ("kernel", "hypervisor", "word"),
    [
        (replace(DIRECT, boot="disk"), "xen", "boot: expected one of direct, guest, pygrub"),
        (replace(DIRECT, guest="pvx"), "xen", "guest: expected one of pv, pvh, hvm"),
        (replace(DIRECT, guest="pv"), "kvm", "guest: 'pv' is for Xen"),
        (replace(DIRECT, vmlinuz=""), "xen", "vmlinuz is missing"),
        (replace(DIRECT, initrd=""), "kvm", "initrd is missing"),
        (replace(DIRECT, boot="guest"), "xen", "initrd: nothing uses it"),
        (replace(DIRECT, boot="guest"), "kvm", "vmlinuz: nothing uses it"),
        (replace(GRUB, cmdline="quiet"), "xen", "cmdline: nothing uses it"),
        (replace(GRUB, guest="hvm"), "xen", "vmlinuz: nothing uses it"),
        (FROM_DISK, "xen", "vmlinuz is missing"),
        (PYGRUB, "kvm", "is for guests that are"),
        (replace(PYGRUB, guest="pvh"), "xen", "is for guests that are"),
    ],
)
def test_what_does_not(kernel: Kernel, hypervisor: str, word: str) -> None:
    assert word in problem(kernel, hypervisor, pygrub="restricted", uid=64000)


def test_pygrub_only_restricted_and_as_somebody() -> None:
    assert problem(PYGRUB, pygrub="restricted", uid=64000) == ""
    assert "restricted" in problem(PYGRUB)
    assert "pygrub_uid" in problem(PYGRUB, pygrub="restricted")
    assert "restricted" in problem(PYGRUB, uid=64000)


def test_one_kernel_serves_both_hypervisors() -> None:
    assert kernel_rules.cmdline_for(DIRECT, "kvm") == "root=/dev/vda rw console=ttyS0 quiet"
    assert kernel_rules.cmdline_for(DIRECT, "xen") == "root=/dev/xvda rw console=hvc0 quiet"
    assert kernel_rules.cmdline_for(replace(DIRECT, cmdline="single"), "xen") == "single"
    assert kernel_rules.cmdline_for(GRUB, "xen") == ""


def parsed(lines: str) -> Kernel:
    return parse(f'version = 1\nhypervisor = "xen"\n{lines}'.encode(), source="t").kernels["k"]


def test_the_configuration_says_it() -> None:
    digest = "0" * 64
    grub = parsed(f'[kernels.k]\nboot = "guest"\nvmlinuz = "/g"\nvmlinuz_sha256 = "{digest}"\n')
    assert (grub.vmlinuz, grub.initrd, grub.boot) == ("/g", "", "guest")
    assert parsed('pygrub = "restricted"\npygrub_uid = 64000\n[kernels.k]\nboot = "pygrub"\n').boot == "pygrub"


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        ('[kernels.k]\nboot = "pygrub"\n', "kernels.k.boot: "),
        ('[kernels.k]\nboot = "guest"\nvmlinuz = "/g"\n', "kernels.k: '' is not a sha256"),
        ('[kernels.k]\nvmlinuz = "/g"\n', "kernels.k.initrd is missing"),
        ('pygrub = "yes"\n', "pygrub: expected one of off, restricted"),
        ('pygrub_program = "pygrub"\n', "pygrub_program: expected an absolute path"),
    ],
)
def test_the_configuration_is_refused(lines: str, word: str) -> None:
    with pytest.raises(ConfigError, match="t: ") as caught:
        parsed(lines)
    assert word in str(caught.value)
