"""Opt-in: `make test-torque`, where a Torque is on PATH. Otherwise nothing here is collected, and nothing is skipped."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo import hypervisor, leftovers, site, users
from demo.cluster import Cluster
from demo.hooks import GUEST
from demo.layout import USER, default_base
from demo.programs import wait_until
from tests.integration.torque.torque_alone import NODE, Torque, missing

BOOT_S = 240
collect_ignore_glob = [] if os.environ.get("LRMS_VM_TEST_TORQUE") else ["test_*.py"]


@pytest.fixture(scope="package")
def torque() -> Iterator[Torque]:
    if os.geteuid() != 0 or missing():
        pytest.skip(f"needs root, and {', '.join(missing())}")
    cluster = Cluster(default_base())
    cluster.prepare()  # waits for whoever else uses libvirt here
    torque = Torque(cluster.layout)
    torque.stop()
    site.make(cluster, ["minimal"])
    site.configure(torque.layout, [NODE], plugin=False)
    hypervisor.start(torque.layout)
    link = torque.layout.libvirt_socket(NODE)
    if not link.is_symlink():
        link.symlink_to(hypervisor.SOCKET)
    try:
        torque.make_home()
        torque.install(GUEST)
        torque.start()
        yield torque
    finally:
        torque.stop()
        left = hypervisor.stop(torque.layout)
    assert left == []


@dataclass(frozen=True)
class Desk:
    """A test's own directory, and short words for what it does there."""

    torque: Torque
    directory: Path  # the user's own

    def qsub(self, *words: str, script: str, image: str | None = "minimal", **more: str) -> str:
        asked = ["-l", f"other=vm:{image}", "-v", "VM_MEMORY=500M"] if image is not None else []
        where = ["-o", f"{self.directory}/out", "-e", f"{self.directory}/err"]
        return self.torque.qsub(*asked, *where, *words, script=script, cwd=self.directory, **more)

    def end(self, name: str, *, timeout_s: float = BOOT_S) -> tuple[int, str]:
        """Wait for a job's end, its epilogue too; nothing is left of it; its exit status and output."""
        fields = self.torque.wait(name, "C", timeout_s=timeout_s)
        self.nothing_left(name)
        return int(fields["exit_status"]), self.said("out")

    def said(self, kind: str) -> str:
        path = self.directory / kind
        lines = path.read_text(errors="replace").splitlines(keepends=True) if path.exists() else []
        return "".join(line for line in lines if not line.startswith("lrms-vm: waiting for the guest"))

    def nothing_left(self, name: str) -> None:
        number = name.partition(".")[0].replace("[", "-").removesuffix("]")
        key = f"torque-{number}.{self.torque.host.partition('.')[0]}"
        layout = self.torque.layout
        wait_until("nothing is left", lambda: leftovers.search_key(layout, self.torque.name, key) == [], timeout_s=10)
        assert not (layout.places(self.torque.name).run_dir / "torque" / number).exists()


@pytest.fixture
def desk(torque: Torque, request: pytest.FixtureRequest) -> Iterator[Desk]:
    torque.in_service()
    user = users.find(USER)
    directory = torque.layout.home(USER) / "tests" / f"torque-{request.node.name[:30]}-{uuid.uuid4().hex[:6]}"
    directory.mkdir(mode=0o755, parents=True)
    os.chown(directory, user.uid, user.gid)
    yield Desk(torque, directory)
    for name in torque.jobs():
        torque.ask("qdel", name, check=False)
