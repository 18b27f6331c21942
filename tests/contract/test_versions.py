"""Programs are replaced while jobs run: what an older version left is torn down, what a newer one left is not guessed at."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lrms_vm import record, teardown, verdict
from lrms_vm.cli import status
from lrms_vm.domain import NAME_PREFIX
from lrms_vm.errors import NodeError
from lrms_vm.paths import Places

RECORDED = Path(__file__).parent.parent / "data/versions"
KEY = "slurm-7.n1"
OTHER = "slurm-8.n1"


class Domains:
    """Libvirt as a directory of names."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def destroy(self, name: str, *, deadline: float) -> None:
        (self._directory / name).unlink(missing_ok=True)

    def names(self, *, deadline: float) -> list[str]:
        return [path.name for path in self._directory.iterdir()]


class Node:
    """What a prologue of some version left, put in place; with the disks, which nobody recorded."""

    def __init__(self, root: Path, version: int) -> None:
        shutil.copytree(RECORDED / str(version), root, dirs_exist_ok=True)
        self.root = root
        self.places = Places(root / "state", root / "run")
        self.domains = Domains(root / "domains")
        disks = self.places.job(KEY).disk
        disks.mkdir(parents=True)
        for name in ("overlay.qcow2", "seed.iso"):
            (disks / name).write_bytes(b"")

    def rewrite(self, **change: object) -> None:
        """Its record's first line, as another version would write it."""
        path = self.places.job(KEY).record
        first, _, rest = path.read_text().partition("\n")
        path.write_text(json.dumps(json.loads(first) | change) + "\n" + rest)

    def teardown(self, key: str = KEY) -> list[teardown.Leftover]:
        return teardown.teardown(
            key, places=self.places, hypervisor=self.domains, deadline=time.monotonic() + 20  # type: ignore[arg-type]
        )  # fmt: skip

    def tree(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()}


VERSIONS = sorted(int(path.name) for path in RECORDED.iterdir() if path.name.isdecimal())


def test_every_version_was_recorded() -> None:
    assert list(range(1, record.VERSION + 1)) == VERSIONS
    assert max(verdict.VERSION, 1) <= record.VERSION  # a new verdict is a new record


@pytest.mark.parametrize("version", VERSIONS)
def test_what_an_older_version_left_is_torn_down(tmp_path: Path, version: int) -> None:
    node = Node(tmp_path, version)
    assert node.places.verdict(KEY).exists() and (tmp_path / "domains" / (NAME_PREFIX + KEY)).exists()
    assert node.teardown() == []
    left = {path for path in node.tree() if not path.startswith("state/metrics/")}
    assert left == {f"state/history/{KEY}.json"}
    history = json.loads((node.places.history / f"{KEY}.json").read_text())
    assert (history["user"], history["image"]["name"], history["complete"]) == ("nobody", "small", True)
    assert history["phases_ms"]["overlay"] > 0


@pytest.mark.parametrize("version", VERSIONS)
def test_exec_goes_by_the_verdict_of_an_older_version(tmp_path: Path, version: int) -> None:
    path = Node(tmp_path, version).places.verdict(KEY)
    found = verdict.read_verdict(path.read_bytes(), source=str(path))
    assert (found.state, found.key, found.shares) == (verdict.READY, KEY, ("/site/work",))


@pytest.mark.parametrize("version", VERSIONS)
def test_status_shows_what_an_older_version_made(tmp_path: Path, version: int) -> None:
    (row,) = status.rows_of(Node(tmp_path, version).places)
    assert (row["key"], row["phase"], row["image"]) == (KEY, "guest up", "small")


@pytest.mark.parametrize("version", [2, 99, 0, -1, "1", 1.0, None, True, [1]])
def test_a_record_of_a_newer_version_is_left_whole_and_says_so(tmp_path: Path, version: object) -> None:
    node = Node(tmp_path, 1)
    node.rewrite(version=version, bridges=["br7"])
    before = node.tree()
    (left,) = node.teardown()
    assert node.tree() == before
    assert left.what == "record"
    assert "this lrms_vm knows up to 1" in left.why and "lrms-vm reap" in left.why


def test_it_keeps_no_other_job_from_being_torn_down(tmp_path: Path) -> None:
    node = Node(tmp_path, 1)
    shutil.copytree(node.places.job(KEY).run, node.places.job(OTHER).run)
    node.rewrite(version=2)
    deadline = time.monotonic() + 20
    keys = teardown.keys_on("n1", places=node.places, hypervisor=node.domains, deadline=deadline)  # type: ignore[arg-type]
    assert keys == {KEY, OTHER}
    assert {key: len(node.teardown(key)) for key in sorted(keys)} == {KEY: 1, OTHER: 0}


def test_a_verdict_of_a_newer_version_runs_nothing(tmp_path: Path) -> None:
    path = Node(tmp_path, 1).places.verdict(KEY)
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"version": 2, "vsock": 3}))
    os.chown(path, 0, 0)
    path.chmod(0o444)
    for directory in (path.parent, *path.parents[:4]):
        directory.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "lrms_vm", "exec", "--verdict", str(path), "--", "/bin/echo", "ran on the host"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == NodeError.exit_code
    assert "a newer lrms_vm wrote it" in done.stderr
    assert done.stdout == ""


def test_what_runs_as_long_as_a_job_loads_nothing_of_ours_late() -> None:
    """exec runs for days, and its files may be replaced meanwhile: what it needs of them is loaded before the payload."""
    late = set()
    for name in ("attach", "payload", "channel", "starter", "environment", "launch_service", "launchers", "verdict"):
        tree = ast.parse((Path(record.__file__).parent / f"{name}.py").read_text())
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lrms_vm"):
                    late |= {f"{name}.{function.name}: {alias.name}" for alias in node.names}
    before_the_payload = {"payload.run: launch_service", "payload.run: launchers"}
    before_the_payload |= {f"starter.command_of: {name}" for name in ("gridengine", "torque", "openpbs")}
    assert late == before_the_payload
