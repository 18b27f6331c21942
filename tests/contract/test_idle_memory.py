"""What our own processes take of the host's memory while a guest is up and its payload does nothing."""

from __future__ import annotations

import compileall
import os
import time

import pytest

from bench import load
from tests.guest_in_namespace import GuestInNamespace

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes name spaces: needs root")
GOAL_KIB = 15 << 10


def test_an_idle_guest_with_two_shares_takes_less_than_15_mib_and_a_payload_that_sleeps_no_more() -> None:
    with GuestInNamespace() as guest:
        guest.wait_until_up()
        compileall.compile_dir(guest.root / "lrms_vm", quiet=2)  # as pip does
        payload = guest.start("sh", "-c", "echo up; sleep 5")
        assert payload.stdout is not None
        assert payload.stdout.readline() == b"up\n"
        time.sleep(1)
        of_payload = [(name, kib) for name, kib in _of(guest) if name.startswith("python")]
        payload.communicate()
        of_guest = _of(guest)
    assert [name for name, _ in of_guest].count("ssh") == 3 and "bwrap" in dict(of_guest), of_guest
    assert sum(kib for _, kib in of_guest) < GOAL_KIB, of_guest
    assert len(of_payload) == 1, of_payload
    assert sum(kib for _, kib in of_payload) < GOAL_KIB, of_payload


def _of(guest: GuestInNamespace) -> list[tuple[str, int]]:
    """By the directory: the key is every test's. What a guest runs is no process of a real host."""
    theirs = ("unshare", "sshd", "lrms-vm-guest", "sshfs")
    return [one for one in load.of_job("no-such-key", str(guest.root)) if not one[0].startswith(theirs)]
