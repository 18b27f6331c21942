"""A prologue from end to end, with stand-ins for Torque's commands: whom it tells what, and that no job starts for ever."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lrms_vm.lrms.base import MAX_RETRIES

CHECKOUT = Path(__file__).parents[3]
USER = "nobody"
COMMANDS = ("qstat", "qhold", "qalter", "pbsnodes")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a prologue is root's")


class Node:
    """A node whose image server is down."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "bin").mkdir()
        (root / "mom_priv" / "jobs").mkdir(parents=True)
        for name in COMMANDS:
            self.works(name)
        (root / "starter").write_text("lrms-vm-exec")
        (root / "mom_priv" / "config").write_text(f"$job_starter {root}/starter\n")
        shutil.copy(CHECKOUT / "examples" / "trust.toml", root / "trust.toml")
        self.configure()

    def configure(self, more: str = "") -> None:
        (self.root / "lrms_vm.toml").write_text(
            f'version = 1\nstate_dir = "{self.root}/state"\nrun_dir = "{self.root}/run"\n'
            f'policy = "{self.root}/trust.toml"\nhypervisor = "qemu"\nlibvirt_uri = "test:///default"\n{more}'
            '[images.down]\nurl = "http://127.0.0.1:9/down.img"\n'
        )

    def works(self, name: str, *, exit_code: int = 0) -> None:
        path = self.root / "bin" / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.root}/log\nexit {exit_code}\n')
        path.chmod(0o755)

    def prologue(self, image: str = "down") -> int:
        script = f"{self.root}/mom_priv/jobs/42.head.SC"
        words = ["42.head", USER, "users", "job", f"nodes=1,other=vm:{image}", "batch", "", script]
        argv = [sys.executable, "-I", "-m", "lrms_vm", "--config", self.root / "lrms_vm.toml"]
        argv += ["prologue", "--lrms", "torque", "--", self.root / "bin", *words]
        done = subprocess.run(argv, capture_output=True, timeout=60, stdin=subprocess.DEVNULL, umask=0o077)
        self.said = done.stderr.decode()
        return done.returncode

    @property
    def counted(self) -> str:
        path = next((self.root / "state" / "retries").glob("torque-42.*"), None)
        return path.read_text() if path else ""

    def told(self) -> list[str]:
        """Which commands were called since the last time; qstat is asked, not told."""
        log = self.root / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [line for line in lines if not line.startswith("qstat ")]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_what_the_site_lacks_is_tried_again_three_times_and_then_held(node: Node) -> None:
    for time in range(MAX_RETRIES):
        assert node.prologue() == 2, node.said
        assert (node.counted, node.told()) == (str(time + 1), [])
    assert node.prologue() == 2
    comment, hold = node.told()
    assert comment.startswith("qalter -W comment=lrms_vm: ") and comment.endswith(" 42.head")
    assert hold == "qhold -h s 42.head"
    assert node.counted == "", "released, it has its three tries again"


def test_a_job_that_cannot_be_held_is_aborted(node: Node) -> None:
    node.works("qhold", exit_code=1)
    assert [node.prologue() for _ in range(MAX_RETRIES + 1)] == [2, 2, 2, 1]


def test_what_cannot_be_counted_is_not_sent_back(node: Node) -> None:
    (node.root / "state").mkdir()
    (node.root / "state" / "retries").write_text("no directory")
    assert node.prologue() == 2
    assert node.told()[-1] == "qhold -h s 42.head"


def test_the_users_fault_ends_the_job_with_the_reason_as_its_comment(node: Node) -> None:
    assert node.prologue("no-such-image") == 1
    [comment] = node.told()
    assert comment.startswith("qalter -W comment=lrms_vm: image-unknown: ")
    assert "no-such-image" in node.said, "Torque hands it on to an interactive job"
    assert node.counted == ""


def test_the_sites_settings_hold_the_job_at_once(node: Node) -> None:
    (node.root / "trust.toml").write_text("version = 1\n[[builder")
    assert node.prologue() == 2
    assert [line.split()[0] for line in node.told()] == ["qalter", "qhold"]


def test_the_nodes_fault_takes_it_out_with_our_note_and_is_counted_too(node: Node) -> None:
    (node.root / "mom_priv" / "config").write_text("$job_starter /elsewhere\n")
    for _ in range(MAX_RETRIES):
        assert node.prologue() == 2
        [offline] = node.told()
        assert offline.startswith("pbsnodes -o -N lrms_vm: starter-missing: ")
    assert node.prologue() == 2
    assert [line.split()[0] for line in node.told()] == ["pbsnodes", "qalter", "qhold"]


def test_a_server_that_does_not_know_the_node_is_not_looped_with(node: Node) -> None:
    (node.root / "mom_priv" / "config").write_text("$job_starter /elsewhere\n")
    for name in ("pbsnodes", "qhold"):
        node.works(name, exit_code=1)
    assert node.prologue() == 1


def test_without_a_configuration_it_is_aborted(node: Node) -> None:
    (node.root / "lrms_vm.toml").unlink()
    assert node.prologue() == 1
