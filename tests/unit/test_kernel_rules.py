"""What a kernel of the site's must name, by how it boots and under which hypervisor."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lrms_vm import domain, kernel_rules
from lrms_vm.config import Config, Kernel, parse
from lrms_vm.errors import ConfigError
from tests.unit.test_domain import describe, rendered

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


XEN = Config(hypervisor="xen", kernel="k")
CASES = {
    "pv": DIRECT,
    "pvh": replace(DIRECT, guest="pvh"),
    "hvm": replace(DIRECT, guest="hvm"),
    "pvgrub": GRUB,
    "firmware": replace(FROM_DISK, guest="hvm"),
    "pygrub": PYGRUB,
}


def described(name: str) -> domain.Domain:
    config = replace(XEN, kernels={"k": CASES[name]}, pygrub="restricted", pygrub_uid=64000)
    return describe(config=config)


@pytest.mark.parametrize("name", CASES)
def test_what_is_described_is_rendered_and_no_other_passes_for_it(name: str) -> None:
    made = described(name)
    text = rendered(made)
    domain.compare(made, text)
    for other in CASES.keys() - {name}:
        with pytest.raises(ConfigError) as caught:
            domain.compare(made, rendered(described(other)))
        assert caught.value.code == "template-differs"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--runas=64000", "--runas=0"),
        ("<bootloader_args>--quiet --runas=64000</bootloader_args>", ""),
        ("/usr/lib/xen-4.17/bin/pygrub", "/tmp/pygrub"),
    ],
)
def test_a_template_cannot_take_pygrubs_restriction_away(old: str, new: str) -> None:
    made = described("pygrub")
    text = rendered(made)
    assert old in text
    with pytest.raises(ConfigError):
        domain.compare(made, text.replace(old, new))


def test_a_template_cannot_bring_a_boot_loader_of_its_own() -> None:
    made = described("pv")
    text = rendered(made).replace("  <os>", "  <bootloader>/usr/lib/xen-4.17/bin/pygrub</bootloader>\n  <os>")
    with pytest.raises(ConfigError):
        domain.compare(made, text)


def test_a_kernel_that_does_not_fit_is_the_sites_fault_also_where_only_render_says_the_hypervisor() -> None:
    with pytest.raises(ConfigError) as caught:
        describe(config=replace(XEN, hypervisor="kvm", kernels={"k": replace(DIRECT, guest="pv")}))
    assert caught.value.code == "kernel-unfit"
