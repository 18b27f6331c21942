"""No room: at each change of a prologue, refusal and epilogue that takes some, and on real file systems of any size.

The node is to blame, nobody else; what was made is undone; and an epilogue does its work without any room at all.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lrms_vm import lifecycle, teardown
from lrms_vm.errors import LrmsVmError, NodeError, RequestError
from tests import faults, node_in_directory
from tests.node_in_directory import VARIANTS, Site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems: needs root")


@pytest.fixture(params=VARIANTS)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with node_in_directory.site(*VARIANTS[request.param]) as made:
        yield made


def blamed(action: Callable[[], object]) -> str:
    """Whom the error of `action` blames; "" without one."""
    try:
        action()
    except LrmsVmError as error:
        assert error.code != "internal", error
        return error.blame
    return ""


def test_a_prologue_without_room_anywhere_blames_the_node_and_leaves_nothing(site: Site) -> None:
    borne, count = [], 0
    site.forget_image()
    for outcome in faults.everywhere(lambda: blamed(site.prologue), fault=faults.FULL):
        when = f"no room at {outcome.where}"
        assert outcome.said in ("'node'", "''"), f"{when}: {outcome.said}"
        assert site.teardown() == [], when
        assert site.left() == [], when
        site.forget_image()
        count += 1
        if outcome.said == "''" and not outcome.where.startswith("os.mkdir"):  # which may be there already
            borne.append(outcome.where.replace(str(site.root), ""))
    assert count >= 20
    # of a full cache something goes, and it is done again; not every limit of a control group is everywhere
    assert [where for where in borne if not any(part in where for part in ("/ingest/", "/store/", "cgroup"))] == []


def test_a_refusal_without_room_blames_the_node(site: Site) -> None:
    def refuse() -> None:
        with teardown.locked(site.config.places, site.allocation.key, deadline=time.monotonic() + 5):
            lifecycle.refuse(RequestError("no", code="x"), site.allocation, places=site.config.places)

    for outcome in faults.everywhere(lambda: blamed(refuse), fault=faults.FULL):
        made_before = outcome.where.startswith("os.mkdir") and outcome.said == "''"
        assert outcome.said == "'node'" or made_before, f"no room at {outcome.where}: {outcome.said}"
        assert site.teardown() == []
        assert site.left() == []


def test_an_epilogue_without_room_leaves_nothing_but_what_it_says(site: Site) -> None:
    """And what it cannot even begin (no lock) it says with the node's blame; the next one does it."""

    def epilogue() -> list[str]:
        try:
            return [str(left) for left in site.teardown()]
        except NodeError as error:
            return [str(error)]

    site.prologue()
    for outcome in faults.everywhere(epilogue, fault=faults.FULL):
        when = f"no room at {outcome.where}: {outcome.said}"
        assert not outcome.said.startswith("RAISED"), when
        if outcome.said == "[]":
            assert site.left() == [], when
        else:
            assert "no room" in outcome.said, when
        assert site.teardown() == [], when
        site.prologue()
    assert site.teardown() == []


@pytest.mark.parametrize("which", ["run_dir", "state_dir"])
def test_on_a_real_file_system_of_any_size(which: str) -> None:
    """Page by page, until a prologue fits: a write in the middle of anything fails."""
    with node_in_directory.site() as site:
        directory = Path(getattr(site.config, which))
        pages, fits = 1, False
        while not fits:
            with small(directory, pages):
                blame = blamed(site.prologue)
                assert blame in ("node", ""), f"{pages} pages: {blame}"
                fits = blame == ""
                assert site.teardown() == [], f"{pages} pages"
                assert site.left() == [], f"{pages} pages"
            pages += 1 if which == "run_dir" else 40
        assert pages > 5


@contextlib.contextmanager
def small(directory: Path, pages: int) -> Iterator[None]:
    directory.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={pages * 4096},mode=755", "none", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)
