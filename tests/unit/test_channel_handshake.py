from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrms_vm.channel import MAX_NOISE_BYTES, environment, greet, guest_command, session_argv, ssh_config
from lrms_vm.errors import GuestLost, NodeError
from lrms_vm.paths import UserPlaces

NONCE = "0123456789abcdef" * 2
USER = UserPlaces(Path("/run/lrms_vm/jobs/slurm-7.n1/user"))


@pytest.fixture
def pipe() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(5)
        yield ours, theirs


def answer(theirs: socket.socket, text: bytes, *, after_s: float = 0.0) -> threading.Thread:
    def late() -> None:
        time.sleep(after_s)
        theirs.sendall(text)

    thread = threading.Thread(target=late)
    thread.start()
    return thread


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


def test_go_follows_ready_and_nothing_else(pipe: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pipe
    thread = answer(theirs, f"LRMS-VM ready {NONCE}\n".encode(), after_s=0.05)
    greet(ours, nonce=NONCE, deadline=soon())
    thread.join()
    assert theirs.recv(1000) == f"LRMS-VM hello {NONCE}\nLRMS-VM go {NONCE}\n".encode()


def test_left_overs_and_other_nonces_are_passed_over(pipe: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pipe
    other = "f" * 32
    thread = answer(theirs, b"\x00\xff garbage" * 9000 + f"LRMS-VM ready {other}\n\nLRMS-VM ready {NONCE}\n".encode())
    greet(ours, nonce=NONCE, deadline=soon())
    thread.join()


def test_an_answer_in_pieces_is_an_answer(pipe: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pipe

    def slowly() -> None:
        for byte in f"LRMS-VM ready {NONCE}\n".encode():
            theirs.sendall(bytes([byte]))
            time.sleep(0.002)

    thread = threading.Thread(target=slowly)
    thread.start()
    greet(ours, nonce=NONCE, deadline=soon())
    thread.join()


def test_a_guest_that_is_not_up_is_not_flooded(pipe: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pipe
    with pytest.raises(GuestLost) as caught:
        greet(ours, nonce=NONCE, deadline=soon(1.5))
    assert caught.value.code == "guest-silent"
    assert theirs.recv(1000) == f"LRMS-VM hello {NONCE}\n".encode()  # one waits unread: no second


def test_a_closed_channel_is_a_lost_guest(pipe: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pipe
    theirs.close()
    with pytest.raises(GuestLost) as caught:
        greet(ours, nonce=NONCE, deadline=soon())
    assert caught.value.code == "guest-gone"


def test_an_abandoned_greeting_ends(pipe: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pipe
    taker, asker = socket.socketpair()
    with taker:
        asker.close()
        with pytest.raises(GuestLost) as caught:
            greet(ours, nonce=NONCE, deadline=soon(), abandoned_fd=taker.fileno())
    assert caught.value.code == "channel-abandoned"


def test_endless_noise_is_bounded(pipe: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pipe
    thread = answer(theirs, b"x" * (4 * MAX_NOISE_BYTES) + f"\nLRMS-VM ready {NONCE}\n".encode())
    greet(ours, nonce=NONCE, deadline=soon())
    thread.join()


def test_the_ssh_configuration_pins_everything() -> None:
    text = ssh_config(USER, "eve")
    assert "    StrictHostKeyChecking yes\n" in text
    assert '    UserKnownHostsFile "/run/lrms_vm/jobs/slurm-7.n1/user/known_hosts"\n' in text
    assert (
        f"    ProxyCommand {sys.executable} -I -m lrms_vm.channel /run/lrms_vm/jobs/slurm-7.n1/channel.sock\n" in text
    )


@pytest.mark.parametrize("name", ['e"ve', "eve\nProxyCommand evil", "${HOME}"])
def test_a_name_that_would_change_the_configuration_is_refused(name: str) -> None:
    with pytest.raises(NodeError):
        ssh_config(USER, name)


def test_a_percent_sign_is_itself() -> None:
    assert '    User "100%%"\n' in ssh_config(USER, "100%")


def test_a_session_never_connects_by_itself() -> None:
    assert "ProxyCommand=/bin/false" in session_argv(USER, "true")


@pytest.mark.parametrize("word", ["", "a b", "$(id)", "é", "a\n", "'x'"])
def test_only_plain_words_reach_the_login_shell(word: str) -> None:
    with pytest.raises(ValueError, match="plain word"):
        guest_command("task", word)


def test_ssh_s_own_processes_are_marked_with_the_job() -> None:
    assert environment("slurm-7.n1")["LRMS_VM_KEY"] == "slurm-7.n1"
    assert "LRMS_VM_KEY" not in environment(None)
