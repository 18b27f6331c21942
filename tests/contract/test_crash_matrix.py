"""The prologue is killed at each step it notes, and teardown at each step it takes; what runs next must leave nothing.

No guest boots here: see node_in_directory.py. What lies between two steps is test_crash_everywhere.py's.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lrms_vm import record, teardown
from tests import node_in_directory, source_steps
from tests.node_in_directory import BrokenHypervisor, Site

# As teardown.py has them, in its order: a new one is killed at without being named here.
TEARDOWN_STEPS = tuple(source_steps.undone())


@pytest.fixture
def site() -> Iterator[Site]:
    with node_in_directory.site(*node_in_directory.VARIANTS["nat"]) as made:  # takes every step
        yield made


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


def test_after_a_reboot_nothing_is_left_whatever_step_it_came_at(site: Site) -> None:
    for action, steps in ((site.prologue, record.STEPS), (site.teardown, TEARDOWN_STEPS)):
        for step in steps:
            if action == site.teardown:
                killed_at("done", site.prologue)  # by a process that is gone then, as a hook is
            killed_at(step, action)
            site.reboot()
            assert site.reap() == [], step
            assert site.left() == [], step


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
    (site.config.places.verdicts / f"slurm-8.{site.node}.json").write_text("{}")
    (site.config.places.verdicts / "slurm-9.n2.json").write_text("{}")
    (site.config.places.verdicts / f"slurm-10.rack.{site.node}.json").write_text("{}")
    found = teardown.keys_on(site.node, places=places, hypervisor=site.hypervisor, deadline=time.monotonic() + 5)
    assert found == {f"slurm-7.{site.node}", f"slurm-8.{site.node}"}
    site.teardown()
