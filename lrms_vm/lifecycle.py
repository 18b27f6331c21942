"""The sentence, as short functions.

A job makes a request; its image reference is resolved through the cache into a verified image; with the allocation
it becomes a domain description; the domain boots into a guest; the guest runs the payload (payload.py) and yields a
payload result; teardown (teardown.py) undoes what the record lists and returns leftovers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from lrms_vm import cache, channel, domain, journal, keys, overhead, overlay, provenance, seed, sidefiles, site_kernel
from lrms_vm.account import Account, look_up
from lrms_vm.admission import Admission
from lrms_vm.cgroups import Confinement, Held
from lrms_vm.command import remaining_s, spawn_detached
from lrms_vm.config import Config
from lrms_vm.decision import Decision, JobDecision
from lrms_vm.errors import LrmsVmError, NodeError, RequestError, SiteError
from lrms_vm.fetch import Fetcher, Metered
from lrms_vm.guest import Hypervisor
from lrms_vm.image import ImageEntry, ImageReference, VerifiedImage
from lrms_vm.lrms.base import LAUNCHER_NAMES
from lrms_vm.network_rules import CHANNEL_PORT, Address
from lrms_vm.paths import JobPlaces, Places
from lrms_vm.record import Record
from lrms_vm.request import Allocation, Request
from lrms_vm.resolve import resolve
from lrms_vm.trust.verify import Claim
from lrms_vm.values import dataclass
from lrms_vm.verdict import READY, REFUSED, Verdict, write_verdict

# Directories that are never shared as a whole: they would hide the guest's own, or hand it everybody's.
MAX_LEAD_S = 10.0  # of the interpreter's start and what it loads, before a prologue's own work
NOT_SHARED = frozenset(
    f"/{name}".rstrip("/")
    for name in (
        *(
            "",
            "bin",
            "boot",
            "dev",
            "etc",
            "home",
            "lib",
            "lib64",
            "media",
            "mnt",
            "opt",
            "proc",
            "root",
            "run",
            "sbin",
        ),
        *("srv", "sys", "tmp", "usr", "var", "var/tmp"),
    )
) | {"/"}


@dataclass(frozen=True)
class Actors:
    """Whom the lifecycle acts through; tests pass fakes."""

    hypervisor: Hypervisor
    fetch: Fetcher
    decision: Decision
    python: str  # interpreter for attach; ordinary users must be able to run it
    confinement: Confinement | None = None  # None: the site's confine = "off", and tests
    on_note: Callable[[str], None] | None = None  # the crash tests' way in, see record.Record


def prologue(
    request: Request, allocation: Allocation, *, config: Config, actors: Actors, started_at: float, deadline: float
) -> None:
    """Make the job's guest and its verdict; do not wait for the guest to be up.

    Everything is noted in the record before it is made. On an error nothing is undone here: the caller calls
    `teardown`, which needs no more than the record and the names. `started_at` is time.time(), `deadline` monotonic.
    Raises `RequestError`, `SiteError` or `NodeError`.
    """
    places = config.places
    job = places.job(allocation.key)
    account = look_up(allocation.uid, allocation.gid)
    # what came before us, unless the clock was set meanwhile; from here on by the one that nobody sets
    start = time.monotonic() - min(max(time.time() - started_at, 0.0), MAX_LEAD_S)
    record = _begin(job, allocation, started_at, start, actors.on_note)
    facts, image, claim = _acquire(
        request, allocation, account, record, config=config, actors=actors, deadline=deadline
    )
    request = within(claim, request, network=config.network)
    kernel = config.kernels.get(request.kernel or config.kernel)
    kernel_bytes = site_kernel.size_bytes(kernel) if kernel else 0
    described = domain.describe(request, allocation, image, config=config, places=job, kernel_bytes=kernel_bytes)
    with record.phase("kernel"):
        site_kernel.require_digests(config.kernels[request.kernel or config.kernel], places)
    with record.phase("overlay"):
        record.note("disk_dir", path=str(job.disk))
        _make_directory(job.disk, 0o711)
        record.note("overlay", path=str(job.overlay))
        overlay.make(described, timeout_s=remaining_s(deadline))
    if described.bootloader:
        from lrms_vm import pygrub

        with record.phase("kernel"):  # below the disks' directory, which goes as a whole
            described = pygrub.take(described, job.boot, timeout_s=remaining_s(deadline))
    shares = shares_of(allocation.work_dir, request, config, claim)
    address = _plug(described, allocation, record, config, deadline)
    channel_port = CHANNEL_PORT if address and described.hypervisor == "xen" else None
    with record.phase("seed"):
        record.note("seed", path=str(job.seed))
        pair = keys.make_pair()
        seed.make(
            described,
            account,
            pair,
            shares,
            config=config,
            timeout_s=remaining_s(deadline),
            root=claim.root,
            launcher=LAUNCHER_NAMES.get(allocation.lrms, ""),
            address=address,
            channel_port=channel_port,
        )
    with record.phase("render"):
        xml = domain.render(described, template_text(config, described.hypervisor))
        domain.compare(described, xml)
        _write(job.domain_xml, xml.encode(), 0o600)
    with record.phase("cgroup"):
        held = _hold(described, allocation, record, actors, kernel_bytes)
    with record.phase("create"):
        if described.hypervisor == "xen":
            from lrms_vm import node_memory

            node_memory.require_free(actors.hypervisor, described, deadline=deadline)
        record.note("domain", name=described.name)
        actors.hypervisor.create(xml, deadline=deadline, confine=held.enter if held else None)
    with record.phase("hand over"):
        record.note("channel", path=str(job.channel))
        place = f"{channel.TCP}{address.address}:{channel_port}" if address and channel_port else None
        _hand_over(
            job,
            account,
            pair,
            makes_console=described.hypervisor != "xen",
            program=str(seed.guest_program(config)),
            place=place,
            silent_s=config.guest_silent_s,
        )
        record.note("verdict", path=str(places.verdict(allocation.key)))
        verdict = _ready(request, allocation, account, facts, job, shares, config, started_at)
        verdict = replace(verdict, memory_cgroup=held.memory_path if held else "")
        now = time.monotonic()
        verdict = replace(verdict, handed_over=now, handed_over_after_s=round(now - start, 3))
        write_verdict_file(places, verdict, gid=account.gid)
        record.note("attach")
        if described.hypervisor == "xen":
            from lrms_vm import console

            name, key = described.name, allocation.key
            console.keep(actors.hypervisor, name, job.console, key=key, account=account, deadline=deadline)
        session = spawn_detached(
            [actors.python, "-I", "-m", "lrms_vm", "attach", "--verdict", str(places.verdict(allocation.key))],
            identity=account.identity,
            log=job.user.attach_log,
            environment=channel.environment(allocation.key),
        )
    record.note("done", session=session, seconds=round(time.monotonic() - start, 3))


def _plug(
    described: domain.Domain, allocation: Allocation, record: Record, config: Config, deadline: float
) -> Address | None:
    """The guest's network, before the guest; its address where that is ours to give. Raises `NodeError`."""
    if described.network == "none":
        return None
    from lrms_vm import network  # few jobs ask for one

    def note(facts: dict[str, str]) -> None:
        record.note("network", **facts)

    with record.phase("network"):
        return network.plug(allocation.key, described.network, config=config, note=note, deadline=deadline)


def _hold(
    described: domain.Domain, allocation: Allocation, record: Record, actors: Actors, kernel_bytes: int
) -> Held | None:
    """The job's cgroups for the hypervisor's process, which is not there yet. None: nothing holds it. `NodeError`."""

    def note(paths: list[str], why: str) -> None:
        record.note("cgroup", paths=paths, **({"why": why} if why else {}))

    if actors.confinement is None or described.hypervisor == "xen":
        note([], "Xen itself bounds its guests" if described.hypervisor == "xen" else "off")
        return None
    memory_mib = allocation.memory_mib or described.memory_mib + overhead.overhead_mib(
        described.memory_mib, described.hypervisor, vcpus=described.vcpus, kernel_bytes=kernel_bytes
    )
    return actors.confinement.hold(allocation, memory_mib=memory_mib, cpus=described.vcpus, note=note)


def refuse(error: LrmsVmError, allocation: Allocation, *, places: Places) -> None:
    """Leave the verdict that makes the job's step print `error` and end with its exit code, on a healthy node."""
    for directory in (places.run_dir, places.verdicts):
        _make_directory(directory, 0o755)
    verdict = Verdict(
        state=REFUSED,
        key=allocation.key,
        uid=allocation.uid,
        exit_code=error.exit_code,
        code=error.code,
        message=error.message,
        hint=error.hint,
    )
    write_verdict_file(places, verdict, gid=allocation.gid)


def within(claim: Claim, request: Request, *, network: str) -> Request:
    """The request inside what the runner's rule gives at most (`max_mem`, `network`). Raises `RequestError`.

    `network` is what the site gives a job that does not say.
    """
    if claim.max_memory_mib is not None:
        memory_mib = min(request.memory_mib or claim.max_memory_mib, claim.max_memory_mib)
        request = replace(request, memory_mib=memory_mib)
    if claim.network is not None and request.network not in (None, "none", claim.network):
        raise RequestError(
            f"--vm-network: {request.network!r}, but {_giver(claim)} gives this image {claim.network!r}",
            hint=f"leave it out, or use --vm-network={claim.network}",
            code="network-not-allowed",
        )
    if claim.network is not None and request.network is None and network not in ("none", claim.network):
        request = replace(request, network=claim.network)
    return request


def shares_of(work_dir: str, request: Request, config: Config, claim: Claim | None = None) -> tuple[str, ...]:
    """The host directories the guest gets: the working directory, and those asked for below the site's share roots.

    The tier of the runner rule in `claim` may give fewer. Raises `RequestError` for a share the site or the tier does
    not allow. A working directory that would hide the guest's own system is left out, as is one that the tier does not
    give; `exec` tells the user.
    """
    given = claim.shares if claim is not None else "all"
    if claim is not None and request.shares and given != "all":
        raise RequestError(
            f"--vm-share: {request.shares[0]!r}, but {_giver(claim)} gives this image "
            f"{'no directory of the host' if given == 'none' else 'the working directory only'}",
            hint=f"leave it out, or ask {claim.contact}",
            code="share-not-allowed",
        )
    for share in request.shares:
        if not any(share == root or share.startswith(root.rstrip("/") + "/") for root in config.share_roots):
            raise RequestError(
                f"--vm-share: {share!r} is not below one of the site's share roots "
                f"({', '.join(config.share_roots) or 'there are none'})",
                hint=f"ask {config.contact}",
                code="share-not-allowed",
            )
    wanted = [work_dir] if given != "none" and _shareable(work_dir) else []
    return tuple(dict.fromkeys([*wanted, *request.shares]))


def _giver(claim: Claim) -> str:
    tier = f"tier {claim.tier!r} of " if claim.tier else ""
    return f"{tier}rule {claim.runner!r}" + (f" ({claim.runner_where})" if claim.runner_where else "")


def write_verdict_file(places: Places, verdict: Verdict, *, gid: int) -> None:
    """Atomically, root's, readable by the job's group: its own user must read it, nobody else can write it."""
    path = places.verdict(verdict.key)
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.unlink(missing_ok=True)
        _write(fresh, write_verdict(verdict), 0o440, gid=gid)
        fresh.replace(path)
    except OSError as error:
        raise NodeError(f"{path}: cannot write: {error.strerror}", code="state-unwritable") from error


def _shareable(path: str) -> bool:
    clean = os.path.normpath(path)
    return (
        path.startswith("/")
        and path.isprintable()
        and clean not in NOT_SHARED
        and not clean.startswith(("/proc/", "/sys/", "/dev/", "/run/lrms_vm"))
    )


def _begin(
    job: JobPlaces, allocation: Allocation, started_at: float, began: float, on_note: Callable[[str], None] | None
) -> Record:
    """`began` is the same moment as `started_at`, of time.monotonic()."""
    for directory in (
        job.run.parent.parent,
        job.run.parent,
        job.run.parent.with_name("verdicts"),
        job.disk.parent.parent,
    ):
        _make_directory(directory, 0o755)
    _make_directory(job.disk.parent, 0o711)
    _make_directory(job.run, 0o711)
    record = Record(job.record, on_note=on_note)
    record.begin(
        uid=allocation.uid,
        gid=allocation.gid,
        job_id=allocation.job_id,
        node=allocation.node,
        lrms=allocation.lrms,
        started_at=started_at,
        began=began,
        user=allocation.user,
    )
    return record


def _acquire(
    request: Request,
    allocation: Allocation,
    account: Account,
    record: Record,
    *,
    config: Config,
    actors: Actors,
    deadline: float,
) -> tuple[dict[str, str], VerifiedImage, Claim]:
    """The image, its provenance, and what the rules let its guest have. One line of the log says which, or why not."""
    start, fetch, steps = time.monotonic(), Metered(actors.fetch), list[str]()
    decide = actors.decision.for_job(
        user=account.name,
        groups=[name for name, _ in account.groups],
        partition=allocation.partition,
        account=allocation.account,
    )
    try:
        entry = resolved(request.image, config, fetch, decide, deadline)
        record.note("lease", image=entry.name)
        image = cache.acquire(
            entry,
            places=config.places,
            lease=allocation.key,
            decide=decide,
            fetch=fetch,
            max_image_bytes=actors.decision.max_image_bytes,
            deadline=deadline,
            step=steps.append,
            admission=Admission(config.limits, config.state_dir_on_network),
        )
    except (RequestError, SiteError) as error:
        named = {"name": request.image.text}
        journal.write("warning", "verdict", provenance.words(allocation.key, account.name, named, code=error.code))
        raise
    total_ms = (time.monotonic() - start) * 1e3
    record.took("fetch", total_ms - decide.spent_ms)
    record.took("verify", decide.spent_ms)
    if decide.limits is None:
        raise NodeError(f"{image.name}: in the cache, but nobody decided about it", code="internal")
    facts = provenance.facts(image, decide.limits, entry.version)
    found = "miss" if "part" in steps else "hit"
    record.note("verified", image=facts, cache=found, fetched_bytes=fetch.received_bytes)
    journal.write("info", "verdict", provenance.words(allocation.key, account.name, facts))
    for sentence in decide.limits.audit:
        journal.write("info", "audit", {"job": allocation.key, "text": sentence})
    return facts, image, decide.limits


def resolved(
    reference: ImageReference, config: Config, fetch: Fetcher, decide: JobDecision, deadline: float
) -> ImageEntry:
    """What the site, or a list it subscribes to, says of an image. Raises as `resolve.resolve`."""

    def find(wanted: ImageReference) -> ImageEntry | None:
        if not config.lists:
            return None  # and a site without lists need not load what reads them: 20 ms of a prologue
        from lrms_vm.list_refresh import Refresher
        from lrms_vm.lists import Lists

        return Lists(Refresher(config.lists, config.places, decide, fetch, deadline)).find(wanted)

    def sha256_of(entry: ImageEntry) -> str | None:
        try:
            return sidefiles.sha256_of(entry, places=config.places, decide=decide, fetch=fetch, deadline=deadline)
        except (RequestError, SiteError):
            return None  # not by this one

    return resolve(reference, config, find, sha256_of)


def _ready(
    request: Request,
    allocation: Allocation,
    account: Account,
    facts: dict[str, str],
    job: JobPlaces,
    shares: tuple[str, ...],
    config: Config,
    started_at: float,
) -> Verdict:
    return Verdict(
        state=READY,
        key=allocation.key,
        uid=allocation.uid,
        job_dir=str(job.run),
        work_dir=allocation.work_dir,
        shares=shares,
        env_names=request.env_names,
        user_name=account.name,
        home=account.home,
        boot_timeout_s=config.boot_timeout_s,
        started_at=started_at,
        image=facts,
    )


def template_text(config: Config, hypervisor: str) -> str:
    """The site's template for a domain, or ours. Raises `NodeError`."""
    directory = Path(config.templates_dir) if config.templates_dir else Path(__file__).with_name("templates")
    name = "domain-xen.xml.j2" if hypervisor == "xen" else "domain-qemu.xml.j2"
    try:
        return (directory / name).read_text()
    except OSError as error:
        raise NodeError(f"{directory / name}: cannot read: {error.strerror}", code="template-missing") from error


def _hand_over(
    job: JobPlaces,
    account: Account,
    pair: keys.KeyPair,
    *,
    makes_console: bool,
    program: str,
    place: str | None,
    silent_s: int,
) -> None:
    """Give the user what is theirs: the channel's socket, the console's text, the keys. The directory comes last.

    `makes_console`: the hypervisor writes the console's file; else the user's own process will, see console.py.
    The others are channel.ssh_config's.
    """
    user = job.user
    ssh_config = channel.ssh_config(user, account.name, program=program, place=place, silent_s=silent_s)
    _make_directory(user.root, 0o700)
    files: Mapping[Path, bytes] = {
        user.private_key: pair.user_private,
        user.known_hosts: pair.known_hosts,
        user.ssh_config: ssh_config.encode(),
    }
    for path, text in files.items():
        _write(path, text, 0o600, uid=account.uid, gid=account.gid)
    if not makes_console:
        _write(job.console, b"", 0o600)
    for path, mode in ((job.channel, 0o600), (job.console, 0o400 if makes_console else 0o600)):
        _give(path, mode, account)
    os.lchown(user.root, account.uid, account.gid)


def _give(path: Path, mode: int, account: Account) -> None:
    """A file of the hypervisor's. It takes its socket away when it ends: a guest that died within its first moments
    ran nothing of its image's yet, so another node may have more luck. Raises `NodeError`."""
    try:
        os.chmod(path, mode)
        os.lchown(path, account.uid, account.gid)
    except FileNotFoundError as error:
        raise NodeError(
            f"{path}: not there; the hypervisor makes it and runs as long as it is: the guest ended at its start",
            hint="see the domain's log in /var/log/libvirt, and the kernel's for lack of memory",
            code="domain-gone",
        ) from error
    except OSError as error:
        raise NodeError(
            f"{path}: cannot give to user {account.uid}: {error.strerror}", code="state-unwritable"
        ) from error


def _make_directory(path: Path, mode: int) -> None:
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        path.chmod(mode)
        status = path.lstat()
        if status.st_uid != os.geteuid():
            raise NodeError(f"{path}: owner {status.st_uid}, expected root", code="state-unsafe")
    except OSError as error:
        raise NodeError(f"{path}: cannot make: {error.strerror}", code="state-unwritable") from error


def _write(path: Path, text: bytes, mode: int, *, uid: int = -1, gid: int = -1) -> None:
    """A new file in a directory that only root can write; never follows or reuses one that is there."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with open(fd, "wb") as file:
            file.write(text)
            os.fchmod(fd, mode)
            os.fchown(fd, uid, gid)
    except OSError as error:
        raise NodeError(f"{path}: cannot write: {error.strerror}", code="state-unwritable") from error
