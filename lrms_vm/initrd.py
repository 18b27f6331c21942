"""The site's initrd, made as bytes: busybox, a dozen kernel modules, one short script. The same input, the same bytes.

initramfs-tools would run the image's code to make it, bring udev into it, and take seconds of every boot under
emulation; what is needed is: load these modules in this order, wait for the root disk, mount it, go.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence

from lrms_vm.errors import NodeError

# Names under which the script's programs are busybox.
APPLETS = ("cat", "chmod", "chroot", "findfs", "insmod", "mkdir", "mount", "sh", "sleep", "switch_root")

# rootflags=, ro and rw as in bootparam(7). /dev/fuse: without udev nobody else would open it to users.
INIT = """\
#!/bin/sh
export PATH=/bin
mount -t devtmpfs -o mode=0755,nosuid dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys

root=/dev/vda
how=rw
flags=
init=/sbin/init
for word in $(cat /proc/cmdline); do
    case $word in
        root=*) root=${word#root=} ;;
        rootflags=*) flags=,${word#rootflags=} ;;
        ro | rw) how=$word ;;
        init=*) init=${word#init=} ;;
    esac
done

case $(cat /sys/hypervisor/type 2>/dev/null) in
    xen) modules="@XEN@" ;;
    *) modules="@MODULES@" ;;
esac
for module in $modules; do
    insmod "/modules/$module.ko" || echo "lrms_vm initrd: cannot load $module" >/dev/console
done
[ ! -c /dev/fuse ] || chmod 0666 /dev/fuse

tries=0
while :; do
    case $root in
        LABEL=* | UUID=*) device=$(findfs "$root" 2>/dev/null) ;;
        *) device=$root ;;
    esac
    [ ! -b "$device" ] || break
    tries=$((tries + 1))
    if [ $tries -gt 600 ]; then
        echo "lrms_vm initrd: no root disk $root after 30 s" >/dev/console
        exit 1
    fi
    sleep 0.05
done
mount -t ext4 -o "$how$flags" "$device" /root || exit 1
seed=$(findfs LABEL=cidata 2>/dev/null)

mount -o move /proc /root/proc
mount -o move /sys /root/sys
mount -o move /dev /root/dev
if [ -b "/root$seed" ]; then
    # What systemd would mount first, so that the guest's half need not wait for it.
    mkdir -p /root/dev/pts /root/dev/shm
    mount -t devpts -o nosuid,noexec,mode=0620,gid=5 devpts /root/dev/pts
    mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs /root/dev/shm
    mount -t tmpfs -o nosuid,nodev,mode=0755 tmpfs /root/run
    mkdir -p /root/run/lrms_vm/seed
    mount -t iso9660 -o ro,nosuid,nodev,mode=0500,dmode=0500,uid=0,gid=0 "/root$seed" /root/run/lrms_vm/seed &&
        [ -x /root/run/lrms_vm/seed/lrms_vm/guest ] &&
        chroot /root /run/lrms_vm/seed/lrms_vm/guest early /run/lrms_vm/seed/lrms_vm \
            </root/dev/null >/root/dev/console 2>&1
fi
exec switch_root /root "$init" </root/dev/console >/root/dev/console 2>&1
"""

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
_DIRECTORIES = ("bin", "dev", "modules", "proc", "root", "sys")
_S_IFDIR, _S_IFREG, _S_IFLNK, _S_IFCHR = 0o040000, 0o100000, 0o120000, 0o020000


def load_order(wanted: Sequence[str], modules: Mapping[str, bytes]) -> list[str]:
    """The modules to load, each after those it depends on, by the `depends=` of its own .modinfo section.

    Raises `NodeError` for a module the kernel does not have; what is built in is no module, do not ask for it.
    """
    order: list[str] = []

    def add(name: str, needed_by: str) -> None:
        if name in order:
            return
        if name not in modules:
            raise NodeError(f"kernel: no module {name} ({needed_by})", code="kernel-module-missing")
        match = _DEPENDS.search(modules[name])
        for other in (match[1].decode("ascii", "replace") if match else "").split(","):
            if other:
                add(other.replace("-", "_"), f"needed by {name}")
        order.append(name)

    for name in wanted:
        add(name.replace("-", "_"), "asked for by the recipe")
    return order


def make(busybox: bytes, modules: Mapping[str, bytes], *, common: Sequence[str], xen: Sequence[str]) -> bytes:
    """The initrd, uncompressed: 4 MB that nothing has to unpack. Format: newc, the kernel's buffer-format.rst."""
    orders = {"@MODULES@": load_order(common, modules), "@XEN@": load_order(xen, modules)}
    init = INIT
    for mark, order in orders.items():
        init = init.replace(mark, " ".join(order))
    entries = [(name, _S_IFDIR | 0o755, b"") for name in _DIRECTORIES]
    entries.append(("bin/busybox", _S_IFREG | 0o755, busybox))
    entries += [(f"bin/{applet}", _S_IFLNK | 0o777, b"busybox") for applet in APPLETS]
    for name in sorted({name for order in orders.values() for name in order}):
        entries.append((f"modules/{name}.ko", _S_IFREG | 0o644, modules[name]))
    entries.append(("init", _S_IFREG | 0o755, init.encode()))
    parts = [_entry(n, name, mode, data) for n, (name, mode, data) in enumerate(entries, 1)]
    parts.append(_entry(len(parts) + 1, "dev/console", _S_IFCHR | 0o600, b"", device=(5, 1)))
    parts.append(_entry(0, "TRAILER!!!", 0, b""))
    return b"".join(parts)


def _entry(inode: int, name: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> bytes:
    """One file of a newc archive: owner root, time 0, so that equal files make equal archives."""
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
    head = b"070701" + "".join(f"{field:08X}" for field in fields).encode() + name.encode() + b"\0"
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


# What a bzImage's payload may be compressed with, by its first bytes, and the program that unpacks it.
# The last four bytes of a payload are its unpacked size (arch/x86/boot/compressed/Makefile), no part of the stream.
_UNPACKERS = {
    b"\x02\x21\x4c\x18": ("lz4", "-dc"),
    b"\x28\xb5\x2f\xfd": ("zstd", "-dc"),
    b"\xfd7zXZ\0": ("xz", "-dc"),
    b"\x1f\x8b\x08": ("gzip", "-dc"),
}


def payload_of(bzimage: bytes) -> tuple[tuple[str, ...], bytes, int]:
    """How to get the ELF kernel out of a bzImage: (unpacker's argv, its stdin, size in bytes of what must come out).

    The offsets are those of the setup header, Documentation/arch/x86/boot.rst: setup_sects at 0x1f1, payload_offset
    and payload_length at 0x248. Booting the ELF kernel by its PVH entry saves the guest its own unpacking, a second
    under emulation. Raises `NodeError`.
    """
    if len(bzimage) < 0x250 or bzimage[0x202:0x206] != b"HdrS":
        raise NodeError("kernel: not a bzImage (no HdrS)", code="kernel-unreadable")
    setup_sectors = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = bzimage[start : start + length]
    for magic, argv in _UNPACKERS.items():
        if payload.startswith(magic):
            trailer = 0 if argv[0] == "gzip" else 4
            (size_bytes,) = struct.unpack_from("<I", payload, len(payload) - 4)
            return argv, payload[: len(payload) - trailer], size_bytes
    raise NodeError(f"kernel: unknown compression {payload[:6].hex()}", code="kernel-unreadable")
