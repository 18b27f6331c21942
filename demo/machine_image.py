"""An emulated node's disk, made in three layers, each only when what it is made from changed:

tree      mmdebstrap of bookworm                           two minutes, about 1 GB
package   the guide's commands, run in the tree            half a minute
disk      the tree with keys, users, configuration         a quarter of a minute
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from demo import guide, package
from demo.layout import CHECKOUT
from demo.machine_layout import MachineLayout
from demo.programs import run
from demo.progress import step
from lrms_vm import build, guest_system, initrd

Files = Mapping[str, tuple[bytes, int]]
SUITE = "bookworm"
# Every node's; what our package needs is in the guide.
PACKAGES = (
    *("linux-image-amd64", "systemd-sysv", "udev", "dbus", "libvirt-clients", "openssh-server", "busybox-static"),
    *("slurmd", "slurm-client", "munge", "iproute2", "procps", "kmod", "python3-libvirt"),
)
ACCOUNTS = ("etc/passwd", "etc/group", "etc/shadow")
SOURCE = "root/lrms_vm"  # where an administrator would have unpacked our package
STAMP = "made.json"
FORMAT = 1  # raise it when the same inputs should make another disk


@dataclass(frozen=True)
class Recipe:
    """What one kind of node is made from."""

    what: str  # "dom0": in what is said of the progress
    headings: tuple[str, ...]  # of the guide
    packages: tuple[str, ...]
    modules: tuple[str, ...]  # that the initrd loads, where this kernel has them
    masked: tuple[str, ...]  # units that do not start
    appended_to: tuple[str, ...]  # Debian's files that the guide's commands append to
    made_by_guide: tuple[str, ...]  # directories of theirs, beside ours
    mke2fs: tuple[str, ...]
    disk_mib: int  # sparse
    boot_files: Callable[[MachineLayout, Path], None]  # puts what the emulator boots beside the disk; gets the kernel

    @property
    def commands(self) -> list[str]:
        return guide.commands(self.headings)

    @property
    def all_packages(self) -> list[str]:
        return sorted({*PACKAGES, *self.packages, *guide.packages(self.commands)})


def make(layout: MachineLayout, recipe: Recipe, files: Files) -> bool:
    """Bring `layout.disk` up to date; return whether it had to be made anew. Raises `DemoError`.

    `files`: the site's own, by their path in the node: content and mode. A content for a file of Debian's is appended.
    """
    layers = _layers(recipe, files)
    stamp = layout.node / STAMP
    before = _made(layout)
    if before == layers and layout.disk.exists():
        return False
    stamp.unlink(missing_ok=True)
    fresh_tree = before.get("tree") != layers["tree"]
    if fresh_tree:
        with step(f"{recipe.what}: Debian (two minutes, once)"):
            _bootstrap(layout, recipe)
        stamp.write_text(json.dumps({"tree": layers["tree"]}))
    if fresh_tree or before.get("package") != layers["package"]:
        with step(f"{recipe.what}: our package, by the commands of docs/admin.md"):
            _install(layout, recipe)
        stamp.write_text(json.dumps({"tree": layers["tree"], "package": layers["package"]}))
    with step(f"{recipe.what}: its disk"):
        _disk(layout, recipe, files)
    stamp.write_text(json.dumps(layers))
    return True


def is_current(layout: MachineLayout, recipe: Recipe, files: Files) -> bool:
    """Whether `make` would have nothing to do: a machine that runs on this disk is the one that is asked for."""
    return _made(layout) == _layers(recipe, files) and layout.disk.exists()


def _layers(recipe: Recipe, files: Files) -> dict[str, str]:
    """Digests of what each layer is made from."""
    commands = recipe.commands
    site = {name: (_sha(data), mode) for name, (data, mode) in files.items()}
    return {
        "tree": _digest(FORMAT, SUITE, recipe.all_packages, guest_system.EXCLUDED),
        "package": _digest(package.digest(), package.requirements(), commands, _digest_of(CHECKOUT / "examples")),
        "disk": _digest(recipe.disk_mib, recipe.modules, recipe.masked, recipe.mke2fs, initrd.INIT, site),
    }


def _made(layout: MachineLayout) -> dict[str, str]:
    try:
        made: dict[str, str] = json.loads((layout.node / STAMP).read_text())
    except FileNotFoundError:
        return {}
    return made


def _bootstrap(layout: MachineLayout, recipe: Recipe) -> None:
    """Root's real files, by the machine's own apt sources; see lrms_vm/build.py, which does this for images."""
    shutil.rmtree(layout.tree, ignore_errors=True)
    work = layout.node / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    build.debootstrap(layout.tree, SUITE, tuple(recipe.all_packages), work, variant="minbase")
    (layout.tree / "etc/apt/apt.conf.d/99mmdebstrap").unlink(missing_ok=True)  # this machine's way to its archive
    shutil.rmtree(work)
    for name in (*ACCOUNTS, *recipe.appended_to):  # as Debian has them
        shutil.copy2(layout.tree / name, layout.tree / f"{name}.debian")


def _install(layout: MachineLayout, recipe: Recipe) -> None:
    """Run the guide's commands in the tree, on a copy of the checkout. What pip needs is made outside."""
    tree = layout.tree
    for name in ("opt/lrms_vm", SOURCE, "etc/lrms_vm", *recipe.made_by_guide):
        shutil.rmtree(tree / name, ignore_errors=True)
    for name in recipe.appended_to:
        shutil.copy2(tree / f"{name}.debian", tree / name)
    package.copy_sources(tree / SOURCE)
    shutil.copytree(CHECKOUT / "examples", tree / SOURCE / "examples", dirs_exist_ok=True)
    wheels = _wheels(layout)
    inside = tree / "var/cache/wheels"
    shutil.copytree(wheels, inside, dirs_exist_ok=True)
    environment = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "/var/cache/wheels",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        "DEBIAN_FRONTEND": "noninteractive",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    given = [f"{name}={value}" for name, value in environment.items()]
    try:
        for line in recipe.commands:
            script = f"cd /{SOURCE} && {line}"
            run(["chroot", tree, "/usr/bin/env", "-i", *given, "/bin/sh", "-ec", script], timeout_s=600)
    finally:
        shutil.rmtree(inside, ignore_errors=True)


def _wheels(layout: MachineLayout) -> Path:
    """Wheels of what setup.cfg asks for, by this machine's pip; the node has the same Python."""
    wanted = [*package.requirements(), "setuptools", "wheel"]
    place = layout.cache / f"wheels-{_digest(wanted)[:16]}"
    if not place.exists():
        fresh = place.with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        pip = CHECKOUT / ".venv" / "bin" / "pip"
        # drmaa has no pyproject.toml: without --use-pep517 this pip would need `wheel` in .venv
        run([pip, "wheel", "-q", "--use-pep517", "--wheel-dir", fresh, *wanted], timeout_s=900, pip=True)
        fresh.replace(place)
    return place


def _disk(layout: MachineLayout, recipe: Recipe, files: Files) -> None:
    """The site's files into the tree, then the tree into a file system, what boots it beside it."""
    tree = layout.tree
    for name, (data, mode) in files.items():
        path = tree / name
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        debians = tree / f"{name}.debian"
        path.unlink(missing_ok=True)
        path.write_bytes((debians.read_bytes() if debians.exists() else b"") + data)
        path.chmod(mode)
    _units(tree, recipe.masked)
    _own(tree, "etc/munge", "munge")
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    recipe.boot_files(layout, kernel)
    modules = build.module_files(tree / "lib/modules" / kernel.name.removeprefix("vmlinuz-"))
    present = [name for name in recipe.modules if name in modules]
    busybox = (tree / "bin/busybox").read_bytes()
    (layout.node / "initrd.img").write_bytes(initrd.make(busybox, modules, common=present, xen=present))
    fresh = layout.disk.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    options = ["-q", "-F", "-t", "ext4", *recipe.mke2fs, "-E", "lazy_itable_init=1", "-L", recipe.what]
    run(["mke2fs", *options, "-d", tree, fresh, f"{recipe.disk_mib}M"], timeout_s=600)
    fresh.replace(layout.disk)


def _units(tree: Path, masked: tuple[str, ...]) -> None:
    """What starts, and what does not, by links as systemctl(1) would make them."""
    units = tree / "etc/systemd/system"
    for path in units.iterdir():
        if path.is_symlink() and str(path.readlink()) == "/dev/null":
            path.unlink()  # masked once, and not now
    for name in masked:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    wants = units / "sysinit.target.wants"
    wants.mkdir(exist_ok=True)
    link = wants / "machine.service"
    link.unlink(missing_ok=True)
    link.symlink_to("../machine.service")


def _own(tree: Path, name: str, user: str) -> None:
    """Give files to a user of the node, by the node's own numbers."""
    lines = (tree / "etc/passwd").read_text().splitlines()
    fields = next(line.split(":") for line in lines if line.startswith(f"{user}:"))
    for path in (tree / name, *(tree / name).iterdir()):
        os.chown(path, int(fields[2]), int(fields[3]))


def _digest(*values: object) -> str:
    return _sha(json.dumps(values, sort_keys=True).encode())


def _digest_of(directory: Path) -> str:
    return _digest([(str(path), _sha(path.read_bytes())) for path in sorted(directory.rglob("*")) if path.is_file()])


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
