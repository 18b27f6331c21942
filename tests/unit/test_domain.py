"""describe() gives no more than the allocation; compare() finds whatever a template adds or changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lrms_vm import domain
from lrms_vm.config import Config, Kernel
from lrms_vm.domain import Domain
from lrms_vm.errors import ConfigError, RequestError
from lrms_vm.image import VerifiedImage
from lrms_vm.paths import Places
from lrms_vm.request import Allocation, parse_request

KERNEL = Kernel("site", "/boot/vmlinuz", "/boot/initrd", "0" * 64, "0" * 64)
CONFIG = Config(hypervisor="qemu", kernel="site", kernels={"site": KERNEL})
ALLOCATION = Allocation("slurm", "7", "n1", 1001, 1001, "alice", "/work", cpus=4, memory_mib=4096)
IMAGE = VerifiedImage("atlas", "/store/image", "0" * 64, 1, "CN=a", "CN=ca", "rule")
PLACES = Places(Path("/var/lib/lrms_vm"), Path("/run/lrms_vm"))
TEMPLATES = Path(domain.__file__).parent / "templates"


def describe(*, config: Config = CONFIG, allocation: Allocation = ALLOCATION, **options: str) -> Domain:
    words = {"vm-image": "atlas", **{f"vm-{name}": text for name, text in options.items()}}
    request = parse_request(words, source="test")
    return domain.describe(request, allocation, IMAGE, config=config, places=PLACES.job(allocation.key))


def refused(code: str, **arguments: object) -> str:
    with pytest.raises(RequestError) as caught:
        describe(**arguments)  # type: ignore[arg-type]
    assert caught.value.code == code
    return str(caught.value)


def test_guest_gets_the_allocation_less_the_overhead() -> None:
    made = describe()
    assert (made.name, made.memory_mib, made.vcpus) == ("lrms_vm-slurm-7.n1", 4096 - 192, 4)
    assert (made.network, made.mac, made.run_as) == ("none", None, "libvirt-qemu:libvirt-qemu")


@pytest.mark.parametrize(("asked", "given"), [("1G", 1024), ("3904M", 3904), ("4G", 3904), ("1T", 3904)])
def test_memory_asked_for_is_the_guests_and_never_more_than_there_is(asked: str, given: int) -> None:
    assert describe(memory=asked).memory_mib == given


@pytest.mark.parametrize(("asked", "given"), [("1", 1), ("4", 4), ("9", 4)])
def test_cpus_are_at_most_the_allocations(asked: str, given: int) -> None:
    assert describe(cpus=asked).vcpus == given


def test_too_little_memory_is_refused_with_the_numbers() -> None:
    small = replace(ALLOCATION, memory_mib=256)
    text = refused("memory-too-small", allocation=small, config=replace(CONFIG, memory_overhead_mib=192))
    assert "256 MiB" in text and "192 MiB" in text and "320 MiB" in text
    assert "305 MiB" in refused("memory-too-small", allocation=small)
    assert describe(allocation=replace(ALLOCATION, memory_mib=305)).memory_mib == 128
    refused("memory-too-small", memory="64M")


def test_uncounted_memory_is_the_sites_default_and_at_most_that() -> None:
    uncounted = replace(ALLOCATION, memory_mib=None)
    assert describe(allocation=uncounted).memory_mib == 1024
    assert describe(allocation=uncounted, memory="64G").memory_mib == 1024


def test_network_is_the_policys() -> None:
    refused("network-not-allowed", network="nat")
    refused("network-not-allowed", network="bridge:br0", config=replace(CONFIG, networks_allowed=("nat", "bridge:br1")))
    open_site = replace(CONFIG, network="nat", networks_allowed=("nat", "bridge:br1"))
    assert describe(config=open_site).network == "nat"
    assert describe(config=open_site, network="none").mac is None
    bridged = describe(config=open_site, network="bridge:br1")
    assert bridged.bridge == "br1"
    assert bridged.mac == describe(config=open_site).mac  # the same for the same job
    assert bridged.mac is not None and bridged.mac.startswith("02:") and len(bridged.mac) == 17


def test_kernel_must_be_one_of_the_sites() -> None:
    assert "site" in refused("kernel-unknown", kernel="mine")
    with pytest.raises(ConfigError, match="no default kernel"):
        describe(config=replace(CONFIG, kernel=""))


def test_hypervisor_user_may_name_its_group() -> None:
    assert describe(config=replace(CONFIG, hypervisor_user="qemu:kvm")).run_as == "qemu:kvm"


def rendered(made: Domain) -> str:
    name = "domain-xen.xml.j2" if made.hypervisor == "xen" else "domain-qemu.xml.j2"
    return domain.render(made, (TEMPLATES / name).read_text())


@pytest.mark.parametrize(
    "text",
    [
        "{{ domain.nothing }}",
        "{{ other }}",
        "{{ domain.__class__ }}",
        "{{ domain.name.__class__.__mro__ }}",
        "{% include '/etc/passwd' %}",
        "{% if %}",
        "{{ 1 / 0 }}",
        "{{ domain.memory_mib + 'x' }}",
    ],
)
def test_a_template_that_asks_for_more_than_the_domain_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        domain.render(describe(), text)
    assert caught.value.code == "template-broken"


DEVICE = "<memballoon model='none'/>"
CHANGES = {
    "host device": (DEVICE, "<hostdev mode='subsystem' type='usb'/>"),
    "host directory": (DEVICE, "<filesystem type='mount'><source dir='/'/><target dir='host'/></filesystem>"),
    "third disk": (DEVICE, "<disk type='block' device='disk'><source dev='/dev/sda'/><target dev='vdc'/></disk>"),
    "network": (DEVICE, "<interface type='network'><source network='default'/></interface>"),
    "graphics": (DEVICE, "<graphics type='vnc' listen='0.0.0.0'/>"),
    "second channel": (DEVICE, "<channel type='unix'><source mode='connect' path='/run/docker.sock'/></channel>"),
    "emulator": (DEVICE, "<emulator>/tmp/evil</emulator>"),
    "random numbers from a file": (DEVICE, "<rng model='virtio'><backend model='random'>/etc/shadow</backend></rng>"),
    "nvram": ("</initrd>", "</initrd><nvram>/tmp/x</nvram>"),
    "loader": ("</initrd>", "</initrd><loader>/tmp/x</loader>"),
    "other base": ("/store/image", "/etc/shadow"),
    "base as qcow2": ("<format type='raw'/>", "<format type='qcow2'/>"),
    "no backing chain": ("<backingStore/>", ""),
    "seed writable": ("<readonly/>", ""),
    "seed as qcow2": ("type='raw' cache", "type='qcow2' cache"),
    "disk from elsewhere": ("<disk type='file'", "<disk type='network'"),
    "startup policy": ("<source file='/store/image'/>", "<source file='/store/image' startupPolicy='optional'/>"),
    "more memory": (">3904<", ">8192<"),
    "other unit": ("<memory unit='MiB'>", "<memory unit='GiB'>"),
    "more vcpus": (">4</vcpu>", ">8</vcpu>"),
    "room for more vcpus": ("<vcpu ", "<vcpu current='1' "),
    "other kernel": ("/boot/vmlinuz", "/tmp/vmlinuz"),
    "other arguments": ("root=/dev/vda", "init=/bin/sh root=/dev/vda"),
    "runs as root": ("libvirt-qemu:libvirt-qemu", "+0:+0"),
    "changes owners": ("relabel='no'", "relabel='yes'"),
    "reboots": ("<on_reboot>destroy", "<on_reboot>restart"),
    "kept after a crash": ("<on_crash>destroy", "<on_crash>preserve"),
    "other name": ("lrms_vm-slurm-7.n1", "lrms_vm-slurm-8.n1"),
    "other hypervisor": ("<domain type='qemu'", "<domain type='kvm'"),
    "console elsewhere": ("console.log", "../../../etc/passwd"),
    "channel connects": ("mode='bind'", "mode='connect'"),
    "stray text": (DEVICE, DEVICE + "surprise"),
    "raw qemu arguments": (
        "</devices>",
        "</devices><q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><q:arg value='-s'/>"
        "</q:commandline>",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_compare_finds_what_a_template_changed(what: str) -> None:
    old, new = CHANGES[what]
    made = describe()
    text = rendered(made)
    assert old in text
    with pytest.raises(ConfigError) as caught:
        domain.compare(made, text.replace(old, new, 1))
    assert caught.value.code == "template-differs"


def test_every_missing_line_that_gives_the_guest_something_is_found() -> None:
    made = describe()
    text = rendered(made)
    for element in (
        "source file",
        "source path",
        "source mode",
        "label>",
        "kernel>",
        "initrd>",
        "target dev",
        "on_crash",
    ):
        lines = text.splitlines()
        position = next(i for i, line in enumerate(lines) if f"<{element}" in line)
        with pytest.raises(ConfigError):
            domain.compare(made, "\n".join(lines[:position] + lines[position + 1 :]))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("machine='pc'", "machine='q35'"),
        ("<cpu mode='maximum' check='none' migratable='off'/>", "<cpu mode='custom'><model>Nehalem</model></cpu>"),
        ("cache='unsafe'", "cache='none' io='native'"),
        (DEVICE, DEVICE + "<controller type='scsi' model='virtio-scsi'/><!-- ours -->"),
        ("<on_poweroff>", "<cputune><shares>512</shares></cputune><on_poweroff>"),
    ],
)
def test_a_site_may_tune(old: str, new: str) -> None:
    made = describe()
    text = rendered(made)
    assert old in text
    domain.compare(made, text.replace(old, new, 1))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<domain",
        "<!DOCTYPE d [<!ENTITY a 'b'>]><domain type='qemu'/>",
        "<![CDATA[x]]>",
        "<a>" * 100_000,
        "<domain>\x00</domain>",
        "x" * (1 << 19),
    ],
)
def test_compare_refuses_what_is_not_plain_xml(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        domain.compare(describe(), text)
    assert caught.value.code == "template-unreadable"


def test_deep_xml_ends_with_an_error_of_ours() -> None:
    with pytest.raises(ConfigError):
        domain.compare(describe(), "<a>" * 20_000 + "</a>" * 20_000)
