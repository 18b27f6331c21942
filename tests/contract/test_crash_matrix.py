"""The prologue is killed at each step it notes, and teardown at each step it takes; what runs next must leave nothing.

No guest boots here: the hypervisor is a directory, so that it survives the killed process as libvirt would. Everything
else (cache, overlay, seed, keys, verdict, attach) is real.
"""

from __future__ import annotations

import os
import pwd
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lrms_vm import config as configuration
from lrms_vm import lifecycle, record, teardown
from lrms_vm.errors import NodeError
from lrms_vm.fetch import Fetch
from lrms_vm.lifecycle import Actors
from lrms_vm.request import Allocation, Request, parse_request
from lrms_vm.trust.verify import Claim, Endorsement

TEARDOWN_STEPS = ("verdict", "attach", "domain", "disks", "lease", "history", "cgroup", "run directory")


class DirectoryHypervisor:
    """A domain is a file. Makes the socket and the console that the real one makes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(exist_ok=True)

    def create(self, xml: str, *, deadline: float, confine: Callable[[int], None] | None = None) -> None:
        tree = ElementTree.fromstring(xml)
        (self._directory / str(tree.findtext("name"))).write_text(xml)
        channel = tree.find("./devices/channel/source")
        assert channel is not None
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(channel.attrib["path"])
        Path(channel.attrib["path"]).with_name("console.log").write_text("")

    def destroy(self, name: str, *, deadline: float) -> None:
        (self._directory / name).unlink(missing_ok=True)

    def names(self, *, deadline: float) -> list[str]:
        return [path.name for path in self._directory.iterdir()]

    def is_active(self, name: str, *, deadline: float) -> bool:
        return (self._directory / name).exists()

    def usable(self, kind: str, *, deadline: float) -> bool:
        return True

    def native_config(self, xml: str, format_: str, *, deadline: float) -> str:
        return xml


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
    """A node in a directory: configuration, an image, a hypervisor."""

    def __init__(self, root: Path) -> None:
        root.chmod(0o755)
        (root / "image.raw").write_bytes(os.urandom(1 << 20))
        (root / "image.raw.p7s").write_bytes(b"signature")
        (root / "guest").write_bytes(b"\x7fELF stand-in")
        (root / "guest").chmod(0o755)
        for name in ("vmlinuz", "initrd"):
            (root / name).write_bytes(name.encode())
        import hashlib

        digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("vmlinuz", "initrd")}
        work = root / "work"
        work.mkdir()
        self.config = configuration.parse(
            f"""version = 1
            state_dir = "{root}/state"
            run_dir = "{root}/run"
            guest_program = "{root}/guest"
            hypervisor = "qemu"
            kernel = "k"
            boot_timeout_s = 30
            [kernels.k]
            vmlinuz = "{root}/vmlinuz"
            initrd = "{root}/initrd"
            vmlinuz_sha256 = "{digests["vmlinuz"]}"
            initrd_sha256 = "{digests["initrd"]}"
            [images.small]
            url = "{root}/image.raw"
            """.encode(),
            source="test",
        )
        self.hypervisor = DirectoryHypervisor(root / "domains")
        nobody = pwd.getpwnam("nobody")
        self.request: Request = parse_request({"vm-image": "small"}, source="test")
        self.allocation = Allocation(
            lrms="slurm", job_id="7", node="n1", uid=nobody.pw_uid, gid=nobody.pw_gid, user="nobody",
            work_dir=str(work), cpus=1, memory_mib=1000,
        )  # fmt: skip

    def prologue(self, on_note: Callable[[str], None] | None = None) -> None:
        actors = Actors(
            hypervisor=self.hypervisor, fetch=Fetch(), decision=AcceptingDecision(),  # type: ignore[arg-type]
            python=sys.executable, on_note=on_note,
        )  # fmt: skip
        with teardown.locked(self.config.places, self.allocation.key, deadline=time.monotonic() + 5):
            lifecycle.prologue(
                self.request, self.allocation, config=self.config, actors=actors,
                started_at=time.time(), deadline=time.monotonic() + 60,
            )  # fmt: skip

    def teardown(self, on_step: Callable[[str], None] | None = None) -> list[teardown.Leftover]:
        with teardown.locked(self.config.places, self.allocation.key, deadline=time.monotonic() + 5):
            return teardown.teardown(
                self.allocation.key, places=self.config.places, hypervisor=self.hypervisor,
                deadline=time.monotonic() + 20, on_step=on_step,
            )  # fmt: skip

    def left(self) -> list[str]:
        """Everything of the job that is still there; the verified image in the cache may stay."""
        places = self.config.places
        found = [
            str(path)
            for directory in (places.jobs, places.disks, places.verdicts, places.leases, places.job_locks)
            if directory.exists()
            for path in directory.rglob("*")
        ]
        found += [str(path) for path in places.ingest.rglob("*")] if places.ingest.exists() else []
        found += self.hypervisor.names(deadline=0)
        return found + [f"pid {pid}" for pid in teardown.attach_processes(self.allocation.key)]


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    root = tmp_path_factory.mktemp("n", numbered=True)
    for parent in [root, *root.parents][:4]:
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    return Site(root)


def killed_at(step: str, action: Callable[[Callable[[str], None]], object]) -> None:
    """Run `action` in a child that dies by SIGKILL when it comes to `step`."""

    def die(name: str) -> None:
        if name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            action(die)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(99)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status), f"never came to step {step}: exit {os.waitstatus_to_exitcode(status)}"


@pytest.mark.parametrize("step", record.STEPS)
def test_a_prologue_killed_at_any_step_leaves_nothing_after_the_epilogue(site: Site, step: str) -> None:
    killed_at(step, site.prologue)
    assert site.teardown() == []
    assert site.left() == []


@pytest.mark.parametrize("step", TEARDOWN_STEPS)
def test_an_epilogue_killed_at_any_step_is_finished_by_the_next(site: Site, step: str) -> None:
    site.prologue()
    killed_at(step, site.teardown)
    assert site.teardown() == []
    assert site.left() == []


def test_teardown_takes_the_steps_this_file_kills_it_at(site: Site) -> None:
    seen: list[str] = []
    site.prologue()
    site.teardown(seen.append)
    assert tuple(seen) == TEARDOWN_STEPS


def test_a_second_teardown_finds_nothing_and_complains_of_nothing(site: Site) -> None:
    site.prologue()
    assert site.teardown() == []
    assert site.teardown() == []
    assert site.left() == []


def test_a_prologue_notes_every_step_it_could_be_killed_at(site: Site) -> None:
    seen: list[str] = []
    site.prologue(seen.append)
    assert tuple(seen) == record.STEPS
    assert site.teardown() == []


def test_while_the_domain_may_run_its_disks_and_record_stay(site: Site, tmp_path: Path) -> None:
    site.prologue()
    working = site.hypervisor
    site.hypervisor = BrokenHypervisor(tmp_path / "broken")
    left = site.teardown()
    assert [leftover.what for leftover in left] == ["domain"]
    assert site.config.places.job(site.allocation.key).overlay.exists()
    site.hypervisor = working
    assert site.teardown() == []
    assert site.left() == []


def test_a_link_planted_in_the_users_directory_leads_teardown_nowhere(site: Site, tmp_path: Path) -> None:
    site.prologue()
    (tmp_path / "precious").write_text("kept")
    user = site.config.places.job(site.allocation.key).user.root
    (user / "trap").symlink_to(tmp_path)
    (user / "ready").unlink(missing_ok=True)
    (user / "ready").symlink_to("/etc/shadow")
    assert site.teardown() == []
    assert (tmp_path / "precious").read_text() == "kept"
    assert site.left() == []


def test_keys_on_a_node_are_found_by_directory_verdict_and_domain_and_only_that_nodes(site: Site) -> None:
    site.prologue()
    places = site.config.places
    (site.config.places.verdicts / "slurm-8.n1.json").write_text("{}")
    (site.config.places.verdicts / "slurm-9.n2.json").write_text("{}")
    (site.config.places.verdicts / "slurm-10.rack.n1.json").write_text("{}")
    found = teardown.keys_on("n1", places=places, hypervisor=site.hypervisor, deadline=time.monotonic() + 5)
    assert found == {"slurm-7.n1", "slurm-8.n1"}
    site.teardown()
