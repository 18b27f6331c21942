"""`guest connect`, ssh's way to the guest: what it says, what it believes, what it hands over, and when it ends.

The guest is its real other half at an address, and a socket held by the test, that plays a guest, where it misbehaves.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest_in_namespace import PROGRAM, REPOSITORY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes name spaces: needs root")

SETUP = """\
set -e
mount -t tmpfs none /run; mkdir /run/lrms_vm
echo "tcp $2 127.0.0.1" > /run/lrms_vm/channel
printf '#!/bin/sh\\nexec cat\\n' > /run/cat; chmod 755 /run/cat; mount --bind /run/cat /usr/sbin/sshd
exec "$1" channel
"""
LIMIT_S = 20
EXIT_USAGE, EXIT_LOST = 64, 70


@pytest.fixture(scope="module", autouse=True)
def program() -> None:
    subprocess.run(["make", "-s", "-C", str(REPOSITORY / "guest")], check=True)


class Connect:
    """The program as ssh runs it: its stdout is a socket, at the other end of which we are ssh."""

    def __init__(self, place: str) -> None:
        self.ssh, theirs = socket.socketpair()
        with theirs:
            argv = [str(PROGRAM), "connect", place]
            self.process = subprocess.Popen(argv, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.PIPE)

    def taken(self) -> socket.socket:
        """What it hands over. Raises `ConnectionError` with what it said when it does not."""
        self.ssh.settimeout(LIMIT_S)
        byte, fds, _, _ = socket.recv_fds(self.ssh, 10, 4)
        if not fds:
            raise ConnectionError(*self.ended())
        assert (byte, len(fds)) == (b"\0", 1) and self.ended() == (0, "")
        pipe = socket.socket(fileno=fds[0])
        assert pipe.getblocking()
        pipe.settimeout(10)
        return pipe

    def ended(self) -> tuple[int, str]:
        said = self.process.communicate(timeout=LIMIT_S)[1]
        return self.process.returncode, said.decode()

    def close(self) -> None:
        self.ssh.close()
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def connect(place: str) -> Iterator[Connect]:
    made = Connect(place)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """The hypervisor's socket."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "channel.sock"))
        made.listen()
        made.settimeout(LIMIT_S)
        yield made


@contextlib.contextmanager
def met(listener: socket.socket) -> Iterator[tuple[Connect, socket.socket, str]]:
    """A greeting under way: the program, the guest's end, and the nonce it heard."""
    with connect(listener.getsockname()) as program:
        guest, _ = listener.accept()
        with guest:
            guest.settimeout(LIMIT_S)
            found = re.fullmatch(rb"LRMS-VM hello ([0-9a-f]{32})\n", guest.recv(1000))
            assert found is not None
            yield program, guest, found[1].decode()


def taken_while(program: Connect, guest: socket.socket, text: bytes) -> None:
    """The guest says `text`, of which the program may not read all at once; afterwards bytes pass both ways."""
    speaker = threading.Thread(target=guest.sendall, args=(text,))
    speaker.start()
    with program.taken() as pipe:
        speaker.join()
        heard = guest.recv(1000)
        assert re.fullmatch(rb"(LRMS-VM hello [0-9a-f]{32}\n)*LRMS-VM go [0-9a-f]{32}\n", heard), heard
        pipe.sendall(b"SSH")
        guest.sendall(b"SSH-2.0")
        assert (guest.recv(10), pipe.recv(10)) == (b"SSH", b"SSH-2.0")


def test_go_follows_ready_and_then_the_pipe_is_sshs(listener: socket.socket) -> None:
    with met(listener) as (program, guest, nonce):
        taken_while(program, guest, f"LRMS-VM ready {nonce}\n".encode())


def test_each_greeting_has_a_nonce_of_its_own(listener: socket.socket) -> None:
    nonces = set()
    for _ in range(3):
        with met(listener) as (_, _, nonce):
            nonces.add(nonce)
    assert len(nonces) == 3


@pytest.mark.parametrize(
    "before",
    [
        b"\x00\xff garbage" * 9000 + b"LRMS-VM ready " + b"f" * 32 + b"\n\n",
        b"x" * (1 << 18) + b"\n",
        b"\n" * 5000,
        b"LRMS-VM go " + b"0" * 32 + b"\nLRMS-VM ready \nLRMS-VM ready\n",
    ],
    ids=["another nonce's", "endless line", "empty lines", "half lines"],
)
def test_left_overs_are_passed_over(listener: socket.socket, before: bytes) -> None:
    with met(listener) as (program, guest, nonce):
        taken_while(program, guest, before + f"LRMS-VM ready {nonce}\n".encode())


@pytest.mark.parametrize(
    "wrong",
    [b"LRMS-VM ready %b0\n", b"LRMS-VM ready %b\0\n", b" LRMS-VM ready %b\n", b"LRMS-VM ready %b\r\n", b"x" * 80 + b"LRMS-VM ready %b\n"],
    ids=["longer", "NUL behind", "blank before", "CR behind", "behind a long line"],
)  # fmt: skip
def test_only_the_very_line_is_an_answer(listener: socket.socket, wrong: bytes) -> None:
    with met(listener) as (program, guest, nonce):
        guest.sendall(wrong % nonce.encode())
        assert guest.recv(1000) == f"LRMS-VM hello {nonce}\n".encode()  # asks again, a second later
        taken_while(program, guest, f"LRMS-VM ready {nonce}\n".encode())


def test_an_answer_in_pieces_is_an_answer(listener: socket.socket) -> None:
    with met(listener) as (program, guest, nonce):
        for byte in f"LRMS-VM ready {nonce}".encode():
            guest.sendall(bytes([byte]))
            time.sleep(0.002)
        taken_while(program, guest, b"\n")


def test_a_guest_that_is_not_up_is_not_flooded(listener: socket.socket) -> None:
    with connect(listener.getsockname()):
        guest, _ = listener.accept()
        with guest:
            time.sleep(2.5)
            assert re.fullmatch(rb"LRMS-VM hello [0-9a-f]{32}\n", guest.recv(1000))  # one waits unread: no second


def test_a_closed_channel_is_a_lost_guest(listener: socket.socket) -> None:
    with met(listener) as (program, guest, _):
        guest.close()
        code, said = program.ended()
    assert code == EXIT_LOST and "the guest" in said


def test_nobody_at_the_socket_is_a_lost_guest(tmp_path: Path) -> None:
    with connect(str(tmp_path / "channel.sock")) as program:
        assert program.ended() == (
            EXIT_LOST,
            f"lrms-vm: {tmp_path}/channel.sock: cannot reach the guest: No such file or directory\n",
        )


def test_an_abandoned_greeting_ends(listener: socket.socket) -> None:
    with met(listener) as (program, _, _):
        program.ssh.close()
        assert program.ended() == (EXIT_LOST, "lrms-vm: nobody waits for the guest any more\n")


@pytest.mark.parametrize(
    "place", ["x" * 200, "tcp:", "tcp:10.0.0.1", "tcp:10.0.0.1:0", "tcp:10.0.0.1:65536", "tcp:localhost:22", "tcp::22"]
)
def test_a_place_that_is_none_is_refused(place: str) -> None:
    with connect(place) as program:
        code, said = program.ended()
    assert code == EXIT_USAGE and said.startswith("lrms-vm: ")


# -- at an address


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def address() -> Iterator[str]:
    """The guest's real half; its sshd is one that sends back what it reads."""
    port = free_port()
    words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    guest = subprocess.Popen([*words, "sh", "-c", SETUP, "sh", str(PROGRAM), str(port)])
    yield f"127.0.0.1:{port}"
    guest.kill()
    guest.wait()


def greeted(address: str) -> socket.socket:
    with connect(f"tcp:{address}") as program:
        return program.taken()


def test_after_the_greeting_the_bytes_are_sshs_and_connections_do_not_mix(address: str) -> None:
    with greeted(address) as one, greeted(address) as two:
        for pipe, text in ((one, b"first\n"), (two, b"second\n"), (one, b"third\n")):
            assert pipe.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            pipe.sendall(text)
            assert pipe.recv(100) == text


def test_a_connection_that_ends_leaves_the_next_alone(address: str) -> None:
    for _ in range(5):
        greeted(address).close()
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), 5) as rude:
        rude.sendall(os.urandom(5000) + b"\nLRMS-VM go 0123456789abcdef\n")
    with greeted(address) as pipe:
        pipe.sendall(b"x")
        assert pipe.recv(1) == b"x"


def test_only_the_host_is_answered(address: str) -> None:
    greeted(address).close()
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), 5, ("127.0.0.2", 0)) as stranger:
        stranger.settimeout(5)
        stranger.sendall(b"LRMS-VM hello 0123456789abcdef\n")
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(100) == b""


def test_an_address_that_does_not_answer_yet_is_waited_for_until_nobody_waits() -> None:
    with connect(f"tcp:127.0.0.1:{free_port()}") as program:
        time.sleep(1.0)
        assert program.process.poll() is None
        program.ssh.close()
        assert program.ended() == (EXIT_LOST, "lrms-vm: nobody waits for the guest any more\n")


def test_an_address_that_swallows_what_is_sent_is_given_up_when_nobody_waits() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as waiting:
        for _ in range(3):  # the queue is full: the next one's first packet is dropped
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        with connect(f"tcp:127.0.0.1:{full.getsockname()[1]}") as program:
            time.sleep(0.5)
            program.ssh.close()
            assert program.ended() == (EXIT_LOST, "lrms-vm: nobody waits for the guest any more\n")
