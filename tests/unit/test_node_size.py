"""What of a node is the guests', what Slurm must be told, and a Xen that has too little for one more guest."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from lrms_vm import checks_xen, node_memory, node_size
from lrms_vm.config import Config
from lrms_vm.errors import NodeError
from lrms_vm.node_size import NodeSize, XenMachine
from tests.fakes import FakeHypervisor
from tests.golden.test_domain_xml import XEN

IDLE = XenMachine(free_mib=4032, cpus=8, dom0_cpus=2)


def test_a_xen_node_is_as_large_with_guests_as_without() -> None:
    idle = node_size.of_xen(IDLE)
    assert idle == NodeSize(6, 4032 - node_size.XEN_SPARE_MIB)
    busy = node_size.of_xen(replace(IDLE, free_mib=4032 - 1000 - 8 - 1, guests=((1000, 1),)))
    assert busy == idle


def test_where_dom0_keeps_every_processor_they_are_shared() -> None:
    assert node_size.of_xen(XenMachine(4032, 2, 2)).cpus == 2


def test_a_full_machine_has_no_negative_size() -> None:
    assert node_size.of_xen(XenMachine(10, 2, 1)).memory_mib == 0
    assert node_size.of_linux(256, 1).memory_mib == 0


def test_slurm_is_told_the_guests_share_and_not_to_believe_dom0() -> None:
    lines = node_size.slurm_lines("x1", NodeSize(6, 3968), "xen")
    assert lines == ("NodeName=x1 CPUs=6 RealMemory=3968", "SlurmdParameters=config_overrides")
    assert node_size.slurm_lines("n1", NodeSize(16, 62259), "kvm") == ("NodeName=n1 CPUs=16 RealMemory=62259",)


def test_a_guest_that_fits_is_let_through_at_once() -> None:
    hypervisor = FakeHypervisor(machine=XenMachine(1856 + 2 + 15, 2, 2))  # 1 MiB a vcpu, 1/128 of its memory
    node_memory.require_free(hypervisor, XEN, deadline=time.monotonic() + 5)
    assert [what for what, _ in hypervisor.calls] == ["xen_machine"]


def test_too_little_memory_is_the_nodes_fault_with_the_numbers() -> None:
    hypervisor = FakeHypervisor(machine=XenMachine(1856 + 2 + 14, 2, 2))
    with pytest.raises(NodeError) as caught:
        node_memory.require_free(hypervisor, XEN, deadline=time.monotonic() + 5, settle_s=0)
    assert caught.value.code == "hypervisor-memory"
    assert "1872 MiB free" in str(caught.value) and "1873 MiB" in str(caught.value)


def test_pages_of_a_guest_that_ended_just_now_are_waited_for() -> None:
    class Settling(FakeHypervisor):
        def xen_machine(self, *, deadline: float) -> XenMachine:
            self.machine = replace(self.machine, free_mib=self.machine.free_mib + 1000)
            return super().xen_machine(deadline=deadline)

    hypervisor = Settling(machine=XenMachine(0, 2, 2))
    node_memory.require_free(hypervisor, XEN, deadline=time.monotonic() + 30, settle_s=20)
    assert len(hypervisor.calls) == 2


@pytest.mark.parametrize(
    ("options", "ok"),
    [
        ("dom0_mem=4096M,max:4096M loglvl=all", True),
        ("console=com1 dom0_mem=max:4096M", True),
        ("dom0_mem=4096M", False),
        ("nodom0_mem=max:1", False),
        ("", False),
    ],
)
def test_dom0_has_a_fixed_share(options: str, ok: bool) -> None:
    found = checks_xen.dom0_memory(options)
    assert found.ok is ok and bool(found.remedy) is not ok


@pytest.mark.parametrize(
    ("conf", "options", "ok"),
    [
        ("# autoballoon = 1\nautoballoon = 0\n", "", True),
        ('autoballoon="off"\n', "", True),
        ("autoballoon = 1\n", "dom0_mem=1G,max:1G", False),
        ("#autoballoon = 0\n", "", False),
        ("", "dom0_mem=1G,max:1G", True),
    ],
)
def test_ballooning_is_off(conf: str, options: str, ok: bool) -> None:
    assert checks_xen.ballooning(conf, options).ok is ok


def test_xen_is_not_asked_about_on_another_hypervisor() -> None:
    assert list(checks_xen.xen(Config(hypervisor="kvm"))) == []
    assert list(checks_xen.networks(Config())) == []


def test_a_bridge_that_is_not_there_is_found() -> None:
    findings = list(checks_xen.networks(Config(networks_allowed=("none", "bridge:lrmsvm-absent"))))
    assert (findings[0].check, findings[0].ok) == ("bridge lrmsvm-absent", False)
    assert {f.check for f in findings[1:]} == {"program nft", "program ip"}


@pytest.mark.parametrize(("told_mib", "ok"), [(3900, True), (3968, True), (3969, False), (6144, False)])
def test_a_batch_system_that_was_told_too_much_is_found(told_mib: int, ok: bool) -> None:
    found = checks_xen.told_of(told_mib, node_size.of_xen(IDLE))
    assert found.ok is ok and ("--slurm-conf" in found.remedy) is not ok
