"""What the machines are given, made once: the root disk, Debian's kernel and Xen, an initramfs for each role."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from demo.layout import CHECKOUT
from demo.programs import run
from demo.progress import say, step
from figure3 import archive, boots, payloads
from figure3.boots import Files
from lrms_vm import build, initrd

HERE = Path(__file__).resolve().parent
SUITE = "bookworm"
PACKAGES = ("linux-image-amd64", "xen-hypervisor-4.17-amd64", "busybox-static")
DISKS = ("crc32c_generic", "ext4")
HOST_MODULES = ("loop", *DISKS)  # of the Linux that has the disks: native and dom0
DOM0_MODULES = ("xen_evtchn", "xen_gntdev", "xen_gntalloc", "xen_privcmd", "xenfs", "xen_blkback")
GUEST_MODULES = ("xen_blkfront", *DISKS)
SCRATCH_MIB = 64
FORMAT = 1  # raise it when the same inputs should make other files


def make(place: Path) -> dict[str, Files]:
    """Bring `place` up to date; return what each boot is given. Raises `DemoError` and the build's own errors."""
    place.mkdir(parents=True, exist_ok=True)
    root = build.build(HERE / "root.toml", place, force=False, progress=lambda text: say(f"         {text}")).outputs[0]
    _boot_files(place)
    texts = _texts()
    stamp = place / "initramfs.json"
    digest = _digest(FORMAT, texts, digest_of(place / "figure3.build.json"), digest_of(place / "boot.json"))
    if not stamp.exists() or json.loads(stamp.read_text()) != digest:
        with step("the machines' initramfs"):
            stamp.unlink(missing_ok=True)
            _initramfs(place, root, texts)
            stamp.write_text(json.dumps(digest))
    held_mib = -(-(root.stat().st_size >> 20) // 4) * 4 + SCRATCH_MIB + 64
    names = {"native": "native.img", "dom0": "native.img", "xen": "node.img"}
    return {
        name: Files(place / "vmlinuz", place / "xen.elf", place / initramfs, held_mib)
        for name, initramfs in names.items()
    }


def _texts() -> dict[str, str]:
    """What we put in, beside packages."""
    return {
        **{path.name: path.read_text() for path in sorted((HERE / "inside").iterdir())},
        "jets.py": (CHECKOUT / "examples" / "jets" / "jets.py").read_text(),
        "payloads": payloads.script(),
        "generated.c": payloads.generated_c(),
        "guest.cfg": boots.guest_cfg(),
    }


def _boot_files(place: Path) -> None:
    """Kernel, Xen, busybox and modules out of their packages, unpacked only. Made once per list of packages."""
    stamp = place / "boot.json"
    wanted = {"format": FORMAT, "packages": PACKAGES, "modules": [HOST_MODULES, DOM0_MODULES, GUEST_MODULES]}
    if stamp.exists() and json.loads(stamp.read_text()).items() >= json.loads(json.dumps(wanted)).items():
        return
    tree = place / "tree"
    work = place / "work"
    for directory in (tree, work):
        shutil.rmtree(directory, ignore_errors=True)
    work.mkdir()
    with step("Debian's kernel and Xen"):
        build.debootstrap(tree, SUITE, PACKAGES, work, variant="extract")
        (kernel,) = (tree / "boot").glob("vmlinuz-*")
        (xen,) = (tree / "boot").glob("xen-*-amd64.gz")
        shutil.copyfile(kernel, place / "vmlinuz")
        (place / "xen.elf").write_bytes(gzip.decompress(xen.read_bytes()))
        shutil.copyfile(tree / "bin/busybox", place / "busybox")
        available = build.module_files(tree / "lib/modules" / kernel.name.removeprefix("vmlinuz-"))
        modules = place / "modules"
        shutil.rmtree(modules, ignore_errors=True)
        modules.mkdir()
        for name in initrd.load_order([*HOST_MODULES, *DOM0_MODULES, *GUEST_MODULES], available):
            (modules / f"{name}.ko").write_bytes(available[name])
    shutil.rmtree(tree)
    shutil.rmtree(work)
    facts = {"kernel": kernel.name.removeprefix("vmlinuz-"), "xen": xen.name.removesuffix(".gz")}
    facts |= {name: digest_of(place / name) for name in ("vmlinuz", "xen.elf")}
    stamp.write_text(json.dumps({**wanted, **facts}, indent=1))


def _initramfs(place: Path, root: Path, texts: dict[str, str]) -> None:
    """native.img: native Linux and dom0 as such; node.img: dom0 with a guest, whose own initramfs is in it."""
    program = place / "figure3.bin"
    run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", program, HERE / "inside" / "payload.c"])
    scratch = place / "scratch.raw"
    scratch.unlink(missing_ok=True)
    options = ["-q", "-F", "-t", "ext4", "-U", "6c726d73-5f76-4d00-8000-000000000004"]
    run(["mke2fs", *options, "-E", "hash_seed=6c726d73-5f76-4d00-8000-000000000005", scratch, f"{SCRATCH_MIB}M"])
    inside: dict[str, tuple[int, archive.Content]] = {"inside": (archive.DIRECTORY, b"")}
    for name, text in texts.items():
        data = text.encode()
        inside[f"inside/{name}"] = (archive.PROGRAM if data.startswith(b"#!") else archive.DATA, data)
    inside["inside/figure3"] = (archive.PROGRAM, program.read_bytes())
    disks: dict[str, tuple[int, archive.Content]] = {
        "root.img": (archive.DATA, root),
        "scratch.img": (archive.DATA, scratch),
    }
    guest = io.BytesIO()
    archive.write(guest, {**_base(place, texts, GUEST_MODULES), **inside})
    for name, modules, more in (
        ("native.img", HOST_MODULES, {}),
        (
            "node.img",
            (*HOST_MODULES, *DOM0_MODULES),
            {
                "inside/initrd.img": (archive.DATA, guest.getvalue()),
                "inside/vmlinuz": (archive.DATA, (place / "vmlinuz").read_bytes()),
            },
        ),
    ):
        with (place / name).open("wb") as target:
            archive.write(target, {**_base(place, texts, modules), **inside, **more, **disks})


def _base(place: Path, texts: dict[str, str], wanted: Iterable[str]) -> dict[str, tuple[int, archive.Content]]:
    """busybox, our init and these modules in the order in which they load."""
    files = {path.stem: path.read_bytes() for path in (place / "modules").iterdir()}
    order = initrd.load_order(list(wanted), files)
    entries: dict[str, tuple[int, archive.Content]] = dict.fromkeys(("bin", "dev", "modules"), (archive.DIRECTORY, b""))
    entries["bin/busybox"] = (archive.PROGRAM, (place / "busybox").read_bytes())
    entries["init"] = (archive.PROGRAM, texts["init"].encode())
    entries["modules/order"] = (archive.DATA, " ".join(order).encode())
    entries |= {f"modules/{name}.ko": (archive.DATA, files[name]) for name in order}
    return entries


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def digest_of(path: Path) -> str:
    """A file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
