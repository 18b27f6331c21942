"""What would stop a VM job on this node: one small question per function, each answered with what was found and a remedy."""

from __future__ import annotations

import grp
import hashlib
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lrms_vm import command
from lrms_vm.config import Config, read_trusted
from lrms_vm.errors import LrmsVmError
from lrms_vm.trust.verify import TrustAnchors

TIMEOUT_S = 10.0
MIN_FREE_BYTES = 2 << 30
SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")
NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "lustre", "beegfs", "ceph", "gpfs", "afs", "9p", "fuse.sshfs"}


@dataclass(frozen=True)
class Finding:
    """One answer. `remedy` is what to do, empty where nothing is wrong."""

    check: str
    ok: bool
    found: str
    remedy: str = ""


def all_findings(config: Config) -> Iterator[Finding]:
    """Ask everything; a question that cannot be asked is itself a finding."""
    questions: list[Callable[[Config], Iterator[Finding]]] = [
        _programs, _interpreter, _state, _kernels, _guest_program, _policy, _images, _kvm, _hypervisor, _sandbox, _slurm,
    ]  # fmt: skip
    for question in questions:
        try:
            yield from question(config)
        except (LrmsVmError, OSError) as error:
            yield Finding(question.__name__.strip("_"), False, str(error), getattr(error, "hint", "") or "see the message")


def _programs(config: Config) -> Iterator[Finding]:
    for name, package in (
        ("qemu-img", "qemu-utils"),
        ("genisoimage", "genisoimage"),
        ("ssh", "openssh-client"),
        ("bwrap", "bubblewrap"),
    ):
        path = shutil.which(name, path=command.PATH)
        yield Finding(f"program {name}", path is not None, path or "missing", "" if path else f"apt install {package}")
    sftp = next((path for path in SFTP_SERVERS if os.access(path, os.X_OK)), None)
    yield Finding("program sftp-server", sftp is not None, sftp or "missing", "" if sftp else "apt install openssh-sftp-server")


def _interpreter(config: Config) -> Iterator[Finding]:
    """The payload's half runs as the job's user: everybody must be able to reach and run it."""
    closed = [p for p in Path(sys.executable).resolve().parents if not p.stat().st_mode & stat.S_IXOTH]
    closed += [p for p in Path(sys.prefix).resolve().parents if not p.stat().st_mode & stat.S_IXOTH]
    yield Finding(
        "interpreter", not closed, f"{sys.executable}" + (f", closed to users at {closed[0]}" if closed else ""),
        f"install lrms_vm where users can reach it (chmod o+x {closed[0]}, or another prefix)" if closed else "",
    )  # fmt: skip


def _state(config: Config) -> Iterator[Finding]:
    directory = next(p for p in [config.places.state_dir, *config.places.state_dir.parents] if p.exists())
    kind = _file_system(directory)
    yield Finding(
        "state_dir on a local disk", kind not in NETWORK_FILE_SYSTEMS, f"{directory} is on {kind}",
        "" if kind not in NETWORK_FILE_SYSTEMS else "set state_dir to a directory on a local disk",
    )  # fmt: skip
    free_bytes = shutil.disk_usage(directory).free
    yield Finding(
        "free disk", free_bytes >= MIN_FREE_BYTES, f"{free_bytes >> 20} MiB free in {directory}",
        "" if free_bytes >= MIN_FREE_BYTES else f"free at least {MIN_FREE_BYTES >> 20} MiB, or `lrms-vm cache prune`",
    )  # fmt: skip


def _file_system(directory: Path) -> str:
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, what, *_ = line.split()
        if (str(directory) + "/").startswith(where.rstrip("/") + "/") and len(where) >= len(best):
            best, kind = where, what
    return kind


def _kernels(config: Config) -> Iterator[Finding]:
    if not config.kernels:
        yield Finding("kernels", False, "no [kernels.NAME] in the configuration", "see docs/images.md, 'The site's kernel'")
    for kernel in config.kernels.values():
        for path, expected in ((kernel.vmlinuz, kernel.vmlinuz_sha256), (kernel.initrd, kernel.initrd_sha256)):
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            yield Finding(
                f"kernel {kernel.name}", digest == expected, f"{path} has sha256 {digest[:16]}...",
                "" if digest == expected else f"the configuration says {expected[:16]}...: reinstall it or correct the digest",
            )  # fmt: skip


def _guest_program(config: Config) -> Iterator[Finding]:
    from lrms_vm import seed

    path = seed.guest_program(config)
    yield Finding("guest program", os.access(path, os.R_OK), str(path), "" if os.access(path, os.R_OK) else "make -C guest")


def _policy(config: Config) -> Iterator[Finding]:
    from lrms_vm.anchors import read_anchors
    from lrms_vm.trust.policy import parse_policy

    policy = parse_policy(read_trusted(Path(config.policy)), source=config.policy)
    builders, runners = len(policy.builders), len(policy.runners)
    yield Finding(
        "trust policy", builders > 0 and runners > 0, f"{config.policy}: {builders} builder rules, {runners} runner rules",
        "" if builders and runners else "without a [[builder]] and a [[runner]] every image is refused: docs/trust.md",
    )  # fmt: skip
    anchors = read_anchors(Path(policy.ca_dir))
    yield Finding(
        "CA directory", bool(anchors.certificates), f"{policy.ca_dir}: {len(anchors.certificates)} CAs, {len(anchors.crls)} CRLs",
        "" if anchors.certificates else "install the IGTF trust anchors there",
    )  # fmt: skip
    for source, next_update in crl_ages(anchors):
        left_s = next_update - time.time()
        yield Finding(
            f"CRL {source}", left_s > 0, f"expires in {left_s / 3600:.0f} h" if left_s > 0 else f"expired {-left_s / 3600:.0f} h ago",
            "" if left_s > 0 else "run fetch-crl; until then images of this CA's builders are refused with 75",
        )  # fmt: skip


def crl_ages(anchors: TrustAnchors) -> list[tuple[str, float]]:
    """(issuer, nextUpdate as time.time()) of each CRL; the trust core does the reading."""
    from lrms_vm.trust import x509

    return [(issuer, until.timestamp()) for issuer, until in x509.crl_expiries(anchors)]


def _images(config: Config) -> Iterator[Finding]:
    if not config.images:
        yield Finding("images", False, "no [images.NAME] in the configuration", "see docs/images.md, 'Publish it'")
    for entry in config.images.values():
        if entry.url.startswith("/"):
            there = Path(entry.url).is_file()
            yield Finding(f"image {entry.name}", there, entry.url, "" if there else "the file is not there")


def _kvm(config: Config) -> Iterator[Finding]:
    """Where libvirt's qemu may not open /dev/kvm, each libvirt call probes qemu anew: 76 s for a domain (reference)."""
    try:
        status = os.stat("/dev/kvm")
    except FileNotFoundError:
        yield Finding("/dev/kvm", config.hypervisor != "kvm", "absent", "" if config.hypervisor != "kvm" else "enable it in firmware")
        return
    group = grp.getgrgid(status.st_gid).gr_name
    ok = bool(status.st_mode & 0o006 == 0o006 or (group == "kvm" and status.st_mode & 0o060 == 0o060))
    yield Finding(
        "/dev/kvm", ok, f"group {group}, mode {stat.S_IMODE(status.st_mode):o}",
        "" if ok else "chgrp kvm /dev/kvm; chmod 660 /dev/kvm (what Debian's udev rule does), or every start takes a minute",
    )  # fmt: skip


def _hypervisor(config: Config) -> Iterator[Finding]:
    from lrms_vm import node

    kind = {"qemu": "qemu", "kvm": "kvm", "xen": "xen"}[config.hypervisor]
    try:
        usable = node.hypervisor(config).usable(kind, deadline=time.monotonic() + TIMEOUT_S)
    except LrmsVmError as error:
        yield Finding("hypervisor", False, str(error), f"is libvirtd running? ({config.libvirt_uri})")
        return
    yield Finding(
        "hypervisor", usable, f"{config.libvirt_uri}, domains of type {kind}",
        "" if usable else f"libvirt offers no {kind} domains here: set hypervisor in {config.source} to what the node has",
    )  # fmt: skip


def _sandbox(config: Config) -> Iterator[Finding]:
    """Shares are served from a user namespace that sees nothing else."""
    nobody = command.Identity(65534, 65534)
    try:
        command.run(["bwrap", "--ro-bind", "/", "/", "true"], timeout_s=TIMEOUT_S, identity=nobody)
    except LrmsVmError as error:
        yield Finding("user namespaces", False, str(error), "sysctl kernel.unprivileged_userns_clone=1, or user.max_user_namespaces")
        return
    yield Finding("user namespaces", True, "ordinary users can make them")


def _slurm(config: Config) -> Iterator[Finding]:
    if not config.spank_plugin:
        return
    there = Path(config.spank_plugin).is_file()
    yield Finding("SPANK plugin", there, config.spank_plugin, "" if there else "lrms-vm install --lrms=slurm")
    text = command.run([config.scontrol, "show", "config"], timeout_s=TIMEOUT_S).decode("utf-8", "replace")
    settings = {
        key.strip(): value.strip() for line in text.splitlines() for key, eq, value in [line.partition("=")] if eq
    }
    for key, wanted in (("Prolog", "slurm.prolog"), ("Epilog", "slurm.epilog"), ("PrologFlags", "Alloc")):
        found = settings.get(key, settings.get(f"{key}[0]", "(null)"))
        ok = wanted in found
        yield Finding(f"slurm.conf {key}", ok, found, "" if ok else f"expected {wanted}: see `lrms-vm install --lrms=slurm`")
