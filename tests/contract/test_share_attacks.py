"""A guest that speaks to a share's server itself: the real sftp-server in its real sandbox, and what it gives away.

Root in a guest can take sshfs's place on the connection. So whatever SFTP can say is said here (draft-ietf-secsh-
filexfer-02, and OpenSSH's PROTOCOL for the extensions), as the host's end of a share runs: the job's user, bubblewrap.
"""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lrms_vm import attach, channel

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="acts as another user: needs root")

UID, GID, NEIGHBOUR = 64711, 64712, 64713
SECRET = b"the neighbour's"
OPEN, READ, SETSTAT, OPENDIR, READDIR, REALPATH, SYMLINK, EXTENDED = 3, 5, 9, 11, 12, 16, 20, 200
STATUS, HANDLE, DATA, NAME = 101, 102, 103, 104
READING, WRITING, MAKING = 1, 2, 8
OK, EOF = 0, 1
UIDS, MODE = 2, 4


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack(">I", len(raw)) + raw


@dataclass
class Guest:
    """The guest's end: requests as bytes, answers as (type, body)."""

    server: subprocess.Popen[bytes]
    number: int = 0

    def ask(self, kind: int, body: bytes) -> tuple[int, bytes]:
        self.number += 1
        self._send(bytes([kind]) + struct.pack(">I", self.number) + body)
        answer = self._packet()
        assert struct.unpack(">I", answer[1:5])[0] == self.number
        return answer[0], answer[5:]

    def code(self, kind: int, body: bytes) -> int | None:
        """The status that comes back; None: something else did."""
        got, answer = self.ask(kind, body)
        return struct.unpack(">I", answer[:4])[0] if got == STATUS else None

    def read(self, path: str) -> bytes | None:
        """A file's first bytes; None where it cannot be opened."""
        kind, answer = self.ask(OPEN, text(path) + struct.pack(">II", READING, 0))
        if kind != HANDLE:
            return None
        kind, answer = self.ask(READ, answer + struct.pack(">QI", 0, 4096))
        return answer[4:] if kind == DATA else b""

    def _send(self, packet: bytes) -> None:
        assert self.server.stdin is not None
        self.server.stdin.write(struct.pack(">I", len(packet)) + packet)
        self.server.stdin.flush()

    def _packet(self) -> bytes:
        assert self.server.stdout is not None
        (size,) = struct.unpack(">I", self.server.stdout.read(4))
        return self.server.stdout.read(size)

    def hello(self) -> None:
        self._send(b"\1" + struct.pack(">I", 3))
        assert self._packet()[0] == 2


@dataclass(frozen=True)
class Host:
    share: Path  # the job's
    other: Path  # another job's directory, which everybody may enter and read


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="lrms-") as directory:
        root = Path(directory)
        root.chmod(0o755)
        share, other = root / "share", root / "other"
        for path, uid in ((share, UID), (other, NEIGHBOUR)):
            path.mkdir(mode=0o755)
            (path / "file").write_bytes(SECRET if path is other else b"mine")
            os.chown(path / "file", uid, GID)
            os.chown(path, uid, GID)
        (share / "neighbours").write_bytes(SECRET)
        (share / "neighbours").chmod(0o600)
        os.chown(share / "neighbours", NEIGHBOUR, GID)
        yield Host(share, other)


@pytest.fixture
def guest(host: Host) -> Iterator[Guest]:
    server = next(path for path in attach.SFTP_SERVERS if os.access(path, os.X_OK))
    passwd = host.share.with_name("passwd")
    passwd.write_text(attach.passwd_line("nobody-here-knows", UID, GID))  # as of a user who is in LDAP only
    argv = attach.sftp_argv(str(host.share), server=server, passwd=str(passwd), exists=attach._top_directories())
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        user=UID,
        group=GID,
        extra_groups=[],
        env=channel.environment("local-1.n"),
    )
    made = Guest(process)
    made.hello()
    yield made
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    process.wait(timeout=10)
    process.stdout.close()


def test_the_share_is_there(guest: Guest, host: Host) -> None:
    assert guest.read(f"{host.share}/file") == b"mine"


def test_nothing_of_the_host_is_there_to_be_opened(guest: Guest, host: Host) -> None:
    outside = [
        *("/etc/shadow", "/etc/hostname", "/root/.bashrc", "/proc/1/environ", "/proc/self/root/etc/shadow"),
        *("/sys/kernel/notes", "/dev/sda", "/dev/vda", "/dev/mem", "/run/libvirt/libvirt-sock", "/var/lib/lrms_vm"),
        f"{host.other}/file",
        f"{host.share}/../other/file",
        f"{host.share}/../../../../../../etc/shadow",
        f"{host.share}/./../other/./file",
    ]
    assert [path for path in outside if guest.read(path)] == []


def test_every_directory_that_can_be_listed_is_the_share_the_systems_programs_or_empty(
    guest: Guest, host: Host
) -> None:
    kind, handle = guest.ask(OPENDIR, text("/"))
    names = set()
    while kind == HANDLE:
        got, answer = guest.ask(READDIR, handle)
        if got != NAME:
            break
        (count,) = struct.unpack(">I", answer[:4])
        answer = answer[4:]
        for _ in range(count):
            fields = []
            for _ in range(2):
                (size,) = struct.unpack(">I", answer[:4])
                fields.append(answer[4 : 4 + size].decode())
                answer = answer[4 + size :]
            (flags,) = struct.unpack(">I", answer[:4])
            answer = answer[4 + 8 * bool(flags & 1) + 8 * bool(flags & 2) + 4 * bool(flags & 4) + 8 * bool(flags & 8) :]
            names.add(fields[0])
    top = host.share.parts[1]
    assert names - {".", "..", "usr", "lib", "lib64", "lib32", "bin", "etc", "dev", top} == set(), names


def test_a_link_in_the_share_leads_nowhere_else(guest: Guest, host: Host) -> None:
    for number, target in enumerate((f"{host.other}/file", "/etc/shadow", "../other/file", "/proc/self/environ")):
        link = f"{host.share}/link{number}"
        assert guest.code(SYMLINK, text(target) + text(link)) == OK  # OpenSSH has them in this order
        found = guest.read(link)
        assert found is None or SECRET not in found, target


@pytest.mark.parametrize("name", ["hardlink@openssh.com", "posix-rename@openssh.com"])
def test_no_other_name_can_be_had_for_what_is_outside(guest: Guest, host: Host, name: str) -> None:
    for source in (f"{host.other}/file", f"{host.share}/../other/file", "/etc/passwd"):
        taken = f"{host.share}/taken"
        assert guest.code(EXTENDED, text(name) + text(source) + text(taken)) != OK, source
        assert not Path(taken).exists()
    assert (host.other / "file").read_bytes() == SECRET


def test_nobody_elses_file_in_the_share_is_read_or_written(guest: Guest, host: Host) -> None:
    assert guest.read(f"{host.share}/neighbours") is None
    assert guest.code(OPEN, text(f"{host.share}/neighbours") + struct.pack(">II", WRITING, 0)) not in (None, OK)


def test_files_cannot_be_given_to_somebody_else_or_made_theirs(guest: Guest, host: Host) -> None:
    made = f"{host.share}/made"
    kind, _ = guest.ask(OPEN, text(made) + struct.pack(">II", READING | WRITING | MAKING, 0))
    assert kind == HANDLE
    for uid, gid in ((0, 0), (NEIGHBOUR, GID), (UID, 0)):
        assert guest.code(SETSTAT, text(made) + struct.pack(">III", UIDS, uid, gid)) not in (None, OK)
    assert guest.code(SETSTAT, text(made) + struct.pack(">II", MODE, 0o6777)) == OK
    status = os.stat(made)
    assert (status.st_uid, status.st_gid) == (UID, GID)  # a setuid program of one's own is no more than oneself
    assert guest.code(SETSTAT, text("/usr/bin/env") + struct.pack(">II", MODE, 0o777)) not in (None, OK)


def test_garbage_gets_nothing_and_the_server_ends_with_its_connection(host: Host, guest: Guest) -> None:
    guest._send(b"\xc9" + struct.pack(">I", 7) + b"\xff" * 64)
    assert guest.server.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has seen enough
        guest.server.stdin.write(struct.pack(">I", 0xFFFFFFFF) + os.urandom(4096))
        guest.server.stdin.close()
    guest.server.wait(timeout=10)
    assert (host.share / "file").read_bytes() == b"mine"
