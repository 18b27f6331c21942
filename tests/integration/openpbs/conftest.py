"""Opt-in: `make test-openpbs`, on a host where an OpenPBS runs. Otherwise nothing here is collected or skipped."""

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
from tests.integration.openpbs.openpbs_here import NODE, OpenPbs, missing

BOOT_S = 240
collect_ignore_glob = [] if os.environ.get("LRMS_VM_TEST_OPENPBS") else ["test_*.py"]


@pytest.fixture(scope="package")
def openpbs() -> Iterator[OpenPbs]:
    if os.geteuid() != 0 or missing():
        pytest.skip(f"needs root, and {', '.join(missing())}")
    cluster = Cluster(default_base())
    cluster.prepare()  # waits for whoever else uses libvirt here
    openpbs = OpenPbs(cluster.layout)
    site.make(cluster, ["minimal"])
    site.configure(openpbs.layout, [NODE], plugin=False)
    hypervisor.start(openpbs.layout)
    link = openpbs.layout.libvirt_socket(NODE)
    if not link.is_symlink():
        link.symlink_to(hypervisor.SOCKET)
    try:
        openpbs.remove()  # of a run that was killed
        openpbs.install(GUEST)
        yield openpbs
    finally:
        openpbs.remove()
        left = hypervisor.stop(openpbs.layout)
    assert left == []


@dataclass(frozen=True)
class Desk:
    """A test's own directory, and short words for what it does there."""

    openpbs: OpenPbs
    directory: Path  # the user's own

    def qsub(self, *words: str, script: str | None = None, image: str | None = "minimal") -> str:
        asked = ["-l", f"vm_image={image}", "-v", "VM_MEMORY=400M"] if image is not None else []
        where = ["-o", f"{self.directory}/out", "-e", f"{self.directory}/err"]
        return self.openpbs.qsub(*asked, *where, *words, script=script, cwd=self.directory)

    def end(self, name: str, *, timeout_s: float = BOOT_S) -> tuple[int, str]:
        """Wait for a job's end, its hooks too; nothing is left of it; its exit status and output."""
        fields = self.openpbs.wait(name, "F", "X", timeout_s=timeout_s)
        self.nothing_left(name)
        return int(fields["Exit_status"]), self.said("out")

    def said(self, kind: str) -> str:
        path = self.directory / kind
        lines = path.read_text(errors="replace").splitlines(keepends=True) if path.exists() else []
        return "".join(line for line in lines if not line.startswith("lrms-vm: waiting for the guest"))

    def nothing_left(self, name: str) -> None:
        number = name.partition(".")[0].replace("[", "-").removesuffix("]")
        layout = self.openpbs.layout
        key = f"openpbs-{number}.{self.openpbs.host}"
        wait_until("nothing is left", lambda: leftovers.search_key(layout, NODE, key) == [], timeout_s=15)

    def written(self, name: str) -> None:
        """Wait for a file that a payload writes to this directory."""
        wait_until(f"{name} written", (self.directory / name).exists, timeout_s=BOOT_S)


@pytest.fixture
def desk(openpbs: OpenPbs, request: pytest.FixtureRequest) -> Iterator[Desk]:
    openpbs.in_service()
    user = users.find(USER)
    clean = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)[:30]
    directory = openpbs.layout.home(USER) / "tests" / f"pbs-{clean}-{uuid.uuid4().hex[:6]}"
    directory.mkdir(mode=0o755, parents=True)
    os.chown(directory, user.uid, user.gid)
    yield Desk(openpbs, directory)
    if waiting := openpbs.ask("qselect", "-u", USER).stdout.split():
        openpbs.ask("qdel", "-W", "force", *waiting, check=False)
