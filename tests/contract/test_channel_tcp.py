"""The channel at a guest's address: the guest's real program, and a stand-in for sshd that sends back what it reads."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrms_vm import channel
from lrms_vm.errors import GuestLost
from tests.guest_in_namespace import PROGRAM, REPOSITORY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes name spaces: needs root")

SETUP = """\
set -e
mount -t tmpfs none /run; mkdir /run/lrms_vm
echo "tcp $2 127.0.0.1" > /run/lrms_vm/channel
printf '#!/bin/sh\\nexec cat\\n' > /run/cat; chmod 755 /run/cat; mount --bind /run/cat /usr/sbin/sshd
exec "$1" channel
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def place() -> Iterator[str]:
    subprocess.run(["make", "-s", "-C", str(REPOSITORY / "guest")], check=True)
    port = free_port()
    words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    guest = subprocess.Popen([*words, "sh", "-c", SETUP, "sh", str(PROGRAM), str(port)])
    yield f"tcp:127.0.0.1:{port}"
    guest.kill()
    guest.wait()


def greeted(place: str) -> socket.socket:
    pipe = channel.connect(place)
    channel.greet(pipe, nonce=os.urandom(16).hex(), deadline=time.monotonic() + 20)
    pipe.settimeout(10)
    return pipe


def test_after_the_greeting_the_bytes_are_sshs_and_connections_do_not_mix(place: str) -> None:
    with greeted(place) as one, greeted(place) as two:
        for pipe, text in ((one, b"first\n"), (two, b"second\n"), (one, b"third\n")):
            pipe.sendall(text)
            assert pipe.recv(100) == text


def test_a_connection_that_ends_leaves_the_next_alone(place: str) -> None:
    for _ in range(5):
        greeted(place).close()
    with channel.connect(place) as rude:
        rude.sendall(os.urandom(5000) + b"\nLRMS-VM go 0123456789abcdef\n")
    with greeted(place) as pipe:
        pipe.sendall(b"x")
        assert pipe.recv(1) == b"x"


def test_only_the_host_is_answered(place: str) -> None:
    greeted(place).close()
    port = int(place.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), 5, ("127.0.0.2", 0)) as stranger:
        stranger.settimeout(5)
        with pytest.raises(GuestLost):
            channel.greet(stranger, nonce="0123456789abcdef", deadline=time.monotonic() + 5)


def test_an_address_that_does_not_answer_yet_is_waited_for_until_nobody_waits(tmp_path: Path) -> None:
    port = free_port()
    ours, theirs = socket.socketpair()
    threading.Timer(1.0, theirs.close).start()
    start = time.monotonic()
    with ours, pytest.raises(GuestLost) as caught:
        channel.connect(f"tcp:127.0.0.1:{port}", abandoned_fd=ours.fileno())
    assert caught.value.code == "channel-abandoned"
    assert 0.8 < time.monotonic() - start < 5


def test_the_configuration_names_the_address_and_notices_sooner_that_nobody_is_there() -> None:
    from lrms_vm.paths import UserPlaces

    with tempfile.TemporaryDirectory() as directory:
        user = UserPlaces(Path(directory))
        text = channel.ssh_config(user, "eve", place="tcp:10.208.0.5:1022")
        assert "lrms_vm.channel tcp:10.208.0.5:1022\n" in text
        assert "ServerAliveCountMax 45\n" in text
        assert "ServerAliveCountMax 120\n" in channel.ssh_config(user, "eve")
        assert "ServerAliveCountMax 7\n" in channel.ssh_config(user, "eve", silent_s=7)
        assert "ServerAliveCountMax 45\n" in channel.ssh_config(user, "eve", place="tcp:10.208.0.5:1022", silent_s=120)
