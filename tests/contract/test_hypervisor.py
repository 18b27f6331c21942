"""One contract, every implementation: the fake that other tests use must behave like the real thing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo import hypervisor
from demo.layout import Layout
from lrms_vm.errors import NodeError
from lrms_vm.guest import Hypervisor, Libvirt
from tests.fakes import FakeHypervisor

TEST_XML = "<domain type='test'><name>{name}</name><memory unit='MiB'>64</memory><os><type>hvm</type></os></domain>"
QEMU_XML = """<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os></domain>"""
NAME = f"lrms_vm-contract-{os.getpid()}.here"


def soon(seconds: float = 30.0) -> float:
    return time.monotonic() + seconds


@dataclass
class Case:
    hypervisor: Hypervisor
    xml: str
    kind: str


@pytest.fixture(scope="module")
def real_libvirt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """qemu:///system, started for these tests where nothing else runs it."""
    layout = Layout(tmp_path_factory.mktemp("libvirt"))
    layout.run.mkdir()
    started = hypervisor.start(layout)
    yield hypervisor.URI
    if started:
        assert hypervisor.stop(layout) == []


@pytest.fixture(params=["fake", "libvirt-test", "libvirt-qemu"])
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    if request.param == "fake":
        made = Case(FakeHypervisor(), TEST_XML, "qemu")
    elif request.param == "libvirt-test":
        made = Case(Libvirt("test:///default"), TEST_XML, "test")
    else:
        made = Case(Libvirt(request.getfixturevalue("real_libvirt")), QEMU_XML, "qemu")
    yield made
    made.hypervisor.destroy(NAME, deadline=soon())


def test_a_created_domain_is_listed_and_active(case: Case) -> None:
    case.hypervisor.create(case.xml.format(name=NAME), deadline=soon())
    assert NAME in case.hypervisor.names(deadline=soon())
    assert case.hypervisor.is_active(NAME, deadline=soon())


def test_destroy_leaves_nothing_and_may_be_repeated(case: Case) -> None:
    case.hypervisor.create(case.xml.format(name=NAME), deadline=soon())
    for _ in range(2):
        case.hypervisor.destroy(NAME, deadline=soon())
        assert NAME not in case.hypervisor.names(deadline=soon())
        assert not case.hypervisor.is_active(NAME, deadline=soon())


def test_a_domains_process_is_confined_before_its_first_instruction(real_libvirt: str) -> None:
    made, seen = Libvirt(real_libvirt), []

    def confine(pid: int) -> None:
        assert f"guest={NAME}," in Path(f"/proc/{pid}/cmdline").read_text()
        seen.append(state())

    def state() -> str:
        return subprocess.run(["virsh", "-c", real_libvirt, "domstate", NAME], capture_output=True, text=True).stdout

    try:
        made.create(QEMU_XML.format(name=NAME), deadline=soon(), confine=confine)
        assert ([said.strip() for said in seen], state().strip()) == (["paused"], "running")
    finally:
        made.destroy(NAME, deadline=soon())


def test_what_confining_raises_is_raised_and_the_guest_never_ran(case: Case) -> None:
    def fail(pid: int) -> None:
        raise NodeError("not confined", code="cgroup-failed")

    if case.kind == "test":
        return  # libvirt's test driver has no processes
    if isinstance(case.hypervisor, FakeHypervisor):
        case.hypervisor.process = os.getpid()
    with pytest.raises(NodeError) as caught:
        case.hypervisor.create(case.xml.format(name=NAME), deadline=soon(), confine=fail)
    assert caught.value.code == "cgroup-failed"
    case.hypervisor.destroy(NAME, deadline=soon())
    assert NAME not in case.hypervisor.names(deadline=soon())


def test_a_second_domain_of_the_same_name_is_refused(case: Case) -> None:
    case.hypervisor.create(case.xml.format(name=NAME), deadline=soon())
    with pytest.raises(NodeError) as caught:
        case.hypervisor.create(case.xml.format(name=NAME), deadline=soon())
    assert caught.value.code == "domain-exists"


def test_xml_that_cannot_be_read_is_the_nodes_error(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NodeError) as caught:
        case.hypervisor.create("<domain", deadline=soon())
    assert caught.value.code == "domain-create-failed"
    assert capfd.readouterr().err == ""  # libvirt prints errors by itself unless told otherwise


def test_says_which_kinds_of_domain_it_starts(case: Case) -> None:
    assert case.hypervisor.usable(case.kind, deadline=soon())
    assert not case.hypervisor.usable("vmware", deadline=soon())


def test_a_hypervisor_that_is_down_is_said_to_be() -> None:
    with pytest.raises(NodeError) as caught:
        Libvirt("qemu+unix:///system?socket=/nonexistent/libvirt-sock").names(deadline=soon())
    assert caught.value.code == "hypervisor-down"
    assert "libvirtd" in caught.value.hint
    with pytest.raises(NodeError) as caught:
        FakeHypervisor(down=True).names(deadline=soon())
    assert caught.value.code == "hypervisor-down"


def test_a_hypervisor_that_does_not_answer_is_given_up_at_the_deadline(tmp_path: object) -> None:
    """A socket that takes the connection and says nothing: libvirt alone would wait for ever."""
    program = f"""
import socket, sys, time
from lrms_vm.errors import NodeError
from lrms_vm.guest import Libvirt
path = {str(tmp_path)!r} + "/sock"
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
start = time.monotonic()
try:
    Libvirt("qemu+unix:///system?socket=" + path).names(deadline=start + 0.5)
except NodeError as error:
    print(error.code, time.monotonic() - start < 5)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
    assert ended.stdout.split() == ["hypervisor-timeout", "True"], ended.stderr
    assert ended.returncode == 0  # and the thread that still waits does not keep the process
