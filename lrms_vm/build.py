"""Make an image, or the site's kernel, from a recipe: mmdebstrap into a directory, our files, mke2fs -d.

No loop device, no mount, no daemon. Root, because the files of an image are root's. The packages come from the
host's own apt sources and the wheels through the host's pip, so nothing in a recipe names a machine.

Beside each output stands <name>.build.json: what was built, from what (`recipe_digest`), and the output's digests.
A second build of the same recipe finds it and ends at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lrms_vm import __version__, apt_sources, command, guest_system, initrd, recipe
from lrms_vm.errors import NodeError, UsageError
from lrms_vm.recipe import Pip, Recipe
from lrms_vm.values import dataclass

Progress = Callable[[str], None]

BUILD_FORMAT = 1  # raise it when the same recipe should make another image than before
TICK_S = 15.0
MIB = 1 << 20
EPOCH_S = 1_700_000_000  # mtime of whatever a build itself makes, when SOURCE_DATE_EPOCH does not say

# What pip and apt need to reach their registries where a site has a proxy or its own certificates.
_PASSED_ON = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE")
_PASSED_ON_PREFIXES = ("PIP_",)
# Wheels may ask for any glibc up to Debian 12's 2.36 (PEP 600).
_PLATFORMS = ("any", "manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in range(17, 37)))
# Fixed, so that the same tree makes the same file system (mke2fs(8) -U, -E hash_seed).
_UUID = "6c726d73-5f76-4d00-8000-000000000001"
_HASH_SEED = "6c726d73-5f76-4d00-8000-000000000002"


@dataclass(frozen=True)
class Built:
    """What a build made, or found already made."""

    outputs: tuple[Path, ...]
    record: Path
    fresh: bool  # False: a hit


def load(path: Path) -> Recipe:
    """Read a recipe file. Raises `UsageError`."""
    try:
        with path.open("rb") as file:
            text = file.read(recipe.MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot read: {error.strerror}", code="recipe-missing") from error
    if len(text) > recipe.MAX_BYTES:
        raise UsageError(f"{path}: larger than {recipe.MAX_BYTES} bytes", code="recipe-invalid")
    return recipe.parse(text, source=str(path))


def build(path: Path, output: Path, *, force: bool, progress: Progress) -> Built:
    """Make what the recipe at `path` says in the directory `output`, or find it there.

    Raises `UsageError` for the recipe's faults, `NodeError` when a program of this machine fails.
    """
    what = load(path)
    inputs = _inputs(what, path.parent)
    digest = _digest(what, inputs)
    record = output / f"{what.name}.build.json"
    if not force and (found := _made_before(record, digest)):
        progress(f"{what.name}: nothing to do, {record} says it is up to date")
        return Built(found, record, fresh=False)
    if os.geteuid() != 0:
        raise UsageError("image build: must be root: the files of an image are root's", code="not-root")
    output.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    # Beside the output and not in /tmp: /tmp may be small or mounted nodev.
    with tempfile.TemporaryDirectory(prefix=f".{what.name}.", dir=output) as directory:
        work = Path(directory)
        made = _build_kernel(what, work, progress) if what.kernel else _build_image(what, inputs, work, progress)
        facts: dict[str, Any] = {"name": what.name, "version": what.version, "recipe_digest": digest, "files": {}}
        facts["packages"] = _packages(work / "root")
        if what.kernel:
            facts["cmdline"] = what.kernel.cmdline
        finals = []
        for file in made:
            final = output / file.name
            file.chmod(0o644)
            file.replace(final)
            finals.append(final)
            state = final.stat()
            facts["files"][final.name] = {
                "sha256": _sha256(final),
                "size_bytes": state.st_size,
                "mtime_ns": state.st_mtime_ns,
            }
        if what.kernel:
            _write_json(output / "kernel.json", _kernel_facts(facts))
    _write_json(record, facts)
    return Built(tuple(finals), record, fresh=True)


def _inputs(what: Recipe, beside: Path) -> dict[str, bytes]:
    """The files a recipe names, by their name in it. Raises `UsageError`."""
    names = [name for _, name in what.files] + ([what.pip.requirements] if what.pip else [])
    inputs = {}
    for name in names:
        try:
            inputs[name] = (beside / name).read_bytes()
        except OSError as error:
            raise UsageError(f"{beside / name}: cannot read: {error.strerror}", code="recipe-file-missing") from error
    return inputs


def _digest(what: Recipe, inputs: Mapping[str, bytes]) -> str:
    """What an output depends on: the recipe, its files, and the code that builds."""
    modes = [f"{name}:{hashlib.sha256(data).hexdigest()}" for name, data in sorted(inputs.items())]
    system = [guest_system.FILES, guest_system.LINKS, guest_system.REMOVED, guest_system.PACKAGES, initrd.INIT]
    text = json.dumps([BUILD_FORMAT, __version__, asdict(what), modes, system, _epoch_s()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _made_before(record: Path, digest: str) -> tuple[Path, ...] | None:
    """The outputs, if the record is of this digest and they are still the files it tells of."""
    try:
        facts = json.loads(record.read_text())
        if facts["recipe_digest"] != digest:
            return None
        outputs = []
        for name, was in facts["files"].items():
            state = (record.parent / name).stat()
            if (state.st_size, state.st_mtime_ns) != (was["size_bytes"], was["mtime_ns"]):
                return None
            outputs.append(record.parent / name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # no record, or one of another format: build
    return tuple(outputs)


# ---- an image


def _build_image(what: Recipe, inputs: Mapping[str, bytes], work: Path, progress: Progress) -> list[Path]:
    root = work / "root"
    with _step(f"{what.name}: unpack and configure Debian {what.suite}", progress):
        debootstrap(root, what.suite, (*guest_system.PACKAGES, *what.packages), work, variant="essential")
    if what.pip:
        with _step(f"{what.name}: install wheels", progress):
            _install_wheels(what.pip, inputs[what.pip.requirements], root, work)
    for inside, name in what.files:
        _place(root, inside, inputs[name])
    _remove(root, what.remove)
    for argv in what.commands:
        with _step(f"{what.name}: run {' '.join(argv)[:60]}", progress):
            _run_inside(root, argv)
    _make_guest(root)
    _clamp_times(root, _epoch_s())
    image = work / f"{what.name}.raw"
    with _step(f"{what.name}: make the file system", progress):
        _make_filesystem(root, image, what.free_mib)
    return [image]


def debootstrap(root: Path, suite: str, packages: tuple[str, ...], work: Path, *, variant: str) -> None:
    """A tree of these packages, from the machine's own apt sources. Raises `NodeError`."""
    conf = work / "apt.conf"
    # The host's own way to its archive (proxy, certificates, timeouts) and nothing else of its configuration.
    conf.write_bytes(
        command.run(["apt-config", "dump", "--no-empty", "--format", '%F "%v";%n', "Acquire"], timeout_s=60)
    )
    argv = ["mmdebstrap", "--mode=root", f"--variant={variant}", f"--include={','.join(packages)}", f"--aptopt={conf}"]
    argv += ['--aptopt=APT::Install-Recommends "false"']
    argv += [f"--dpkgopt={option}" for option in guest_system.EXCLUDED]
    argv += [suite, str(root), *(str(source) for source in _write_sources(suite, work))]
    environment = _environment() | {"SOURCE_DATE_EPOCH": str(_epoch_s()), "TMPDIR": str(work)}
    command.run(argv, timeout_s=1800, environment=environment, umask=0o022)


def _write_sources(suite: str, work: Path) -> list[Path]:
    """Copies of the host's apt sources that have `suite`. Raises `NodeError` when there are none."""
    apt = Path("/etc/apt")
    written = []
    for number, source in enumerate([apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]):
        if source.suffix not in (".list", ".sources") or not source.is_file():
            continue
        pick = apt_sources.lines_for_suite if source.suffix == ".list" else apt_sources.stanzas_for_suite
        if text := pick(source.read_text(errors="replace"), suite):
            copy = work / f"{number}{source.suffix}"
            copy.write_text(text)
            written.append(copy)
    if not written:
        raise NodeError(
            f"/etc/apt: no source of this machine has the suite {suite}",
            hint="add one to /etc/apt/sources.list.d, or name another suite in the recipe",
            code="apt-source-missing",
        )
    return written


def _install_wheels(pip: Pip, requirements: bytes, root: Path, work: Path) -> None:
    """Unpack wheels for the image's Python with this machine's pip: neither setup scripts nor the image's code run."""
    pinned = recipe.parse_requirements(requirements, source=pip.requirements)
    listed = work / "requirements.txt"
    listed.write_text("\n".join(pinned) + "\n")
    target = work / "wheels"
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-deps", "--no-compile"]
    argv += ["--root-user-action=ignore", "--disable-pip-version-check", "--only-binary=:all:"]
    argv += ["--implementation=cp", f"--python-version={pip.python}", f"--abi=cp{pip.python.replace('.', '')}"]
    argv += ["--abi=abi3", "--abi=none", *(f"--platform={platform}" for platform in _PLATFORMS)]
    argv += [f"--target={target}", f"--requirement={listed}"]
    command.run(argv, timeout_s=1800, environment=_environment(), umask=0o022)
    # --target puts what a wheel calls data (PEP 427) among its modules; programs would name this machine's Python.
    for name in ("bin", "include"):
        shutil.rmtree(target / name, ignore_errors=True)
    for name in ("etc", "share"):
        if (target / name).is_dir():
            shutil.copytree(target / name, _inside(root, f"{pip.prefix}/{name}"), symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(target / name)
    modules = _inside(root, f"{pip.prefix}/lib/python{pip.python}/dist-packages")
    shutil.copytree(target, modules, symlinks=True, dirs_exist_ok=True)


def _run_inside(root: Path, argv: tuple[str, ...]) -> None:
    """Run a command of the recipe in the image, with no network and nothing left running after it."""
    isolated = ["unshare", "--net", "--ipc", "--pid", "--fork", "--kill-child", "chroot", str(root)]
    command.run([*isolated, *argv], timeout_s=1800, umask=0o022)


def _make_guest(root: Path) -> None:
    """The unit that makes it a guest; away with what another build would make differently."""
    _remove(root, guest_system.REMOVED)
    for inside, text in guest_system.FILES.items():
        _place(root, inside, text.encode(), executable=False)
    links = dict(guest_system.LINKS)
    for generator in sorted((root / guest_system.GENERATORS.lstrip("/")).glob("*")):
        links[f"{guest_system.MASKED_GENERATORS}/{generator.name}"] = "/dev/null"
    for inside, target in links.items():
        path = _inside(root, inside)
        path.unlink(missing_ok=True)
        path.symlink_to(target)


def _make_filesystem(root: Path, image: Path, free_mib: int) -> None:
    """A whole-disk ext4, sparse. No journal: the disk lives as long as one job and is never repaired."""
    used = sum(-(-path.lstat().st_size // 4096) * 4096 + 4096 for path in root.rglob("*"))
    size_mib = int(used * 1.06) // MIB + free_mib + 16
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal,^resize_inode", "-m", "0", "-b", "4096"]
    argv += ["-L", guest_system.LABEL, "-U", _UUID, "-E", f"hash_seed={_HASH_SEED},lazy_itable_init=0,root_owner=0:0"]
    argv += ["-d", str(root), str(image), f"{size_mib}M"]
    environment = {**command.ENVIRONMENT, "E2FSPROGS_FAKE_TIME": str(_epoch_s())}
    command.run(argv, timeout_s=900, environment=environment)


# ---- a kernel


def _build_kernel(what: Recipe, work: Path, progress: Progress) -> list[Path]:
    """Unpack the kernel's package, run nothing of it, and make vmlinuz and initrd.img."""
    assert what.kernel is not None
    root = work / "root"
    with _step(f"{what.name}: unpack {what.kernel.package}", progress):
        debootstrap(root, what.suite, (what.kernel.package, "busybox-static"), work, variant="extract")
    kernels = sorted((root / "boot").glob("vmlinuz-*"))
    if len(kernels) != 1:
        raise NodeError(f"{what.kernel.package}: expected one kernel, got {len(kernels)}", code="kernel-unreadable")
    modules = module_files(root / "lib/modules" / kernels[0].name.removeprefix("vmlinuz-"))
    image = work / "initrd.img"
    busybox = (root / "bin/busybox").read_bytes()
    image.write_bytes(initrd.make(busybox, modules, common=what.kernel.modules, xen=what.kernel.xen_modules))
    kernel = work / "vmlinuz"
    with _step(f"{what.name}: unpack the kernel itself", progress):
        argv, packed, size_bytes = initrd.payload_of(kernels[0].read_bytes())
        unpacked = command.run(argv, stdin=packed, timeout_s=120)
    if not unpacked.startswith(b"\x7fELF") or len(unpacked) != size_bytes:
        raise NodeError(
            f"{kernels[0].name}: {argv[0]} gave no ELF kernel of {size_bytes} bytes", code="kernel-unreadable"
        )
    kernel.write_bytes(unpacked)
    return [kernel, image]


def module_files(directory: Path) -> dict[str, bytes]:
    """Every module by its kernel name (underscores), read when looked at: there are a thousand."""
    paths = {path.stem.replace("-", "_"): path for path in directory.rglob("*.ko")}
    if not paths:
        raise NodeError(f"{directory}: no uncompressed modules", code="kernel-unreadable")
    return _Files(paths)


class _Files(dict[str, bytes]):
    """A mapping of names to the bytes of files, read on first use."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        super().__init__()
        self._paths = paths

    def __contains__(self, name: object) -> bool:
        return name in self._paths

    def __missing__(self, name: str) -> bytes:
        self[name] = self._paths[name].read_bytes()
        return self[name]


def _kernel_facts(facts: Mapping[str, Any]) -> dict[str, str]:
    """What a site's configuration says of a kernel: the keys of [kernels.NAME]."""
    digests = {f"{stem}_sha256": facts["files"][name]["sha256"] for stem, name in _KERNEL_FILES.items()}
    return {**_KERNEL_FILES, **digests, "cmdline": facts["cmdline"]}


_KERNEL_FILES = {"vmlinuz": "vmlinuz", "initrd": "initrd.img"}


# ---- files of the image


def _inside(root: Path, inside: str) -> Path:
    """The host's path of a path in the image, its directory made; never one outside, whatever links an image has.

    Raises `UsageError`.
    """
    path = root / inside.lstrip("/")
    parent = root
    for word in Path(inside).parts[1:-1]:
        parent /= word
        if parent.is_symlink():
            target = Path(os.readlink(parent))
            parent = root / str(target).lstrip("/") if target.is_absolute() else parent.parent / target
        if not parent.resolve().is_relative_to(root.resolve()):
            raise UsageError(f"{inside}: leads out of the image through {parent.name}", code="recipe-invalid")
        parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    return parent / path.name


def _place(root: Path, inside: str, data: bytes, *, executable: bool | None = None) -> None:
    path = _inside(root, inside)
    path.unlink(missing_ok=True)  # never write through a link
    path.write_bytes(data)
    runs = data.startswith((b"#!", b"\x7fELF")) if executable is None else executable
    path.chmod(0o755 if runs else 0o644)


def _remove(root: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for path in sorted(root.glob(pattern.lstrip("/"))):
            if not path.parent.resolve().is_relative_to(root.resolve()):
                continue  # reached through a link of the image that leads out of it
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _clamp_times(root: Path, epoch_s: int) -> None:
    """Nothing younger than `epoch_s`: what the build itself made has one time (the rule of SOURCE_DATE_EPOCH)."""
    for path in [root, *root.rglob("*")]:
        if path.lstat().st_mtime > epoch_s:
            os.utime(path, (epoch_s, epoch_s), follow_symlinks=False)


def _packages(root: Path) -> list[str]:
    """What was unpacked, as "name version", from dpkg's own status file."""
    names: list[str] = []
    try:
        for line in (root / "var/lib/dpkg/status").read_text(errors="replace").splitlines():
            key, _, value = line.partition(": ")
            if key == "Package":
                names.append(value)
            elif key == "Version" and names:
                names[-1] += f" {value}"
    except FileNotFoundError:
        return []  # only unpacked, never configured
    return sorted(names)


# ---- the host


def _environment() -> dict[str, str]:
    """The small environment of every program of ours, and what leads to the registries."""
    passed = {k: v for k, v in os.environ.items() if k in _PASSED_ON or k.startswith(_PASSED_ON_PREFIXES)}
    return {**command.ENVIRONMENT, "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive", **passed}


def _epoch_s() -> int:
    text = os.environ.get("SOURCE_DATE_EPOCH", str(EPOCH_S))
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"SOURCE_DATE_EPOCH: expected seconds, got {text[:40]!r}", code="epoch-unreadable")
    return int(text)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Complete or not there: a half record would be believed."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(facts, indent=1) + "\n")
    new.replace(path)


@contextmanager
def _step(what: str, progress: Progress) -> Iterator[None]:
    """Say what is being done, every quarter of a minute that it still is, and how long it took."""
    started = time.monotonic()
    done = threading.Event()

    def tick() -> None:
        while not done.wait(TICK_S):
            progress(f"{what} ... {time.monotonic() - started:.0f} s")

    progress(f"{what} ...")
    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        done.set()
        ticker.join()
    progress(f"{what}: {time.monotonic() - started:.1f} s")
