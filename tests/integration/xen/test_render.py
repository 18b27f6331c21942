"""`lrms-vm render --format=xl` and `doctor --slurm-conf` on a real Xen node; what was rendered starts with `xl create`."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from demo.programs import wait_until
from demo.xen_layout import NODE
from tests.integration.xen.conftest import BOOT_S, LRMS_VM, Desk

RENDER = f"{LRMS_VM} render --vm-image=minimal --memory 600M"
DOMAIN = "lrms_vm-local-0.node"
JOB = "/var/lib/lrms_vm/jobs/local-0.node"
RUN = "/run/lrms_vm/jobs/local-0.node"
CONSOLE = "/root/by-hand.console"


@pytest.fixture
def by_hand(desk: Desk) -> Iterator[str]:
    """The rendered xl.cfg with the disks it names; how much memory the guest has is in it."""
    text = desk.node.run(f"{RENDER} --format=xl", timeout_s=180)
    base = desk.cluster.layout.site.images / "minimal.raw"
    desk.node.run(
        f"mkdir -p {JOB} {RUN}; truncate -s 1M {JOB}/seed.iso; "
        f"qemu-img create -q -f qcow2 -b {base} -F raw {JOB}/overlay.qcow2"
    )
    desk.node.write("/root/by-hand.cfg", text)
    yield text
    desk.node.call(f"xl destroy {DOMAIN}")
    wait_until("the domain gone", lambda: DOMAIN not in desk.node.run("xl list"), timeout_s=60)
    desk.node.run(f"rm -rf {JOB} {RUN} {CONSOLE} /root/by-hand.cfg")


@pytest.mark.guest
def test_what_was_rendered_starts_with_xl_create(desk: Desk, by_hand: str) -> None:
    assert f'name = "{DOMAIN}"' in by_hand and "channel = [" in by_hand
    desk.node.run("xl create -q /root/by-hand.cfg", timeout_s=180)
    desk.node.run(f"nohup timeout {BOOT_S} xl console {DOMAIN} </dev/null >{CONSOLE} 2>&1 &")
    wait_until("a login prompt", lambda: "login:" in desk.node.run(f"cat {CONSOLE}"), timeout_s=BOOT_S, pause_s=2)
    memory_mib = int(re.findall(r"^memory = (\d+)$", by_hand, re.MULTILINE)[0])
    assert desk.node.run("xl list").count(f" {memory_mib} ") == 1
    assert desk.node.run(f"test -S {RUN}/channel.sock && echo bound") == "bound\n"


def test_a_network_is_rendered_for_xl(desk: Desk) -> None:
    text = desk.node.run(f"{RENDER} --format=xl --vm-network=nat", timeout_s=180)
    assert re.search(r'^vif = \[ "mac=02:[0-9a-f:]{14},bridge=lrms_vm0,.*vifname=lrmsv[0-9a-f]{10}" \]$', text, re.M), (
        text
    )


def test_slurm_is_told_what_the_guests_have_and_not_dom0(desk: Desk) -> None:
    line, overrides = desk.node.run(f"{LRMS_VM} doctor --slurm-conf", timeout_s=180).splitlines()
    match = re.fullmatch(rf"NodeName={NODE} CPUs=1 RealMemory=(\d+)", line)
    assert match is not None, line
    assert overrides == "SlurmdParameters=config_overrides"
    info = dict(re.findall(r"^(\w+) +: (\d+)$", desk.node.run("xl info"), re.MULTILINE))
    dom0_mib = int(re.findall(r"MemTotal: +(\d+)", desk.node.run("cat /proc/meminfo"))[0]) >> 10
    assert 0 <= int(info["free_memory"]) - int(match[1]) <= 128
    assert int(match[1]) > dom0_mib + 1000  # not by chance the same


def test_doctor_sees_what_an_administrator_took_away(desk: Desk) -> None:
    desk.node.run("sed -i.kept 's/^autoballoon.*/autoballoon = 1/' /etc/libvirt/libxl.conf")
    try:
        done = desk.node.call(f"{LRMS_VM} doctor", timeout_s=180)
    finally:
        desk.node.run("mv /etc/libvirt/libxl.conf.kept /etc/libvirt/libxl.conf")
    said = done.stdout.decode()
    assert done.returncode == 69 and "STOP  ballooning is off" in said, said
    assert "ok    dom0_mem" in said and "ok    qemu-system-xen" in said
