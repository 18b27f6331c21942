"""What is the site's own on an emulated node: keys, accounts, configuration, the guests' kernel, the certificates."""

from __future__ import annotations

import grp
import socket
from pathlib import Path

from demo import machine_conf, site, users
from demo.layout import GROUP, STRANGER, USER
from demo.machine import shared_directories
from demo.machine_conf import Own
from demo.machine_layout import MachineLayout
from demo.programs import run

Files = dict[str, tuple[bytes, int]]


def host_name() -> str:
    return socket.gethostname().partition(".")[0]


def make_keys(layout: MachineLayout) -> None:
    """A key for us and one for the node, made once."""
    for path in (layout.key, layout.node / "host_key"):
        if not path.exists():
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", path])
    public = (layout.node / "host_key.pub").read_text().split()
    layout.known_hosts.write_text(f"{layout.identity.node_address} {public[0]} {public[1]}\n")


def node_files(layout: MachineLayout, own: Own) -> Files:
    """Every file of the site in the node: path without the leading slash, content, mode."""
    files: Files = {}
    identity = layout.identity

    def put(path: str, text: str | bytes, mode: int = 0o644) -> None:
        files[path] = (text if isinstance(text, bytes) else text.encode(), mode)

    put("etc/hostname", f"{identity.node}\n")
    put(
        "etc/hosts",
        f"127.0.0.1 localhost\n{identity.host_address} {host_name()}\n{identity.node_address} {identity.node}\n",
    )
    put("etc/fstab", "")
    put("etc/resolv.conf", f"nameserver {identity.host_address}\n")  # nobody answers there: nothing here asks
    put("etc/systemd/system/machine.service", machine_conf.network_unit(layout, own))
    put("etc/lrms_vm/shared", "".join(f"{tag} {place}\n" for tag, place in shared_directories(layout).items()))
    put("root/.ssh/authorized_keys", layout.key.with_suffix(".pub").read_bytes(), 0o600)
    put("etc/ssh/ssh_host_ed25519_key", (layout.node / "host_key").read_bytes(), 0o600)
    put("etc/ssh/ssh_host_ed25519_key.pub", (layout.node / "host_key.pub").read_bytes())
    put("etc/munge/munge.key", (layout.munge_socket.parent / "munge.key").read_bytes(), 0o400)
    put("etc/slurm/slurm.conf", machine_conf.slurm_conf(layout, own, host=host_name(), in_node=True))
    put("etc/slurm/plugstack.conf", "include plugstack.conf.d/*.conf\n")
    for name, text in machine_conf.account_lines(*_accounts(), layout.homes).items():
        put(name, text, 0o640 if name == "etc/shadow" else 0o644)
    for name, text in own.files.items():
        put(name, text)
    _put_site(layout, own, files)
    return files


def _put_site(layout: MachineLayout, own: Own, files: Files) -> None:
    kernel = site.site_kernel(layout.site)
    images = {name: site.image_path(layout.site, name) for name in layout.identity.images}
    toml = machine_conf.lrms_vm_toml(layout, own, kernel=machine_conf.node_kernel(kernel, own), images=images)
    files["etc/lrms_vm/lrms_vm.toml"] = (toml.encode(), 0o644)
    files["etc/lrms_vm/trust.toml"] = (machine_conf.policy(layout).encode(), 0o644)
    for place, path in (("vmlinuz", kernel.vmlinuz), ("initrd.img", kernel.initrd)):
        files[str(machine_conf.KERNEL_PLACE / place).lstrip("/")] = (path.read_bytes(), 0o644)
    for path in sorted((layout.site.ca / "certificates").iterdir()):
        files[str(machine_conf.CA_PLACE / path.name).lstrip("/")] = (path.read_bytes(), 0o644)


def _accounts() -> tuple[dict[str, users.User], dict[str, tuple[int, list[str]]]]:
    people = {name: users.find(name) for name in (USER, STRANGER)}
    groups: dict[str, tuple[int, list[str]]] = {}
    for user in people.values():
        groups[grp.getgrgid(user.gid).gr_name] = (user.gid, [])
    shared = grp.getgrnam(GROUP)
    groups[GROUP] = (shared.gr_gid, list(shared.gr_mem))
    return people, groups


def make_homes(layout: MachineLayout) -> None:
    """The users' directories, which the node has at the same path."""
    for name in (USER, STRANGER):
        user = users.find(name)
        home = layout.home(name)
        if not home.exists():
            home.mkdir(mode=0o755, parents=True)
            run(["chown", f"{user.uid}:{user.gid}", home])


def login_node(layout: MachineLayout, own: Own, plugin: Path) -> None:
    """What users' commands need on this machine: the plugin's options, nothing else."""
    target = layout.opt / "lrms_vm.so"
    fresh = target.with_suffix(".new")
    fresh.write_bytes(plugin.read_bytes())
    fresh.chmod(0o755)
    fresh.replace(target)
    (layout.etc / "plugstack.conf").write_text(f"required {target}\n")
    for name, plugstack in (("slurm.conf", True), ("slurm-noplugin.conf", False)):
        text = machine_conf.slurm_conf(layout, own, host=host_name(), in_node=False, plugstack=plugstack)
        (layout.etc / name).write_text(text)
