"""The texts of the Xen node's own files, as an administrator would write them after docs/admin.md. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from demo.ca import BUILDER_DN, CA_DN
from demo.site_conf import Builder, SiteKernel, trust_toml
from demo.slurm_conf import BEHAVIOUR, CREDENTIAL_LIFE_S, TRACKING
from demo.users import User
from demo.xen_layout import HOST_ADDRESS, NODE, NODE_ADDRESS, PREFIX_LENGTH, SITE_BRIDGE, XenLayout

CONTROLLER_PORT = 26827
NODE_PORT = 6818  # slurmd's own
NODE_CPUS = 2
NODE_MEMORY_MB = 3800  # of guests: what Xen has free, with MACHINE_MIB and DOM0_MIB of xen_node.py
PREFIX = PurePosixPath("/opt/lrms_vm")
KERNEL_PLACE = PurePosixPath("/var/lib/lrms_vm-site")  # the site's kernels, on the node
CA_PLACE = PurePosixPath("/etc/grid-security/certificates")
# sysrq: tests have a guest's kernel panic from outside (`xl sysrq`)
CMDLINE = "root=/dev/xvda rw console=hvc0 quiet sysrq_always_enabled"

# Nothing of this is needed by what is tested, and each takes seconds of an emulated start.
MASKED = (
    *("apparmor.service", "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "e2scrub_reap.service"),
    *("fstrim.timer", "dpkg-db-backup.timer", "logrotate.timer", "systemd-timesyncd.service", "getty.target"),
    *("systemd-udev-trigger.service", "systemd-udevd.service", "systemd-udevd-kernel.socket"),
    *("systemd-udevd-control.socket", "systemd-hwdb-update.service", "systemd-journal-flush.service"),
    *("systemd-update-utmp.service", "systemd-update-utmp-runlevel.service", "systemd-binfmt.service"),
    *("systemd-logind.service", "libvirt-guests.service", "xendomains.service"),
    *("networking.service", "ifupdown-pre.service", "systemd-pstore.service", "systemd-boot-system-token.service"),
    *("systemd-random-seed.service", "systemd-tmpfiles-clean.timer", "cron.service", "dnsmasq.service"),
    *("systemd-machine-id-commit.service", "keyboard-setup.service", "console-setup.service"),
    *("libvirtd-admin.socket", "sys-kernel-debug.mount", "sys-kernel-tracing.mount"),
    *("dev-hugepages.mount", "dev-mqueue.mount", "modprobe@drm.service", "systemd-sysusers.service"),
)

NETWORK_UNIT = f"""\
[Unit]
Description=The emulated machine's address, and the directories it shares with the controller's machine
DefaultDependencies=no
Before=network.target network-online.target sysinit.target
Wants=network.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/ip link set lo up
ExecStart=/usr/sbin/ip address add {NODE_ADDRESS}/{PREFIX_LENGTH} dev eth0
ExecStart=/usr/sbin/ip link set eth0 up
ExecStart=/usr/sbin/ip link add {SITE_BRIDGE} type bridge
ExecStart=/usr/sbin/ip link set {SITE_BRIDGE} up
ExecStart=/bin/sh -c 'while read -r tag place; do mkdir -p "$$place"; \\
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 "$$tag" "$$place" || exit 1; done </etc/lrms_vm/shared'

[Install]
WantedBy=sysinit.target
"""


def slurm_conf(layout: XenLayout, *, host: str, in_node: bool, plugstack: bool = True) -> str:
    """The controller's and users', or the node's: the daemons of Debian, with its places."""
    socket = Path("/run/munge/munge.socket.2") if in_node else layout.munge_socket
    lines = [
        "ClusterName=lrms-vm-xen",
        f"SlurmctldHost={host}({HOST_ADDRESS})",
        f"SlurmctldPort={CONTROLLER_PORT}",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        f"AuthInfo=socket={socket},cred_expire={CREDENTIAL_LIFE_S}",
        "CredType=cred/munge",
        f"StateSaveLocation={layout.state / 'slurmctld'}",
        f"SlurmctldPidFile={layout.run / 'slurmctld.pid'}",
        f"SlurmctldLogFile={layout.log / 'slurmctld.log'}",
        "SlurmdSpoolDir=/var/spool/slurmd",
        "SlurmdPidFile=/run/slurmd.pid",
        "SlurmdLogFile=/var/log/slurmd.log",
        *BEHAVIOUR,
        *TRACKING[False],
        f"Prolog={PREFIX / 'libexec' / 'slurm.prolog'}",
        f"Epilog={PREFIX / 'libexec' / 'slurm.epilog'}",
        f"NodeName={NODE} NodeAddr={NODE_ADDRESS} Port={NODE_PORT} CPUs={NODE_CPUS} "
        f"RealMemory={NODE_MEMORY_MB} Features=vm",
        f"PartitionName=main Nodes={NODE} Default=YES MaxTime=60 State=UP OverSubscribe=NO",
    ]
    if not in_node:
        lines.append(f"PlugStackConfig={layout.etc / 'plugstack.conf' if plugstack else '/dev/null'}")
    return "\n".join(lines) + "\n"


def lrms_vm_toml(layout: XenLayout, *, kernel: SiteKernel, images: Mapping[str, Path]) -> str:
    """The node's configuration, everything at its default place. JSON strings are TOML strings."""
    values: dict[str, object] = {
        "version": 1,
        "guest_program": str(PREFIX / "libexec" / "lrms-vm-guest"),
        "spank_plugin": str(PREFIX / "lib" / "lrms_vm.so"),
        "slurm_admin_comment": True,
        "hypervisor": "xen",
        "libvirt_uri": "xen:///system",
        "hypervisor_user": "root",
        "kernel": kernel.name,
        "network": "none",
        "networks_allowed": ["none", "nat", f"bridge:{SITE_BRIDGE}"],
        "prologue_timeout_s": 300,
        "epilogue_timeout_s": 120,
        "boot_timeout_s": 300,
        "image_places": [f"{layout.site.images}/"],
        "contact": "whoever ran `make xen-node`",
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    lines += ["", f"[kernels.{kernel.name}]"]
    lines += [
        f"{key} = {json.dumps(str(value))}"
        for key, value in (
            ("vmlinuz", kernel.vmlinuz),
            ("initrd", kernel.initrd),
            ("vmlinuz_sha256", kernel.vmlinuz_sha256),
            ("initrd_sha256", kernel.initrd_sha256),
            ("cmdline", kernel.cmdline),
        )
    ]
    for name, path in images.items():
        lines += ["", f"[images.{json.dumps(name)}]", f"url = {json.dumps(str(path))}"]
    return "\n".join(lines) + "\n"


def node_kernel(kernel: SiteKernel) -> SiteKernel:
    """The demo's kernel as the node has it: the same files, a Xen guest's command line."""
    return replace(
        kernel, vmlinuz=Path(KERNEL_PLACE / "vmlinuz"), initrd=Path(KERNEL_PLACE / "initrd.img"), cmdline=CMDLINE
    )


def policy(layout: XenLayout) -> str:
    """trust.toml: the demo's builder, the demo's user."""
    builder = Builder("demo-builder", issuer=CA_DN, subject=BUILDER_DN)
    return trust_toml(layout.site, [builder], images=["*"]).replace(
        json.dumps(str(layout.site.ca / "certificates")), json.dumps(str(CA_PLACE))
    )


def account_lines(
    users: Mapping[str, User], groups: Mapping[str, tuple[int, list[str]]], homes: Path
) -> dict[str, str]:
    """What passwd(5), group(5) and shadow(5) of the node have more: the numbers of the controller's machine."""
    passwd = [f"{user.name}:x:{user.uid}:{user.gid}::{homes / user.name}:/bin/sh" for user in users.values()]
    group = [f"{name}:x:{gid}:{','.join(members)}" for name, (gid, members) in groups.items()]
    shadow = [f"{user.name}:!:19000:0:99999:7:::" for user in users.values()]
    return {
        "etc/passwd": "".join(f"{line}\n" for line in passwd),
        "etc/group": "".join(f"{line}\n" for line in group),
        "etc/shadow": "".join(f"{line}\n" for line in shadow),
    }
