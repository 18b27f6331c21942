"""What dom0's disk is made from."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

from demo import guide
from demo.machine_image import Recipe
from demo.machine_layout import MachineLayout
from demo.xen_conf import MASKED

MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "9pnet_virtio", "9p", "crc32c_generic", "ext4"),
    *("loop", "xen_evtchn", "xen_gntdev", "xen_gntalloc", "xen_privcmd", "xenfs", "xen_blkback", "xen_netback"),
    *("bridge", "br_netfilter", "isofs", "fuse"),
)


def _boot_files(layout: MachineLayout, kernel: Path) -> None:
    """Xen as an ELF file, which is what QEMU's -kernel loads, and dom0's kernel."""
    (xen,) = kernel.parent.glob("xen-*-amd64.gz")
    (layout.node / "xen.elf").write_bytes(gzip.decompress(xen.read_bytes()))
    shutil.copyfile(kernel, layout.node / "vmlinuz")


RECIPE = Recipe(
    what="dom0",
    headings=guide.sections("Xen"),
    packages=("tcpdump",),
    modules=MODULES,
    masked=MASKED,
    appended_to=("etc/libvirt/libxl.conf", "etc/xen/xl.conf"),
    made_by_guide=("etc/systemd/system/libvirtd.service.d",),
    mke2fs=("-O", "^has_journal", "-m", "0"),
    disk_mib=12288,
    boot_files=_boot_files,
)
