"""A test run that is killed leaves nothing for long: the next one clears it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import node_in_directory
from tests.guest_in_namespace import REPOSITORY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes bridges: needs root")
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
KILLED_IN_THE_MIDDLE = """
import os, signal
from tests import node_in_directory
with node_in_directory.site(*node_in_directory.VARIANTS["nat"]) as site:
    site.prologue()
    print(site.root, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_on_the_host_is_gone_before_the_next_begins() -> None:
    node_in_directory.clear_dead_runs()
    before = FORWARDING.read_text()
    argv = [sys.executable, "-c", KILLED_IN_THE_MIDDLE]
    killed = subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    root = Path(killed.stdout.readline().strip())  # its end does not come while a guest's process has it, too
    assert killed.wait(60) == -signal.SIGKILL
    bridge = Path(f"/sys/class/net/lrmsvm{killed.pid % 10**6}")
    assert root.is_dir() and bridge.exists()
    with node_in_directory.site() as mine:
        assert not root.exists() and not bridge.exists()
        assert mine.root.exists()
    assert FORWARDING.read_text() == before
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    assert bridge.name not in tables


def test_a_run_that_is_under_way_is_left_alone() -> None:
    with node_in_directory.site() as first:
        node_in_directory.clear_dead_runs()
        assert (first.root / "owner").exists()
