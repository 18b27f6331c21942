"""The guest's real program with real sshd, in name spaces of this machine instead of a virtual machine.

The channel is a unix socket, as QEMU's is; what the host's side does with it is exactly what it does with a guest.
Seconds instead of a boot, so the contract of channel, exec and srun can be tested closely. Needs root.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lrms_vm import channel
from lrms_vm.paths import JobPlaces
from lrms_vm.verdict import READY, Verdict, write_verdict

REPOSITORY = Path(__file__).resolve().parents[1]
PROGRAM = REPOSITORY / "guest" / "lrms-vm-guest"
NOBODY = pwd.getpwnam("nobody")  # ssh wants its user to exist on the host, too
UID, GID, NAME = NOBODY.pw_uid, NOBODY.pw_gid, NOBODY.pw_name
TEAM_GID = 4800
SETUP = """\
set -e
mount -t tmpfs -o mode=0755 none /mnt
mkdir /mnt/etc && cp -a /etc/. /mnt/etc/ 2>/dev/null || true
mount --bind /mnt/etc /etc
mount -t tmpfs -o mode=0755 none /home
mount -t tmpfs -o mode=0755 none /run
mount -t tmpfs -o mode=0755 none "$3"  # as in a guest: nothing of a share is there but through the channel
exec "$1" boot "$2" -
"""


class GuestInNamespace:
    """One job's directories, a verdict, and a guest behind the channel."""

    def __init__(
        self,
        *,
        up_after_s: float = 0.0,
        answers: bool = True,
        dies: bool = False,
        boot_timeout_s: int = 30,
        clock_set_by_s: float = 0.0,
    ) -> None:
        """`clock_set_by_s`: how far somebody has set the node's clock since the prologue began."""
        self.clock_set_by_s = clock_set_by_s
        self.root = Path(tempfile.mkdtemp(prefix="lrms-", dir="/tmp"))
        self.root.chmod(0o755)
        self.shares = self.root / "shares"
        self.work, self.team = self.shares / "work", self.shares / "team"  # the user's; only readable by a group
        self.job = JobPlaces(run=self.root / "job", disk=self.root / "disk")
        self.verdict = self.root / "verdict.json"
        self.dies = dies
        self.up_after_s, self.answers, self.boot_timeout_s = up_after_s, answers, boot_timeout_s
        self.guest: subprocess.Popen[bytes] | None = None
        self.attached: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def __enter__(self) -> GuestInNamespace:
        shutil.copytree(REPOSITORY / "lrms_vm", self.root / "lrms_vm", ignore=shutil.ignore_patterns("__pycache__"))
        places = {
            self.shares: 0o755,
            self.work: 0o755,
            self.team: 0o750,
            self.job.run: 0o711,
            self.job.user.root: 0o700,
        }
        for directory, mode in places.items():
            directory.mkdir()
            directory.chmod(mode)
        (self.team / "calibration").write_text("pedestal 7\n")
        (self.team / "calibration").chmod(0o640)
        for path in (self.team, self.team / "calibration"):
            os.chown(path, 0, TEAM_GID)
        for path in (self.work, self.job.user.root):
            os.chown(path, UID, GID)
        self._write_seed()
        self.job.console.write_text("boot messages\n\x1b[31mKernel panic - not syncing: test\x1b[0m\n")
        self.job.console.chmod(0o444)
        self.verdict.write_bytes(
            write_verdict(
                Verdict(
                    state=READY,
                    key="test-1.n1",
                    uid=UID,
                    job_dir=str(self.job.run),
                    work_dir=str(self.work),
                    shares=(str(self.work), str(self.team)),
                    user_name=NAME,
                    home=f"/home/{NAME}",
                    boot_timeout_s=self.boot_timeout_s,
                    started_at=time.time() - self.clock_set_by_s,
                    handed_over=time.monotonic(),
                    image={"name": "test", "digest": "sha256:00"},
                )
            )
        )
        self.verdict.chmod(0o444)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.job.channel))
        os.chown(self.job.channel, UID, GID)
        self.listener.listen(1)
        threading.Thread(target=self._boot, daemon=True).start()
        marked = channel.environment("test-1.n1")
        self.attached = self.lrms_vm(
            "attach", "--verdict", str(self.verdict), program="lrms_vm.attach", environment=marked
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping = True
        self.kill()
        self.listener.close()
        if self.attached is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.attached.pid, signal.SIGKILL)
            self.attached.wait()
        shutil.rmtree(self.root)

    def kill(self) -> None:
        """The guest is gone, at once."""
        if self.guest is not None:
            self.guest.kill()
            self.guest.wait()

    def wait_until_up(self) -> None:
        until = time.monotonic() + 30
        while not self.job.user.ready.exists():
            assert not self.job.user.failed.exists(), self.job.user.failed.read_text()
            assert time.monotonic() < until, "the guest did not come up"
            time.sleep(0.02)

    def lrms_vm(
        self,
        *arguments: str | bytes,
        program: str = "lrms_vm.cli",
        environment: Mapping[str, str] | Mapping[bytes, bytes] | None = None,
        **how: object,
    ) -> subprocess.Popen[bytes]:
        """The command, from this repository, as the job's user."""
        code = f"import sys; sys.path.insert(0, sys.argv.pop(1)); from {program} import main; sys.exit(main())"
        how.setdefault("cwd", self.work)
        return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
            [sys._base_executable, "-I", "-c", code, str(self.root), *arguments],
            env=environment if environment is not None else {"PATH": "/usr/bin:/bin"},
            user=UID,
            group=GID,
            extra_groups=[TEAM_GID],
            start_new_session=True,
            **how,
        )

    def exec(
        self, *argv: str | bytes, options: Sequence[str] = (), stdin: bytes = b"", **how: object
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a payload to its end."""
        process = self.start(*argv, options=options, stdin=subprocess.PIPE, **how)
        out, err = process.communicate(stdin, timeout=60)
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def start(self, *argv: str | bytes, options: Sequence[str] = (), **how: object) -> subprocess.Popen[bytes]:
        how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
        return self.lrms_vm("exec", "--verdict", str(self.verdict), *options, "--", *argv, **how)

    def _boot(self) -> None:
        try:
            connection, _ = self.listener.accept()
        except OSError:
            return
        until = time.monotonic() + self.up_after_s
        while time.monotonic() < until:
            if self._stopping:
                return
            time.sleep(0.01)
        if self.dies:
            connection.close()
            return
        if not self.answers:
            while not self._stopping:
                time.sleep(0.01)
            return
        namespaces = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self.guest = subprocess.Popen(
            [
                *namespaces,
                "--propagation",
                "private",
                "sh",
                "-c",
                SETUP,
                "sh",
                str(PROGRAM),
                str(self.root / "seed"),
                str(self.shares),
            ],
            stdin=connection,
            stdout=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
        connection.close()

    def _write_seed(self) -> None:
        user, seed = self.job.user, self.root / "seed"
        for name in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", self.root / name], check=True
            )
        public = {name: (self.root / f"{name}.pub").read_text() for name in ("host", "user")}
        program = self.root / "guest-program"
        shutil.copy(PROGRAM, program)  # where the user can reach it
        files = {
            user.private_key: (self.root / "user").read_text(),
            user.known_hosts: f"guest {public['host']}",
            user.ssh_config: channel.ssh_config(user, NAME, program=str(program)),
        }
        for path, text in files.items():
            path.write_text(text)
            path.chmod(0o600)
            os.chown(path, UID, GID)
        seed.mkdir(mode=0o700)
        lines = {
            "version": "1\n",
            "random": os.urandom(32).hex(),
            "hostname": "test-guest\n",
            "passwd": f"{NAME}:x:{UID}:{GID}:A. Physicist:/home/{NAME}:/bin/bash\n",
            "group": f"theirs:x:{GID}:\natlas:x:{TEAM_GID}:{NAME}\n",
            "ssh_host_ed25519_key": (self.root / "host").read_text(),
            "authorized_keys": public["user"],
            "shares": f"{self.work}\n{self.team}\n",
        }
        for name, line in lines.items():
            (seed / name).write_text(line)


def read_json(path: Path) -> dict[str, object]:
    values = json.loads(path.read_text())
    assert isinstance(values, dict)
    return values
