"""Killed before and after everything by which prologue, attach, exec, epilogue and reap change the world.

The steps are those of the code: faults.py finds each change by the interpreter's own word, and what is named as a step
is collected from the source. Beside the job that is killed stands another, which nothing may touch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from lrms_vm import lifecycle, record, teardown
from lrms_vm.errors import RequestError
from lrms_vm.teardown import attach_processes
from tests import faults, node_in_directory, source_steps
from tests.node_in_directory import VARIANTS, Site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users: needs root")


@dataclass(frozen=True)
class Neighbour:
    """Another job's guest on the node: what it has, and that none of it changed."""

    site: Site
    key: str
    files: dict[str, tuple[int, int, int]]

    @classmethod
    def start(cls, site: Site) -> Neighbour:
        """Of an id that begins like the other's."""
        job = site.job("70")
        site.prologue(job=job, image="other")
        attaching, deadline = site.config.places.job(job.key).user.attaching, time.monotonic() + 20
        while not attaching.exists():  # the last that attach makes before it waits for the guest
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return cls(site, job.key, _files(site, job.key))

    def require_untouched(self, when: str) -> None:
        assert _files(self.site, self.key) == self.files, when
        assert self.site.hypervisor.is_active(f"lrms_vm-{self.key}", deadline=0), when
        assert attach_processes(self.key), when


@pytest.fixture(scope="module", params=VARIANTS)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with node_in_directory.site(*VARIANTS[request.param]) as made:
        yield made


@pytest.fixture(scope="module")
def neighbour(site: Site) -> Neighbour:
    return Neighbour.start(site)


def test_a_prologue_killed_anywhere_leaves_nothing(site: Site, neighbour: Neighbour) -> None:
    require_clean(site, neighbour, site.prologue, before=site.forget_image, at_least=60)


def test_an_epilogue_killed_anywhere_is_finished(site: Site, neighbour: Neighbour) -> None:
    require_clean(site, neighbour, site.teardown, before=site.prologue, at_least=15)


def test_a_refusal_killed_anywhere_leaves_nothing(site: Site, neighbour: Neighbour) -> None:
    def refuse() -> None:
        error = RequestError("no", code="image-unknown")
        with teardown.locked(site.config.places, site.allocation.key, deadline=time.monotonic() + 5):
            lifecycle.refuse(error, site.allocation, places=site.config.places)

    require_clean(site, neighbour, refuse, at_least=5)


def require_clean(
    site: Site,
    neighbour: Neighbour,
    action: Callable[[], object],
    *,
    before: Callable[[], object] = lambda: None,
    at_least: int,
) -> None:
    """Kill `action` before each change that it makes, then reap as the next prologue of anybody does, and look.

    An epilogue does the same and need not find the job first.
    """
    before()
    count = 0
    for outcome in faults.everywhere(action):
        when = f"killed before change {count}, {outcome.where}"
        assert outcome.how == faults.KILLED, when
        assert site.reap_before_prologue(active=frozenset([neighbour.key])) == [], when
        assert site.left(site.allocation.key) == [], when
        neighbour.require_untouched(when)
        before()
        count += 1
    assert count >= at_least, "the audit hook sees less than it should"
    assert site.teardown() == []
    assert site.left(site.allocation.key) == []


# -- the halves that run as the job's user

USERS_HALF = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from tests import faults
number, words = int(sys.argv[2]), sys.argv[3:]
def action():
    if words[0] == "exec":
        from lrms_vm.cli import main
        return main(words)
    from lrms_vm import attach, channel
    channel.SSH = "/bin/true"
    sys.argv[1:] = words
    return attach.main()
print(json.dumps(faults.at(number, action).__dict__))
"""


@pytest.mark.parametrize("half", ["attach", "exec"])
def test_the_user_s_half_killed_anywhere_leaves_nothing_after_the_epilogue(
    site: Site, neighbour: Neighbour, half: str
) -> None:
    """Attach with a program in ssh's place that is content with everything; exec up to where a guest would have to
    answer."""
    user = site.config.places.job(site.allocation.key).user
    words = ["--verdict", str(site.config.places.verdict(site.allocation.key))]
    assert site.teardown() == []
    number, where = 0, "?"
    while where:
        site.prologue()
        for pid in attach_processes(site.allocation.key):
            node_in_directory.end(pid)
        user.attaching.unlink(missing_ok=True)
        if half == "exec":
            user.ready.write_text("{}")
            os.chown(user.ready, site.allocation.uid, site.allocation.gid)
        done = subprocess.run(
            [sys.executable, "-c", USERS_HALF, str(source_steps.SOURCE.parent), str(number), half, *words]
            + (["--", "/bin/true"] if half == "exec" else []),
            user=site.allocation.uid,
            group=site.allocation.gid,
            extra_groups=[],
            env={"LRMS_VM_KEY": site.allocation.key, "PATH": "/usr/bin:/bin"},
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # ssh keeps it
            timeout=60,
            check=True,
        )
        where = json.loads(done.stdout.splitlines()[-1])["where"]
        when = f"{half} killed before change {number}, {where}"
        assert site.teardown() == [], when
        assert site.left(site.allocation.key) == [], when
        neighbour.require_untouched(when)
        number += 1
    assert number >= {"attach": 5, "exec": 2}[half], "the audit hook sees less than it should"


# -- the names


def test_every_step_that_the_code_names_is_killed_at() -> None:
    """By name as well: the record is what teardown and people read."""
    missing = sorted(source_steps.noted() - set(record.STEPS))
    assert not missing, f"noted in the code, but not in record.STEPS: {missing}; add them there, in order"
    unused = sorted(set(record.STEPS) - source_steps.noted() - {"begin"})
    assert not unused, f"in record.STEPS, but noted nowhere: {unused}"
    taken: set[str] = set()
    for variant in VARIANTS.values():
        with node_in_directory.site(*variant) as made:
            made.prologue(taken.add)
            assert made.teardown() == []
            assert made.left() == []
    never = sorted(set(record.STEPS) - taken)
    assert not never, (
        f"no prologue of the crash matrix takes the steps {never}: add to VARIANTS (tests/node_in_directory.py) "
        "a job that does, and there a stand-in of what they change, with what of it may be left in Site.left()"
    )


def _files(site: Site, key: str) -> dict[str, tuple[int, int, int]]:
    """Inode, owner and size of everything that carries the key; not what attach writes while it waits."""
    found = {}
    places = site.config.places
    for root in (places.run_dir, places.state_dir):
        for path in root.rglob("*"):
            if key in str(path) and path.name not in ("attach.log",):
                status = path.lstat()
                found[str(path)] = (status.st_ino, status.st_uid, 0 if path.is_dir() else status.st_size)
    return found
