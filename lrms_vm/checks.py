"""What would stop a VM job on this node: one question per function, each answered with what was found and a remedy."""

from __future__ import annotations

import grp
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from lrms_vm import command
from lrms_vm.config import Config
from lrms_vm.errors import LrmsVmError, SiteError
from lrms_vm.file_systems import kind_of, on_network
from lrms_vm.finding import Finding
from lrms_vm.finding import answer as _answer
from lrms_vm.lrms.base import PATIENCE_S
from lrms_vm.request import Allocation
from lrms_vm.trust.verify import TrustAnchors

TIMEOUT_S = 10.0
NO_VAL16 = 65534  # slurm.h: what scontrol shows of a number that was not set
MIN_FREE_BYTES = 2 << 30
SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")
PROGRAMS = {"qemu-img": "qemu-utils", "genisoimage": "genisoimage", "ssh": "openssh-client", "bwrap": "bubblewrap"}
PROGRAMS |= {"setpriv": "util-linux", "prlimit": "util-linux"}


def all_findings(config: Config) -> Iterator[Finding]:
    """Ask everything; a question that cannot be asked is itself a finding."""
    of_the_site = (_policy, _images, _lists, _sandbox, _installed, _slurm, _slurm_node)
    return _findings(config, (*_OF_THE_NODE, _clock, *of_the_site))


def node_findings(config: Config, *, comes_back: bool) -> Iterator[Finding]:
    """Only what is this node's own: what taking it out of service would help against.

    `comes_back`: the batch system takes the node back by itself once it is well. Then the clock is among it. One that
    is wrong may be wrong on all nodes at once, and they would all wait for an administrator otherwise.
    """
    return _findings(config, (*_OF_THE_NODE, _clock) if comes_back else _OF_THE_NODE)


def _findings(config: Config, questions: Iterable[Callable[[Config], Iterator[Finding]]]) -> Iterator[Finding]:
    for question in questions:
        try:
            yield from question(config)
        except (LrmsVmError, OSError) as error:
            remedy = getattr(error, "hint", "") or "see the message"
            yield Finding(question.__name__.strip("_"), False, str(error), remedy)


def _programs(config: Config) -> Iterator[Finding]:
    for name, package in PROGRAMS.items():
        path = shutil.which(name, path=command.PATH)
        yield _answer(f"program {name}", path is not None, path or "missing", f"apt install {package}")
    sftp = next((path for path in SFTP_SERVERS if os.access(path, os.X_OK)), None)
    yield _answer("program sftp-server", sftp is not None, sftp or "missing", "apt install openssh-sftp-server")


def _interpreter(config: Config) -> Iterator[Finding]:
    """The payload's half runs as the job's user: everybody must be able to reach and run it."""
    parents = [*Path(sys.executable).resolve().parents, *Path(sys.prefix).resolve().parents, Path(sys.prefix).resolve()]
    closed = [str(path) for path in parents if not path.stat().st_mode & stat.S_IXOTH]
    found = sys.executable + (f", closed to users at {closed[0]}" if closed else "")
    yield _answer("interpreter", not closed, found, "install lrms_vm where users can reach it, e.g. below /opt")


def _state(config: Config) -> Iterator[Finding]:
    directory = next(p for p in [config.places.state_dir, *config.places.state_dir.parents] if p.exists())
    kind = kind_of(directory)
    local = not on_network(kind) or config.state_dir_on_network
    remedy = "set state_dir to a local disk; state_dir_on_network = true only where no other node uses it"
    yield _answer("state_dir is local", local, f"{directory} is on {kind}", remedy)
    free_bytes = shutil.disk_usage(directory).free
    found = f"{free_bytes >> 20} MiB free in {directory}"
    yield _answer("free disk", free_bytes >= MIN_FREE_BYTES, found, "make room, or `lrms-vm cache prune --max-size`")


def _kernels(config: Config) -> Iterator[Finding]:
    from lrms_vm import site_kernel

    if not config.kernels:
        yield Finding("kernels", False, "no [kernels.NAME] in the configuration", "see docs/images.md")
    for kernel in config.kernels.values():
        site_kernel.require_digests(kernel, config.places)
        yield Finding(f"kernel {kernel.name}", True, kernel.vmlinuz)


def _guest_program(config: Config) -> Iterator[Finding]:
    from lrms_vm import seed

    path = seed.guest_program(config)
    yield _answer(
        "guest program",
        os.access(path, os.R_OK | os.X_OK),
        str(path),
        "lrms-vm install prints where it is: set guest_program; everybody may read and run it",
    )


def _policy(config: Config) -> Iterator[Finding]:
    from lrms_vm.anchors import read_anchors
    from lrms_vm.site_policy import read_policy

    policy = read_policy(Path(config.policy))
    builders, runners = len(policy.builders), len(policy.runners)
    found = f"{config.policy}: {builders} builder rules, {runners} runner rules"
    yield _answer(
        "trust policy", builders > 0 and runners > 0, found, "without both, every image is refused: docs/trust.md"
    )
    anchors = read_anchors(Path(policy.ca_dir))
    found = f"{policy.ca_dir}: {len(anchors.certificates)} CAs, {len(anchors.crls)} CRLs"
    yield _answer("CA directory", bool(anchors.certificates), found, "install the IGTF trust anchors there")
    yield from _crls(anchors)


def _crls(anchors: TrustAnchors) -> Iterator[Finding]:
    from lrms_vm.trust import x509

    for issuer, until in x509.crl_expiries(anchors):
        left_h = (until.timestamp() - time.time()) / 3600
        found = f"expires in {left_h:.0f} h" if left_h > 0 else f"expired {-left_h:.0f} h ago"
        yield _answer(
            f"CRL of {issuer}", left_h > 0, found, "run fetch-crl; until then its builders' images end with 75"
        )


def _clock(config: Config) -> Iterator[Finding]:
    """Behind what it has shown before, every VM job that comes here is refused at once, and the next one comes."""
    from lrms_vm import trust_state
    from lrms_vm.trust.json_object import show_time

    if os.geteuid() == 0:  # nobody else may read the mark
        mark = trust_state.check_clock(config.places, datetime.now(UTC)).mark
        yield Finding("clock", True, f"not behind {show_time(mark.at)}, the latest time that counts")


def _images(config: Config) -> Iterator[Finding]:
    if not config.images and not config.lists:
        yield Finding("images", False, "no [images.NAME] or [lists.NAME] in the configuration", "see docs/images.md")
    for entry in config.images.values():
        if entry.url.startswith("/"):
            yield _answer(f"image {entry.name}", Path(entry.url).is_file(), entry.url, "the file is not there")


def _lists(config: Config) -> Iterator[Finding]:
    from lrms_vm import list_copy
    from lrms_vm.list_refresh import path_of
    from lrms_vm.trust.json_object import parse_time

    for name in config.lists:
        copy = list_copy.read(path_of(config.places, name))
        until = None if copy is None else parse_time(copy.head.valid_until)
        if copy is None or until is None:
            yield Finding(f"list {name}", False, "not on this node yet", "lrms-vm image list --update")
            continue
        found = f"version {copy.head.version}, until {copy.head.valid_until}"
        yield _answer(f"list {name}", until.timestamp() > time.time(), found, "lrms-vm image list --update")


def _kvm(config: Config) -> Iterator[Finding]:
    """Where libvirt's qemu may not open /dev/kvm, each libvirt call probes qemu anew: over a minute for a domain."""
    try:
        status = os.stat("/dev/kvm")
    except FileNotFoundError:
        yield _answer("/dev/kvm", config.hypervisor != "kvm", "absent", "enable virtualisation in the firmware")
        return
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:  # a device of another system: a container's, say
        group = str(status.st_gid)
    ok = status.st_mode & 0o006 == 0o006 or (group == "kvm" and status.st_mode & 0o060 == 0o060)
    found = f"group {group}, mode {stat.S_IMODE(status.st_mode):o}"
    yield _answer("/dev/kvm", ok, found, "chgrp kvm /dev/kvm; chmod 660 /dev/kvm, or each start takes over a minute")


def _hypervisor(config: Config) -> Iterator[Finding]:
    from lrms_vm import node

    try:
        usable = node.hypervisor(config).usable(config.hypervisor, deadline=time.monotonic() + TIMEOUT_S)
    except LrmsVmError as error:
        yield Finding("hypervisor", False, str(error), f"is libvirtd running? ({config.libvirt_uri})")
        return
    found = f"{config.libvirt_uri}, domains of type {config.hypervisor}"
    yield _answer("hypervisor", usable, found, f"libvirt offers none here: set hypervisor in {config.source}")


def _sandbox(config: Config) -> Iterator[Finding]:
    """Shares are served from a user namespace that sees nothing else."""
    nobody = command.Identity(65534, 65534)
    try:
        command.run(["bwrap", "--ro-bind", "/", "/", "true"], timeout_s=TIMEOUT_S, identity=nobody)
    except LrmsVmError as error:
        yield Finding("user namespaces", False, str(error), "sysctl kernel.unprivileged_userns_clone=1")
        return
    yield Finding("user namespaces", True, "ordinary users can make them")


def _slurm(config: Config) -> Iterator[Finding]:
    if not config.spank_plugin:
        return
    there = Path(config.spank_plugin).is_file()
    yield _answer("SPANK plugin", there, config.spank_plugin, "lrms-vm install --lrms=slurm")
    environment = {**command.ENVIRONMENT, **{k: v for k, v in os.environ.items() if k == "SLURM_CONF"}}
    text = command.run([config.scontrol, "show", "config"], timeout_s=TIMEOUT_S, environment=environment).decode()
    pairs = [line.partition("=") for line in text.splitlines() if "=" in line]
    settings = {key.strip(): value.strip() for key, _, value in pairs}
    for key, wanted in (("Prolog", "/"), ("Epilog", "/"), ("PrologFlags", "Alloc")):
        found = settings.get(key, settings.get(f"{key}[0]", "(null)"))
        yield _answer(f"slurm.conf {key}", wanted in found, found, "see `lrms-vm install --lrms=slurm`")
    yield batch_start(settings.get("BatchStartTimeout", ""), config.prologue_timeout_s)
    yield hook_time(settings.get("PrologEpilogTimeout", ""), config.prologue_timeout_s, config.epilogue_timeout_s)


def _installed(config: Config) -> Iterator[Finding]:
    from lrms_vm import installed_from

    return installed_from.findings(config)


def batch_start(found: str, prologue_timeout_s: float) -> Finding:
    """Whether slurmctld waits for a batch script as long as a prologue may take. `found`: as scontrol shows it.

    When a node registers while its prologue runs, a job older than this is taken for lost and requeued (slurm.conf(5)).
    """
    number = found.partition(" ")[0]
    enough = number.isascii() and number.isdigit() and int(number) >= prologue_timeout_s
    remedy = f"BatchStartTimeout={prologue_timeout_s:.0f} or more, or jobs are requeued while their image is fetched"
    return _answer("slurm.conf BatchStartTimeout", enough, found or "(null)", remedy)


def hook_time(found: str, prologue_timeout_s: float, epilogue_timeout_s: float) -> Finding:
    """Whether slurmd lets a hook come to its own end, and so to its own reason. `found`: as scontrol shows it.

    Where slurmd ends it, the node is drained, whoever was to blame (slurm.conf(5)). The longest is a prologue that
    comes to its deadline, undoes what it made, and tells a controller that hangs.
    """
    number, needed_s = found.partition(" ")[0], prologue_timeout_s + epilogue_timeout_s + PATIENCE_S
    unset = not (number.isascii() and number.isdigit()) or int(number) == NO_VAL16
    remedy = f"PrologEpilogTimeout={needed_s:.0f} or more, or none"
    return _answer("slurm.conf PrologEpilogTimeout", unset or int(number) >= needed_s, found or "(null)", remedy)


def _confinement(config: Config) -> Iterator[Finding]:
    """Whether a guest can be held to its job's memory and cpus (docs/confinement.md)."""
    from lrms_vm import cgroups

    if config.hypervisor == "xen" or config.confine == "off":
        found = (
            "Xen itself bounds its guests" if config.hypervisor == "xen" else 'confine = "off": nothing holds a guest'
        )
        yield Finding("confinement", True, found)
        return
    try:
        groups = cgroups.plan(cgroups.hierarchies(), _JOB)
    except LrmsVmError as error:
        found = f"{error}; guests are not held, since confine = {config.confine!r}"
        yield _answer("confinement", config.confine == "if-possible", found, getattr(error, "hint", ""))
        return
    where = ", ".join(f"v{group.version} {'+'.join(sorted(group.controllers))} in {group.root}" for group in groups)
    yield Finding("confinement", True, where)


def _overhead(config: Config) -> Iterator[Finding]:
    from lrms_vm import domain, overhead, site_kernel

    kernel = config.kernels.get(config.kernel)
    kernel_bytes = site_kernel.size_bytes(kernel) if kernel else 0
    kept = config.memory_overhead_mib
    said = []
    for memory_mib, vcpus in ((1024, 1), (16384, 8)):
        fits = overhead.guest_mib(memory_mib, config.hypervisor, vcpus=vcpus, kernel_bytes=kernel_bytes)
        guest_mib = memory_mib - kept if kept else fits
        said.append(f"{memory_mib - guest_mib} MiB of a job with {vcpus} cpus and {memory_mib} MiB")
    needed = overhead.overhead_mib(domain.MIN_MEMORY_MIB, config.hypervisor, vcpus=1, kernel_bytes=kernel_bytes)
    remedy = f"a small guest's hypervisor takes {needed} MiB: memory_overhead_mib = 0 has it computed"
    found = ", ".join(said) + (" (memory_overhead_mib)" if kept else " (computed)")
    yield _answer("hypervisor's memory", not kept or kept >= needed, found, remedy)


def _slurm_node(config: Config) -> Iterator[Finding]:
    """What the controller says that this node can do, against what it can (docs/slurm.md, Scheduling)."""
    if not config.spank_plugin:
        return
    from lrms_vm import domain, overhead, slurm_node
    from lrms_vm.lrms import slurm

    name = os.environ.get("SLURMD_NODENAME") or os.uname().nodename.partition(".")[0]
    try:
        node = slurm_node.look_at_node(name, slurm_node.call(()), config)
    except SiteError as error:
        if f"Node {name} not found" not in error.message:  # scontrol(1)
            raise
        remedy = "where its NodeName is not the host's name: SLURMD_NODENAME=NAME lrms-vm doctor"
        yield Finding("slurm node", False, f"Slurm knows no node {name}", remedy)
        return
    ours = slurm.vm_features(config.hypervisor)
    others = [word for word in node.available if word.startswith("vm_") and word not in ours]
    off = [word for word in ours if word in node.available and word not in node.active]
    found = f"{name}: {','.join(node.active) or 'none'}" + (f"; off: {','.join(off)} ({node.comment})" if off else "")
    if not set(ours) & set(node.available):
        found += f"; without {','.join(ours)} no job can ask for a node with VMs"
    remedy = f"this node has {config.hypervisor}: take {','.join(others)} out of slurm.conf" if others else ""
    remedy = remedy or "`lrms-vm health --lrms=slurm` puts them back on a healthy node"
    yield _answer("slurm features", not others and not off, found, remedy)
    if config.hypervisor == "xen":
        from lrms_vm import checks_xen

        yield checks_xen.told(config, node.memory_mib)
    if node.guests is None:
        yield Finding("slurm gres/vm", True, f"{name}: none: guests on the node are not counted")
        return
    least = domain.MIN_MEMORY_MIB + (
        config.memory_overhead_mib
        or overhead.overhead_mib(domain.MIN_MEMORY_MIB, config.hypervisor, vcpus=1, kernel_bytes=0)
    )
    most = min(node.cpus, node.memory_mib // least)
    found = f"{name}: {node.guests}; {node.cpus} cpus and {node.memory_mib} MiB hold at most {most}"
    yield _answer("slurm gres/vm", node.guests <= most, found, f"Gres=vm:{most} in slurm.conf")


_JOB = Allocation("slurm", "0", os.uname().nodename.partition(".")[0], 0, 0, "root", "/", cpus=1, memory_mib=1024)


def _xen(config: Config) -> Iterator[Finding]:
    from lrms_vm import checks_xen

    return checks_xen.xen(config)


def _networks(config: Config) -> Iterator[Finding]:
    from lrms_vm import checks_xen

    return checks_xen.networks(config)


_OF_THE_NODE = (
    *(_programs, _interpreter, _state, _kernels, _guest_program),
    *(_kvm, _hypervisor, _xen, _networks, _confinement, _overhead),
)
