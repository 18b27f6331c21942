"""What is the site's own on the Xen node: keys, accounts, configuration, the guests' kernel, the certificates."""

from __future__ import annotations

import grp
import socket
from pathlib import Path

from demo import site, users, xen_conf
from demo.layout import GROUP, STRANGER, USER
from demo.programs import run
from demo.xen_layout import HOST_ADDRESS, IMAGES, NODE, NODE_ADDRESS, XenLayout
from demo.xen_node import shared_directories

Files = dict[str, tuple[bytes, int]]


def host_name() -> str:
    return socket.gethostname().partition(".")[0]


def make_keys(layout: XenLayout) -> None:
    """A key for us and one for the node, made once."""
    for path in (layout.key, layout.node / "host_key"):
        if not path.exists():
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", path])
    public = (layout.node / "host_key.pub").read_text().split()
    layout.known_hosts.write_text(f"{NODE_ADDRESS} {public[0]} {public[1]}\n")


def node_files(layout: XenLayout) -> Files:
    """Every file of the site in dom0: path without the leading slash, content, mode."""
    files: Files = {}

    def put(path: str, text: str | bytes, mode: int = 0o644) -> None:
        files[path] = (text if isinstance(text, bytes) else text.encode(), mode)

    put("etc/hostname", f"{NODE}\n")
    put("etc/hosts", f"127.0.0.1 localhost\n{HOST_ADDRESS} {host_name()}\n{NODE_ADDRESS} {NODE}\n")
    put("etc/fstab", "")
    put("etc/resolv.conf", f"nameserver {HOST_ADDRESS}\n")  # nobody answers there: nothing here asks
    put("etc/systemd/system/machine.service", xen_conf.NETWORK_UNIT)
    put("etc/lrms_vm/shared", "".join(f"{tag} {place}\n" for tag, place in shared_directories(layout).items()))
    put("root/.ssh/authorized_keys", layout.key.with_suffix(".pub").read_bytes(), 0o600)
    put("etc/ssh/ssh_host_ed25519_key", (layout.node / "host_key").read_bytes(), 0o600)
    put("etc/ssh/ssh_host_ed25519_key.pub", (layout.node / "host_key.pub").read_bytes())
    put("etc/munge/munge.key", (layout.munge_socket.parent / "munge.key").read_bytes(), 0o400)
    put("etc/slurm/slurm.conf", xen_conf.slurm_conf(layout, host=host_name(), in_node=True))
    put("etc/slurm/plugstack.conf", "include plugstack.conf.d/*.conf\n")
    for name, text in xen_conf.account_lines(*_accounts(), layout.homes).items():
        put(name, text, 0o640 if name == "etc/shadow" else 0o644)
    _put_site(layout, files)
    return files


def _put_site(layout: XenLayout, files: Files) -> None:
    kernel = site.site_kernel(layout.site)
    images = {name: site.image_path(layout.site, name) for name in IMAGES}
    toml = xen_conf.lrms_vm_toml(layout, kernel=xen_conf.node_kernel(kernel), images=images)
    files["etc/lrms_vm/lrms_vm.toml"] = (toml.encode(), 0o644)
    files["etc/lrms_vm/trust.toml"] = (xen_conf.policy(layout).encode(), 0o644)
    for place, path in (("vmlinuz", kernel.vmlinuz), ("initrd.img", kernel.initrd)):
        files[str(xen_conf.KERNEL_PLACE / place).lstrip("/")] = (path.read_bytes(), 0o644)
    for path in sorted((layout.site.ca / "certificates").iterdir()):
        files[str(xen_conf.CA_PLACE / path.name).lstrip("/")] = (path.read_bytes(), 0o644)


def _accounts() -> tuple[dict[str, users.User], dict[str, tuple[int, list[str]]]]:
    people = {name: users.find(name) for name in (USER, STRANGER)}
    groups: dict[str, tuple[int, list[str]]] = {}
    for user in people.values():
        groups[grp.getgrgid(user.gid).gr_name] = (user.gid, [])
    shared = grp.getgrnam(GROUP)
    groups[GROUP] = (shared.gr_gid, list(shared.gr_mem))
    return people, groups


def make_homes(layout: XenLayout) -> None:
    """The users' directories, which dom0 has at the same path."""
    for name in (USER, STRANGER):
        user = users.find(name)
        home = layout.home(name)
        if not home.exists():
            home.mkdir(mode=0o755, parents=True)
            run(["chown", f"{user.uid}:{user.gid}", home])


def login_node(layout: XenLayout, plugin: Path) -> None:
    """What users' commands need on this machine: the plugin's options, nothing else."""
    target = layout.opt / "lrms_vm.so"
    fresh = target.with_suffix(".new")
    fresh.write_bytes(plugin.read_bytes())
    fresh.chmod(0o755)
    fresh.replace(target)
    (layout.etc / "plugstack.conf").write_text(f"required {target}\n")
    for name, plugstack in (("slurm.conf", True), ("slurm-noplugin.conf", False)):
        text = xen_conf.slurm_conf(layout, host=host_name(), in_node=False, plugstack=plugstack)
        (layout.etc / name).write_text(text)
