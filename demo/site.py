"""The demo's site: package, images, certificates and configuration, each made only when it is not there yet."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path

from demo import hooks, package
from demo.ca import BUILDER_DN, CA_DN, make_demo_ca
from demo.cluster import Cluster
from demo.layout import CHECKOUT, NODES, Layout
from demo.programs import run
from demo.progress import step
from demo.site_conf import Builder, SiteKernel, lrms_vm_toml, trust_toml

KERNEL = "debian"
BUILD_TIMEOUT_S = 1800


def bring_up(cluster: Cluster, names: Sequence[str]) -> None:
    """Everything a job with one of these images needs, up to two idle nodes. Raises `DemoError`."""
    layout = cluster.layout
    make(cluster, names)
    with step("cluster up, two nodes idle"):
        configure(layout)
        if hooks.install(layout):
            cluster.stop()
        cluster.start()


def make(cluster: Cluster, names: Sequence[str]) -> None:
    """What is a site's and no batch system's: package, images, certificates, users. Raises `DemoError`."""
    layout = cluster.layout
    with step("directories and users"):
        cluster.prepare()
    with step("package installed for everybody"):
        package.install(layout)
    make_images(layout, names)


def make_images(layout: Layout, names: Sequence[str], *, command: Path | None = None) -> None:
    """The kernel and these images, built and signed; one program at a time makes them. Raises `DemoError`.

    `command`: the `lrms-vm` that does it where the demo's own is not installed.
    """
    with (layout.images / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in ["kernel", *names]:
            with step(f"image {name} built"):
                build(layout, name, command=command)
        with step("certificate authority; images signed"):
            make_demo_ca(layout.ca)
            for name in names:
                if not _signed(layout, image_path(layout, name)):
                    sign(layout, image_path(layout, name), who="builder", command=command)


def image_path(layout: Layout, name: str) -> Path:
    return layout.images / f"{name}.raw"


def signature_path(image: Path) -> Path:
    return image.with_name(image.name + ".p7s")


def build(layout: Layout, name: str, *, command: Path | None = None) -> None:
    """By the product's own builder, whose cache makes the second time short."""
    recipe = CHECKOUT / "images" / f"{name}.toml"
    run(
        [command or layout.command, "image", "build", recipe, "--output", layout.images],
        timeout_s=BUILD_TIMEOUT_S,
        pip=True,
        show=True,
    )


def sign(layout: Layout, image: Path, *, who: str, command: Path | None = None) -> None:
    """With the key of `who` of the demo's authority: "builder" or "stranger"."""
    cert, key = layout.ca / f"{who}.crt", layout.ca / f"{who}.key"
    run([command or layout.command, "image", "sign", image, "--cert", cert, "--key", key], timeout_s=300)


def _signed(layout: Layout, image: Path) -> bool:
    """Whether the signature is of this image by the present builder: neither was made again since."""
    signature = signature_path(image)
    if not signature.exists():
        return False
    newest = max(image.stat().st_mtime, (layout.ca / "builder.crt").stat().st_mtime)
    return signature.stat().st_mtime >= newest


def configure(layout: Layout, nodes: Sequence[str] = NODES, *, plugin: bool = True) -> None:
    """Write each node's lrms_vm.toml and the policy: every image that is there is in the site's list.

    `plugin`: the nodes are Slurm's.
    """
    images = {path.stem: path for path in sorted(layout.images.glob("*.raw")) if not path.stem.startswith("test-")}
    hypervisor = os.environ.get("LRMS_VM_DEMO_HYPERVISOR", "qemu")  # emulation is said, never fallen back to
    for node in nodes:
        text = lrms_vm_toml(
            layout, node, hypervisor=hypervisor, kernel=site_kernel(layout), images=images, plugin=plugin
        )
        layout.config(node).parent.mkdir(mode=0o755, exist_ok=True)
        layout.config(node).write_text(text)
    builder = Builder("demo-builder", issuer=CA_DN, subject=BUILDER_DN)
    (layout.etc / "trust.toml").write_text(trust_toml(layout, [builder], images=["*"]))


def site_kernel(layout: Layout) -> SiteKernel:
    """What the build of the kernel says of itself."""
    facts = json.loads((layout.images / "kernel.json").read_text())
    return SiteKernel(
        KERNEL,
        vmlinuz=layout.images / facts["vmlinuz"],
        initrd=layout.images / facts["initrd"],
        vmlinuz_sha256=facts["vmlinuz_sha256"],
        initrd_sha256=facts["initrd_sha256"],
        cmdline=facts["cmdline"],
    )


def copy_sparse(source: Path, target: Path) -> None:
    """Holes stay holes."""
    run(["cp", "--sparse=always", source, target], timeout_s=120)
