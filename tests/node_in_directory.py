"""A node in a directory: real cache, overlay, seed, keys, verdict, record and attach; only the hypervisor is a stand-in.

No guest boots. A domain is a file, and a process where one is wanted, so that it survives the process that made it, as
libvirt's would. Crash and fault tests run prologues and teardowns here, in children that they kill.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from lrms_vm import cache, cgroups, lifecycle, network, teardown
from lrms_vm import config as configuration
from lrms_vm.cgroups import Confinement
from lrms_vm.errors import NodeError
from lrms_vm.fetch import Fetch
from lrms_vm.lifecycle import Actors
from lrms_vm.paths import Places
from lrms_vm.request import Allocation, Request, parse_request
from lrms_vm.trust.verify import Claim, Endorsement
from tests import faults

REPOSITORY = Path(__file__).parent.parent


class DirectoryHypervisor:
    """A domain is a file and a process that holds the channel's socket and never answers. Of no program that asks for
    it: whoever is killed while it works finds the work done, as with libvirtd."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._pids = directory, directory.with_name(directory.name + ".pids")
        for path in (directory, self._pids):
            path.mkdir(exist_ok=True)

    def create(self, xml: str, *, deadline: float, confine: Callable[[int], None] | None = None) -> None:
        with faults.elsewhere():
            pid = self._create(xml)
        if confine is not None:
            confine(pid)

    def destroy(self, name: str, *, deadline: float) -> None:
        with faults.elsewhere():
            pid_file = self._pids / name
            if pid_file.exists():
                end(int(pid_file.read_text()))
                pid_file.unlink()
            (self._directory / name).unlink(missing_ok=True)

    def names(self, *, deadline: float) -> list[str]:
        return [path.name for path in self._directory.iterdir()]

    def is_active(self, name: str, *, deadline: float) -> bool:
        return (self._directory / name).exists()

    def usable(self, kind: str, *, deadline: float) -> bool:
        return True

    def native_config(self, xml: str, format_: str, *, deadline: float) -> str:
        return xml

    def _create(self, xml: str) -> int:
        tree = ElementTree.fromstring(xml)
        name = str(tree.findtext("name"))
        for disk in tree.iterfind("./devices/disk/source"):
            if not os.path.exists(disk.get("file", "")):
                raise NodeError(f"libvirt: {disk.get('file')}: no such file", code="domain-create-failed")
        channel = tree.find("./devices/channel/source")
        assert channel is not None
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(channel.attrib["path"])
            sock.listen(1)
            process = subprocess.Popen(["sleep", "600"], pass_fds=[sock.fileno()], env={}, start_new_session=True)
        process.returncode = 0  # nobody's: whoever made it may be gone
        Path(channel.attrib["path"]).with_name("console.log").write_text("")
        (self._pids / name).write_text(str(process.pid))
        (self._directory / name).write_text(xml)
        return process.pid


def end(pid: int) -> None:
    """Kill, and wait until it is a zombie or gone."""
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        select.select([descriptor], [], [], 10)
        os.close(descriptor)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


class BrokenHypervisor(DirectoryHypervisor):
    """Libvirt is down when teardown comes."""

    def destroy(self, name: str, *, deadline: float) -> None:
        raise NodeError("libvirt does not answer", code="hypervisor-down")


class AcceptingDecision:
    """The trust core has its own tests; here every image is fine."""

    max_image_bytes = 1 << 30
    spent_ms = 0.0
    limits: Any = None
    at = datetime.now(UTC)
    bare_max_age_s = 86400

    def for_job(self, **_: Any) -> AcceptingDecision:
        return self

    def claim(self, files: Any, name: str) -> Any:
        self.limits = Claim(
            kind="cms", digest_algorithm="sha256", signed_digest=None, signer="CN=B", issuer="CN=CA", rule="b",
            rule_where="test:1", runner="r", max_memory_mib=None, network=None, valid_until=datetime.max,
            signature=b"", certificate=None, max_image_bytes=1 << 30, blocked={}, contact="test",  # type: ignore[arg-type]
        )  # fmt: skip
        return self.limits

    def form(self, claim: Claim, format: str, sha256: str, *, size_bytes: int, raw_size_bytes: int) -> None:
        pass

    def bytes(self, claim: Claim, digests: Mapping[str, bytes], size_bytes: int) -> Endorsement:
        return Endorsement(signer="CN=B", issuer="CN=CA", rule="b", sha256=digests["sha256"].hex(), code="accepted")


class Site:
    """A node in a directory: configuration, images, a hypervisor. `settings` are more lines of the configuration."""

    def __init__(
        self, root: Path, *, settings: str = "", options: Mapping[str, str] | None = None, node: str = "n1"
    ) -> None:
        self.root, self.node = root, node
        root.chmod(0o755)
        for name in ("small", "other"):
            (root / f"{name}.raw").write_bytes(os.urandom(1 << 20))
            (root / f"{name}.raw.p7s").write_bytes(b"signature")
        subprocess.run(["make", "-s", "-C", REPOSITORY / "guest"], check=True)
        shutil.copy(REPOSITORY / "guest" / "lrms-vm-guest", root / "guest")
        for name in ("vmlinuz", "initrd"):
            (root / name).write_bytes(name.encode())
        digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("vmlinuz", "initrd")}
        (root / "work").mkdir()
        self.config = configuration.parse(
            f"""version = 1
            state_dir = "{root}/state"
            run_dir = "{root}/run"
            guest_program = "{root}/guest"
            hypervisor = "qemu"
            kernel = "k"
            boot_timeout_s = 600
            {settings}
            [kernels.k]
            vmlinuz = "{root}/vmlinuz"
            initrd = "{root}/initrd"
            vmlinuz_sha256 = "{digests["vmlinuz"]}"
            initrd_sha256 = "{digests["initrd"]}"
            [images.small]
            url = "{root}/small.raw"
            [images.other]
            url = "{root}/other.raw"
            """.encode(),
            source="test",
        )
        self.hypervisor = DirectoryHypervisor(root / "domains")
        self.confinement = confinement()
        self.options = {"vm-image": "small", **(options or {})}
        self.allocation = self.job("7")

    @property
    def request(self) -> Request:
        return parse_request(self.options, source="test")

    def job(self, job_id: str) -> Allocation:
        nobody = pwd.getpwnam("nobody")
        return Allocation(
            lrms="slurm", job_id=job_id, node=self.node, uid=nobody.pw_uid, gid=nobody.pw_gid, user="nobody",
            work_dir=str(self.root / "work"), cpus=1, memory_mib=1000,
        )  # fmt: skip

    def prologue(
        self, on_note: Callable[[str], None] | None = None, job: Allocation | None = None, image: str = ""
    ) -> None:
        actors = Actors(
            hypervisor=self.hypervisor, fetch=Fetch(), decision=AcceptingDecision(),  # type: ignore[arg-type]
            python=sys.executable, confinement=self.confinement, on_note=on_note,
        )  # fmt: skip
        job = job or self.allocation
        request = parse_request({**self.options, "vm-image": image or self.options["vm-image"]}, source="test")
        with teardown.locked(self.config.places, job.key, deadline=time.monotonic() + 5):
            lifecycle.prologue(
                request, job, config=self.config, actors=actors,
                started_at=time.time(), deadline=time.monotonic() + 60,
            )  # fmt: skip

    def teardown(self, on_step: Callable[[str], None] | None = None, key: str = "") -> list[teardown.Leftover]:
        key = key or self.allocation.key
        with teardown.locked(self.config.places, key, deadline=time.monotonic() + 5):
            return teardown.teardown(
                key, places=self.config.places, hypervisor=self.hypervisor,
                deadline=time.monotonic() + 20, on_step=on_step,
            )  # fmt: skip

    def reap(self, *, active: frozenset[str] = frozenset()) -> list[str]:
        """As `lrms-vm reap` does: at boot, and by the site's timer."""
        cache.clean(self.config.places)
        deadline = time.monotonic() + 20
        found = teardown.keys_on(self.node, places=self.config.places, hypervisor=self.hypervisor, deadline=deadline)
        return [str(left) for key in sorted(found - active) for left in self.teardown(key=key)]

    def reap_before_prologue(self, *, active: frozenset[str] = frozenset()) -> list[str]:
        """As the next prologue on this node does, before its own work."""
        found = teardown.keys_in_directories(self.node, places=self.config.places)
        return [str(left) for key in sorted(found - active) for left in self.teardown(key=key)]

    def reboot(self) -> None:
        """Processes, guests, control groups and run_dir are gone; the disk is as it was."""
        for pid in {pid for key in self.keys() for pid in teardown.attach_processes(key)}:
            end(pid)
        for name in self.hypervisor.names(deadline=0):
            self.hypervisor.destroy(name, deadline=0)
        for key in self.keys():
            cgroups.remove(key)
            network.unplug(self.config.places, key, deadline=time.monotonic() + 20)
        shutil.rmtree(self.config.places.run_dir, ignore_errors=True)

    def keys(self) -> set[str]:
        return {path.name.removesuffix(".json").removesuffix(".lock") for path in self._entries()}

    def forget_image(self, name: str = "small") -> None:
        """As if it had never been on this node."""
        digest = hashlib.sha256((self.root / f"{name}.raw").read_bytes()).hexdigest()
        shutil.rmtree(self.config.places.store / "sha256" / digest[:2] / digest, ignore_errors=True)

    def left(self, key: str = "") -> list[str]:
        """Everything of the job, or of all jobs, that is still there; the verified image in the cache may stay."""
        places = self.config.places
        found = [str(path) for path in self._entries()]
        found += [str(path) for path in places.ingest.rglob("*")] if places.ingest.exists() else []
        found += [
            str(path)
            for directory in (places.retries, places.store)  # history prunes itself
            if directory.exists()
            for path in directory.rglob("*")
            if path.name.startswith(".") or path.name.endswith(".new")
        ]
        found += self.hypervisor.names(deadline=0)
        own = key or self.allocation.key
        found += [f"pid {pid}" for pid in teardown.attach_processes(own)]
        found += [f"cgroup {group.path}" for group in (cgroups.find(own) if self.confinement else [])]
        return [one for one in found if key in one or one.startswith(("pid", "cgroup"))]

    def _entries(self) -> Iterator[Path]:
        places = self.config.places
        for directory in (places.jobs, places.disks, places.verdicts, places.leases, places.job_locks, places.networks):
            if directory.exists():
                yield from directory.rglob("*")


def confinement() -> Confinement | None:
    """Where this machine's control groups can be written; else guests are not held, and the record says so."""
    try:
        writable = all(os.access(one.mount, os.W_OK) for one in cgroups.hierarchies())
    except NodeError:
        return None
    return Confinement() if writable and os.geteuid() == 0 and cgroups.hierarchies() else None


# Jobs and settings that together take every step: (settings, options) of a Site. The crash tests run each.
VARIANTS: dict[str, tuple[str, Mapping[str, str]]] = {
    "nat": (
        f'networks_allowed = ["none", "nat"]\nnat_bridge = "lrmsvm{os.getpid() % 10**6}"\nnat_subnet = "10.211.0.0/24"',
        {"vm-network": "nat"},
    ),
}


def clear_dead_runs() -> None:
    """What a test run that was killed left on this host: bridge, rules and forwarding of its guests, processes and control
    groups. A site's directory says whose it is.
    """
    for owner in Path("/tmp").glob("lrms-*/owner"):
        root = owner.parent
        with suppress(FileNotFoundError):  # another run ends just now, or clears the same
            said = owner.read_text()
            if said and said == _process(int(said.split()[0])):
                continue
            places = Places(root / "state", root / "run")
            for marker in places.networks.glob("*.json"):
                network.unplug(places, marker.stem, deadline=time.monotonic() + 20)
            for job in places.jobs.glob("*"):
                inside = " ".join(Path(group.path, "cgroup.procs").read_text() for group in cgroups.find(job.name))
                for pid in {*map(int, inside.split()), *teardown.attach_processes(job.name)}:
                    end(pid)
                cgroups.remove(job.name)
            shutil.rmtree(root)


def _process(pid: int) -> str:
    """Which process this is, were its number to be given again: proc(5), /proc/PID/stat, field 22. "" for none."""
    try:
        return f"{pid} {Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    except (FileNotFoundError, ProcessLookupError):
        return ""


@contextmanager
def site(settings: str = "", options: Mapping[str, str] | None = None) -> Iterator[Site]:
    """A `Site` in a directory that users can reach, whatever pytest makes of its own; nothing of it stays."""
    clear_dead_runs()
    root = Path(tempfile.mkdtemp(prefix="lrms-", dir="/tmp"))
    (root / "owner.new").write_text(_process(os.getpid()))
    (root / "owner.new").rename(root / "owner")
    # control groups and environments are the whole machine's: two test runs must not find each other's
    made = Site(root, settings=settings, options=options, node=f"n{os.getpid()}")
    try:
        yield made
    finally:
        made.reboot()
        shutil.rmtree(root, ignore_errors=True)
