"""The texts of the demo site's own files: a node's lrms_vm.toml and the policy. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.layout import USER, Layout


@dataclass(frozen=True)
class SiteKernel:
    """A kernel that the site keeps, with the digests of its files."""

    name: str
    vmlinuz: Path
    initrd: Path
    vmlinuz_sha256: str
    initrd_sha256: str
    cmdline: str


@dataclass(frozen=True)
class Builder:
    """Who may sign: RFC 4514 names as the policy compares them."""

    name: str
    issuer: str
    subject: str


def lrms_vm_toml(
    layout: Layout, node: str, *, hypervisor: str, kernel: SiteKernel, images: Mapping[str, Path], plugin: bool = True
) -> str:
    """A node's configuration. JSON strings are TOML strings. `plugin`: the node is Slurm's."""
    places = layout.places(node)
    values: dict[str, object] = {
        "version": 1,
        "state_dir": str(places.state_dir),
        "run_dir": str(places.run_dir),
        "policy": str(layout.etc / "trust.toml"),
        "guest_program": str(layout.prefix(node) / "libexec" / "lrms-vm-guest"),
        **({"spank_plugin": str(layout.plugin(node)), "slurm_admin_comment": True} if plugin else {}),
        "hypervisor": hypervisor,
        "confine": "if-possible",  # said, since the demo also runs where the cgroups cannot be written
        "libvirt_uri": f"qemu+unix:///system?socket={layout.libvirt_socket(node)}",
        "kernel": kernel.name,
        "prologue_timeout_s": 120,
        "epilogue_timeout_s": 60,
        "boot_timeout_s": 240,
        "image_places": [f"{layout.images}/"],
        "share_roots": [str(layout.base / "share")],
        "contact": "whoever ran `make demo`",
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


def trust_toml(layout: Layout, builders: Sequence[Builder], *, images: Sequence[str]) -> str:
    """Who may build, and who may run: only `USER`, only what these builders signed."""
    lines = ["version = 1", "", "[defaults]", f"ca_dir = {json.dumps(str(layout.ca / 'certificates'))}"]
    for builder in builders:
        lines += [
            "",
            "[[builder]]",
            f"name = {json.dumps(builder.name)}",
            f"issuer = {json.dumps(builder.issuer)}",
            f"subject = {json.dumps(builder.subject)}",
            f"images = {json.dumps(list(images))}",
            'signatures = ["cms", "dgst"]',
        ]
    lines += [
        "",
        "[[runner]]",
        'name = "demo-users"',
        f"users = {json.dumps([USER])}",
        f"images = {json.dumps(list(images))}",
        f"builders = {json.dumps([builder.name for builder in builders])}",
    ]
    return "\n".join(lines) + "\n"
