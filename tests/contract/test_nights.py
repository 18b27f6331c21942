"""The world misbehaves, as far as that needs no Slurm and no guest: what does is integration/slurm/test_nights.py's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lrms_vm import channel, record, teardown
from lrms_vm.errors import NodeError
from tests import node_in_directory
from tests.node_in_directory import VARIANTS, Site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users: needs root")


@pytest.fixture
def site() -> Iterator[Site]:
    with node_in_directory.site(*VARIANTS["nat"]) as made:
        yield made


def together(works: list[Callable[[], object]]) -> list[str]:
    """Each in a process of its own, all at once; what each said: "" for a good end, else the error."""
    children = []
    for work in works:
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            said = ""
            try:
                work()
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            os.write(writes, said.encode())
            os._exit(0)
        os.close(writes)
        children.append((child, reads))
    answers = []
    for child, reads in children:
        with open(reads, "rb") as file:
            answers.append(file.read().decode())
        os.waitpid(child, 0)
    return answers


def test_32_prologues_and_then_32_epilogues_at_once_on_one_node(site: Site) -> None:
    jobs = [site.job(str(number)) for number in range(100, 132)]
    assert together([lambda job=job: site.prologue(job=job) for job in jobs]) == [""] * 32
    places = site.config.places
    assert len(site.hypervisor.names(deadline=0)) == 32
    addresses = [record.read(places.job(job.key).record).steps["network"]["address"] for job in jobs]
    assert len(set(addresses)) == 32

    def epilogue(key: str) -> None:
        left = site.teardown(key=key)
        assert left == [], left

    assert together([lambda job=job: epilogue(job.key) for job in jobs]) == [""] * 32
    assert site.left() == []


def test_two_prologues_for_one_job_make_one_guest(site: Site) -> None:
    """As a batch system that lost count would: one of them fails, by the node, and the job's guest is whole."""
    said = together([site.prologue, site.prologue])
    assert sorted(bool(text) for text in said) == [False, True], said
    assert any(text.startswith("NodeError: ") for text in said)
    assert record.read(site.config.places.job(site.allocation.key).record).complete
    assert len(site.hypervisor.names(deadline=0)) == 1
    assert site.teardown() == []
    assert site.left() == []


def test_an_epilogue_waits_for_a_prologue_that_is_at_it(site: Site) -> None:
    """slurmd was killed; its prologue goes on; the next slurmd ends the job."""

    def epilogue() -> None:
        until = time.monotonic() + 10
        while not site.config.places.job(site.allocation.key).run.exists():
            assert time.monotonic() < until
            time.sleep(0.001)
        assert site.teardown() == []

    assert together([site.prologue, epilogue]) == ["", ""]
    assert site.left() == []


def test_a_job_id_that_comes_again_finds_nothing_of_its_first_time(site: Site) -> None:
    for _ in range(3):
        site.prologue()
        assert site.teardown() == []
        assert site.left() == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text[: len(text) // 3],
        lambda text: text[:-1],
        lambda text: os.urandom(len(text)),
        lambda text: b"\0" * len(text),
        lambda text: text[len(text) // 2 :],
        lambda text: b"[" * 100_000,
    ],
)
def test_a_damaged_record_loses_no_guest(site: Site, damage: Callable[[bytes], bytes]) -> None:
    site.prologue()
    path = site.config.places.job(site.allocation.key).record
    path.write_bytes(damage(path.read_bytes()))
    assert site.reap_before_prologue() == []
    assert site.left() == []


def test_a_record_that_is_no_file_is_said_and_goes_with_the_next(site: Site) -> None:
    site.prologue()
    path = site.config.places.job(site.allocation.key).record
    path.unlink()
    path.mkdir()
    [left] = site.teardown()
    assert left.what == "record"
    path.rmdir()
    assert site.teardown() == []
    assert site.left() == []


def test_a_record_of_a_newer_version_is_left_whole(site: Site) -> None:
    site.prologue()
    path = site.config.places.job(site.allocation.key).record
    before = path.read_bytes()
    path.write_bytes(before.replace(b'"version": 1', b'"version": 999'))
    [left] = site.teardown()
    assert left.what == "record" and "newer" in left.why
    assert site.hypervisor.names(deadline=0)
    path.write_bytes(before)
    assert site.teardown() == []


def test_only_a_job_whose_disks_a_reboot_left_alone_is_lost(site: Site) -> None:
    key, places = site.allocation.key, site.config.places

    def lost() -> bool:
        return teardown.lost_in_reboot(key, places=places, hypervisor=site.hypervisor, deadline=time.monotonic() + 5)

    assert not lost()
    site.prologue()
    assert not lost()
    for path in places.run_dir.iterdir():  # by an administrator: the guest lives
        if path.name != "networks":  # by which this host's forwarding is put back in the end
            shutil.rmtree(path)
    assert not lost()
    site.reboot()
    assert lost()
    assert site.teardown() == []
    assert not lost()


class LateHypervisor(node_in_directory.DirectoryHypervisor):
    """A daemon that was stopped, and takes a create that was asked for before after the destroy that came later."""

    late = ""

    def create(self, xml: str, *, deadline: float, confine: Callable[[int], None] | None = None) -> None:
        self.late = xml
        raise NodeError("libvirt: cannot start the domain: no answer in time", code="hypervisor-timeout")

    def destroy(self, name: str, *, deadline: float) -> None:
        super().destroy(name, deadline=deadline)
        if self.late:
            late, self.late = self.late, ""
            super().create(late, deadline=deadline)


def test_a_create_that_overtakes_the_teardown_leaves_no_guest(site: Site) -> None:
    site.hypervisor = LateHypervisor(site.root / "late")
    with pytest.raises(NodeError):
        site.prologue()
    assert site.teardown() == []
    assert site.hypervisor.names(deadline=0) == []
    assert site.left() == []


class ShortLivedHypervisor(node_in_directory.DirectoryHypervisor):
    """Its process ends as soon as it runs, and takes what it made along."""

    def create(self, xml: str, *, deadline: float, confine: Callable[[int], None] | None = None) -> None:
        super().create(xml, deadline=deadline, confine=confine)
        (name,) = self.names(deadline=deadline)
        self.destroy(name, deadline=deadline)
        Path(re.findall(r"path=[\"']([^\"']*channel\.sock)", xml)[0]).unlink()


def test_a_guest_that_ends_at_its_start_is_the_node_s_fault_and_no_bug_of_ours(site: Site) -> None:
    site.hypervisor = ShortLivedHypervisor(site.root / "short-lived")
    with pytest.raises(NodeError, match=r"channel\.sock: not there.*the guest ended at its start") as caught:
        site.prologue()
    assert caught.value.code == "domain-gone" and caught.value.hint
    assert site.teardown() == []
    assert site.left() == []


def test_a_process_in_the_middle_of_its_exec_is_found() -> None:
    """For a moment the kernel shows neither its words nor its variables; a guest's ssh would stay behind."""
    key, again = f"exec-1.n{os.getpid()}", 'exec "$0" -c "$1" "$0" "$1"'
    process = subprocess.Popen(["/bin/sh", "-c", again, "/bin/sh", again], env={channel.KEY_VARIABLE: key})
    try:
        looks = [teardown.attach_processes(key) for _ in range(100)]
    finally:
        process.kill()
        process.wait()
    assert looks.count({process.pid}) == 100
    assert teardown.attach_processes(key) == set()


def test_the_lock_s_holder_is_waited_for_and_not_for_ever(site: Site) -> None:
    places, key = site.config.places, site.allocation.key
    with teardown.locked(places, key, deadline=time.monotonic() + 1):
        start = time.monotonic()
        with pytest.raises(NodeError, match="held by another"), teardown.locked(places, key, deadline=start + 0.3):
            pass
        assert 0.2 < time.monotonic() - start < 3
