"""What every image carries so that it can be a guest: one unit that starts the seed's program, and little else.

Measured under emulation with one processor: the stock units of Debian (udev, journald, tmpfiles, mounts, the
generators) take 9 s before a first unit of ours could run, and a guest needs none of them: the initrd loaded the
modules, the kernel's devtmpfs made the devices, and systemd itself mounts /proc, /sys, /dev and /run.
With this target the unit is reached 2 s after the initrd.
"""

from __future__ import annotations

# Debian packages of every image: systemd as process 1, sshd on the channel, sshfs for the shared directories.
PACKAGES = ("dash", "fuse3", "openssh-server", "sshfs", "systemd", "systemd-sysv")

LABEL = "lrms-vm-root"

_UNITS = "/etc/systemd/system"

TARGET = """\
[Unit]
Description=A guest of lrms_vm
DefaultDependencies=no
Wants=lrms-vm-guest.service lrms-vm-console.service
AllowIsolate=yes
"""

# The seed is found by its label: without udev there is no /dev/disk, and mount(8) looks for itself.
# mode and dmode: iso9660 without Rock Ridge's own modes; the host's key on it is root's alone.
# The mount point is not a RuntimeDirectory: systemd would set it up anew before each Exec line, on the read-only seed.
# A directory of systemd's own would not do for it: systemd wants to set its mode again, on a read-only disk.
# KillMode: when the channel's program is restarted, payloads that run go on.
# OOMPolicy: where the kernel ends one process of the payload for lack of memory, the others and the channel stay.
# The condition: our own initrd has started the same program already, a second before systemd could.
GUEST_UNIT = """\
[Unit]
Description=The guest's half of the job's channel
DefaultDependencies=no
StartLimitIntervalSec=0
ConditionPathExists=!/run/lrms_vm/early

[Service]
Type=exec
RuntimeDirectory=lrms_vm sshd
RuntimeDirectoryPreserve=yes
RuntimeDirectoryMode=0755
ExecStartPre=/bin/mkdir -p /run/lrms_vm/seed
ExecStartPre=-/bin/mount -t iso9660 -o ro,nosuid,nodev,mode=0500,dmode=0500,uid=0,gid=0 LABEL=cidata /run/lrms_vm/seed
ExecStart=/run/lrms_vm/seed/lrms_vm/guest boot /run/lrms_vm/seed/lrms_vm
Restart=always
RestartSec=300ms
KillMode=process
OOMPolicy=continue
StandardOutput=file:/dev/console
StandardError=file:/dev/console
"""

# Nobody can log in (root is locked); its prompt tells a reader of the console that the guest is up.
CONSOLE_UNIT = """\
[Unit]
Description=Login prompt on the guest's console
DefaultDependencies=no
After=lrms-vm-guest.service

[Service]
Type=idle
ExecStart=-/sbin/agetty --keep-baud 115200 - vt220
StandardInput=tty
StandardOutput=tty
TTYPath=/dev/console
TTYReset=yes
Restart=always
RestartSec=5s
"""

FILES: dict[str, str] = {
    f"{_UNITS}/lrms-vm.target": TARGET,
    f"{_UNITS}/lrms-vm-guest.service": GUEST_UNIT,
    f"{_UNITS}/lrms-vm-console.service": CONSOLE_UNIT,
    "/etc/hostname": "guest\n",
    "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "/etc/resolv.conf": "",
    "/etc/machine-id": "",  # empty: systemd makes one per boot, in memory (machine-id(5))
    "/etc/fstab": "",
    "/etc/apt/sources.list": "",  # where the builder got its packages is the builder's business
}

LINKS: dict[str, str] = {
    f"{_UNITS}/default.target": "lrms-vm.target",
    # Somebody who starts another target gets no network login either.
    f"{_UNITS}/ssh.service": "/dev/null",
    f"{_UNITS}/ssh.socket": "/dev/null",
}

# Generators each cost a fork and an exec before the first unit (systemd.generator(7)); /dev/null masks one.
GENERATORS = "/lib/systemd/system-generators"
MASKED_GENERATORS = "/etc/systemd/system-generators"

# Patterns of what differs between two builds, or between this host and another, or is of no use in a guest.
REMOVED = (
    "/etc/apt/apt.conf.d/99mmdebstrap",
    "/etc/apt/sources.list.d/*",
    "/etc/ssh/ssh_host_*",
    "/root/.cache",
    "/tmp/*",  # noqa: S108  # the image's
    "/usr/share/doc/*/changelog*",
    "/usr/share/doc/*/NEWS*",
    "/var/cache/*/*",
    "/var/lib/apt/lists/*",
    "/var/lib/dbus/machine-id",
    "/var/lib/dpkg/*-old",
    "/var/lib/systemd/*",
    "/var/log/*",
)

# dpkg leaves these out at unpacking; licences stay.
EXCLUDED = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
)
