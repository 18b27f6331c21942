"""What a real Xen's libvirt makes of each kind of guest and kernel; starts nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from demo.xen_cluster import XenCluster
from tests.integration.xen.conftest import CONF, GRUB, LRMS_VM, Desk

RENDER = f"{LRMS_VM} render --vm-image=minimal --format=xl"
KERNELS = """
[kernels.own]
boot = "guest"
vmlinuz = "{grub}"
vmlinuz_sha256 = "{sha256}"

[kernels.pvh]
guest = "pvh"
{direct}
[kernels.hvm]
guest = "hvm"
boot = "guest"
"""


@pytest.fixture(scope="module")
def kernels(cluster: XenCluster) -> Iterator[None]:
    """The node's configuration with more kernels in it."""
    before = cluster.node.run(f"cat {CONF}")
    sha256 = cluster.node.run(f"sha256sum {GRUB}").split()[0]
    direct = "".join(re.findall(r"^(?:vmlinuz|initrd)\w* = .*\n", before, re.MULTILINE))
    cluster.node.write(CONF, before + KERNELS.format(grub=GRUB, sha256=sha256, direct=direct))
    yield
    cluster.node.write(CONF, before)


@pytest.mark.usefixtures("kernels")
def test_grub_is_all_that_xl_gets_of_a_kernel(desk: Desk) -> None:
    text = desk.node.run(f"{RENDER} --vm-kernel=own", timeout_s=180)
    assert f'kernel = "{GRUB}"' in text and "ramdisk" not in text and "cmdline" not in text


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("guest", ["pvh", "hvm"])
def test_xl_gets_guests_of_each_kind_from_libvirt(desk: Desk, guest: str) -> None:
    text = desk.node.run(f"{RENDER} --vm-kernel={guest}", timeout_s=180)
    assert f'type = "{guest}"' in text or (guest == "hvm" and 'builder = "hvm"' in text), text


def test_pygrub_is_refused_until_the_site_restricts_it(desk: Desk, cluster: XenCluster) -> None:
    before = cluster.node.run(f"cat {CONF}")
    try:
        cluster.node.write(CONF, before + '\n[kernels.pygrub]\nboot = "pygrub"\n')
        done = desk.node.call(RENDER, timeout_s=180)
        assert done.returncode == 78 and "pygrub" in done.stderr.decode(), done.stderr
        allowed = 'pygrub = "restricted"\npygrub_uid = 64321\n' + before + '\n[kernels.pygrub]\nboot = "pygrub"\n'
        cluster.node.write(CONF, allowed)
        text = desk.node.run(f"{RENDER} --vm-kernel=pygrub", timeout_s=180)
    finally:
        cluster.node.write(CONF, before)
    assert 'bootloader = "/usr/lib/xen-4.17/bin/pygrub"' in text and "--runas=64321" in text
