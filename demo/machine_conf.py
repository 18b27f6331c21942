"""The texts of an emulated node's own files, as an administrator would write them after docs/admin.md. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from demo.ca import BUILDER_DN, CA_DN
from demo.machine_layout import PREFIX_LENGTH, MachineLayout
from demo.site_conf import Builder, SiteKernel, trust_toml
from demo.slurm_conf import BEHAVIOUR, CREDENTIAL_LIFE_S, TRACKING
from demo.users import User

NODE_PORT = 6818  # slurmd's own
NODE_CPUS = 2
PREFIX = PurePosixPath("/opt/lrms_vm")
KERNEL_PLACE = PurePosixPath("/var/lib/lrms_vm-site")  # the site's kernels, on the node
CA_PLACE = PurePosixPath("/etc/grid-security/certificates")


@dataclass(frozen=True)
class Own:
    """What the files of one kind of node say that others' do not."""

    memory_mb: int  # that Slurm gives to jobs
    cgroups: bool  # whether Slurm holds its jobs in them
    cmdline: str  # of the guests' kernel
    settings: Mapping[str, object]  # of lrms_vm.toml
    commands: tuple[str, ...] = ()  # at the node's start, after the address's
    files: Mapping[str, str] = field(default_factory=dict)  # path without the leading slash: text


def network_unit(layout: MachineLayout, own: Own) -> str:
    """machine.service."""
    address = layout.identity.node_address
    commands = (
        "/usr/sbin/ip link set lo up",
        f"/usr/sbin/ip address add {address}/{PREFIX_LENGTH} dev eth0",
        "/usr/sbin/ip link set eth0 up",
        *own.commands,
    )
    return f"""\
[Unit]
Description=The emulated machine's address, and the directories it shares with the controller's machine
DefaultDependencies=no
Before=network.target network-online.target sysinit.target
Wants=network.target

[Service]
Type=oneshot
RemainAfterExit=yes
{"".join(f"ExecStart={command}{chr(10)}" for command in commands)}\
ExecStart=/bin/sh -c 'while read -r tag place; do mkdir -p "$$place"; \\
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 "$$tag" "$$place" || exit 1; done </etc/lrms_vm/shared'

[Install]
WantedBy=sysinit.target
"""


def slurm_conf(layout: MachineLayout, own: Own, *, host: str, in_node: bool, plugstack: bool = True) -> str:
    """The controller's and users', or the node's: the daemons of Debian, with its places."""
    identity = layout.identity
    socket = Path("/run/munge/munge.socket.2") if in_node else layout.munge_socket
    lines = [
        f"ClusterName=lrms-vm-{identity.kind}",
        f"SlurmctldHost={host}({identity.host_address})",
        f"SlurmctldPort={identity.controller_port}",
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
        *TRACKING[own.cgroups],
        f"Prolog={PREFIX / 'libexec' / 'slurm.prolog'}",
        f"Epilog={PREFIX / 'libexec' / 'slurm.epilog'}",
        f"NodeName={identity.node} NodeAddr={identity.node_address} Port={NODE_PORT} CPUs={NODE_CPUS} "
        f"RealMemory={own.memory_mb} Features=vm",
        f"PartitionName=main Nodes={identity.node} Default=YES MaxTime=60 State=UP OverSubscribe=NO",
    ]
    if not in_node:
        lines.append(f"PlugStackConfig={layout.etc / 'plugstack.conf' if plugstack else '/dev/null'}")
    return "\n".join(lines) + "\n"


def lrms_vm_toml(layout: MachineLayout, own: Own, *, kernel: SiteKernel, images: Mapping[str, Path]) -> str:
    """The node's configuration, everything at its default place. JSON strings are TOML strings."""
    values: dict[str, object] = {
        "version": 1,
        "guest_program": str(PREFIX / "libexec" / "lrms-vm-guest"),
        "spank_plugin": str(PREFIX / "lib" / "lrms_vm.so"),
        "slurm_admin_comment": True,
        "kernel": kernel.name,
        "image_places": [f"{layout.site.images}/"],
        "contact": f"whoever ran `make {layout.identity.kind}-node`",
        **own.settings,
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


def node_kernel(kernel: SiteKernel, own: Own) -> SiteKernel:
    """The demo's kernel as the node has it: the same files, the command line that its guests need."""
    return replace(
        kernel, vmlinuz=Path(KERNEL_PLACE / "vmlinuz"), initrd=Path(KERNEL_PLACE / "initrd.img"), cmdline=own.cmdline
    )


def policy(layout: MachineLayout) -> str:
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
