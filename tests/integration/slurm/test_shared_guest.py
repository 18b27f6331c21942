"""One allocation, one guest, many looks at it: what `exec` promises a payload. salloc and srun, as a user."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from demo import hypervisor, users
from demo.cluster import Cluster
from demo.layout import GROUP, USER
from tests.integration.slurm.conftest import BOOT_S, Desk, make_desk

pytestmark = pytest.mark.guest

IN_GUEST = "test -d /run/lrms_vm/tasks && echo in the guest"


@dataclass(frozen=True)
class Shared:
    """An allocation whose guest is up."""

    desk: Desk
    job_id: int
    node: str

    def srun(
        self, *argv: str, stdin: bytes = b"", options: tuple[str, ...] = (), env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        words = ["srun", f"--jobid={self.job_id}", "--ntasks=1", *options, "--", *argv]
        return self.desk.user.call(words, cwd=self.desk.directory, stdin=stdin, timeout_s=BOOT_S, env=env)

    @property
    def verdict(self) -> str:
        return str(self.desk.layout.places(self.node).verdict(f"slurm-{self.job_id}.{self.node}"))


@pytest.fixture(scope="module")
def shared(cluster: Cluster) -> Iterator[Shared]:
    desk = make_desk(cluster, "shared")
    done = desk.user.call(
        ["salloc", "--no-shell", "--vm-image=minimal", "--mem=900", "--time=20"], cwd=desk.directory, timeout_s=120
    )
    said = done.stderr.decode()
    granted = re.search(r"Granted job allocation (\d+)", said)
    assert done.returncode == 0 and granted, said
    job_id = int(granted[1])
    yield Shared(desk, job_id, desk.started(job_id))
    desk.user.cancel(job_id)
    desk.end(job_id, timeout_s=60)


def test_the_command_runs_in_the_guest_as_the_same_user(shared: Shared) -> None:
    done = shared.srun("sh", "-c", f"{IN_GUEST}; id -u; id -g; id -un; id -Gn; pwd")
    assert done.returncode == 0, done.stderr.decode()
    user = users.find(USER)
    where, uid, gid, name, groups, directory = done.stdout.decode().splitlines()
    assert (where, uid, gid, name) == ("in the guest", str(user.uid), str(user.gid), USER)
    assert GROUP in groups.split()
    assert directory == str(shared.desk.directory)


def test_the_payload_starts_in_a_finished_system(shared: Shared) -> None:
    """The guest's half was up before systemd: what systemd would have made by then must be there all the same."""
    script = (
        "test -e /run/lrms_vm/early && nice && cat /sys/class/net/lo/flags && echo x >/dev/shm/y && ls /dev/pts/ptmx"
    )
    done = shared.srun("sh", "-c", script)
    assert done.stdout.split() == [b"0", b"0x9", b"/dev/pts/ptmx"], done


def test_the_guest_has_the_allocations_cpus_and_memory(shared: Shared) -> None:
    done = shared.srun("sh", "-c", "nproc; grep MemTotal /proc/meminfo")
    cpus, memory = done.stdout.decode().splitlines()
    assert int(cpus) == 1
    assert 900 * 0.6 < int(memory.split()[1]) / 1024 < 900  # MiB, less the hypervisor's and the kernel's share


@pytest.mark.parametrize("code", [0, 1, 7, 254, 255])
def test_the_exit_code_is_the_payloads(shared: Shared, code: int) -> None:
    assert shared.srun("sh", "-c", f"exit {code}").returncode == code


def test_a_death_by_signal_stays_one(shared: Shared) -> None:
    done = shared.srun("sh", "-c", "kill -SEGV $$")
    assert done.returncode == 139  # srun(1): 128 + signal
    assert b"Segmentation fault" in done.stderr


def test_a_missing_program_is_127(shared: Shared) -> None:
    assert shared.srun("no-such-program").returncode == 127


def test_bytes_pass_unchanged_from_stdin_to_stdout(shared: Shared) -> None:
    data = os.urandom(50_000_000)
    done = shared.srun("cat", stdin=data)
    assert done.returncode == 0, done.stderr.decode()
    assert hashlib.sha256(done.stdout).hexdigest() == hashlib.sha256(data).hexdigest()


def test_stdout_and_stderr_stay_apart(shared: Shared) -> None:
    done = shared.srun("sh", "-c", "printf 'a\\0b' ; printf 'c\\0d' >&2")
    assert done.stdout == b"a\0b"
    assert b"c\0d" in done.stderr and b"a\0b" not in done.stderr


def test_arguments_arrive_as_they_were(shared: Shared) -> None:
    words = ["two blanks  here", "a'single", 'a"double', "new\nline", "grüße ✓", "$HOME `id` \\", "", "*", "-n", "--"]
    done = shared.srun("printf", "%s\\n--\\n", *words)
    assert done.stdout.decode() == "".join(f"{word}\n--\n" for word in words)


def test_the_environment_follows_the_rule(shared: Shared) -> None:
    done = shared.srun("env", env={"PATH": os.environ["PATH"] + ":/outside", "MY_SETTING": "kept ' here\n"})
    lines = done.stdout.decode()
    assert "MY_SETTING=kept ' here\n" in lines
    assert f"SLURM_JOB_ID={shared.job_id}" in lines.splitlines()
    assert ":/outside" not in lines


def test_files_are_the_users_own_on_both_sides(shared: Shared) -> None:
    (shared.desk.directory / "from-host").write_text("hello")
    done = shared.srun("sh", "-c", "cat from-host; echo back > from-guest; mkdir d && mv from-guest d/moved")
    assert done.stdout == b"hello", done.stderr.decode()
    moved = shared.desk.directory / "d" / "moved"
    assert moved.read_text() == "back\n"
    assert moved.stat().st_uid == users.find(USER).uid


def test_a_task_cannot_see_more_of_the_host_than_its_directory(shared: Shared) -> None:
    done = shared.srun("sh", "-c", f"cat {shared.verdict}; ls {shared.desk.layout.etc}")
    assert done.returncode != 0 and done.stdout == b""


def test_a_second_step_of_the_job_goes_to_the_same_guest(shared: Shared) -> None:
    first, second = (shared.srun("cat", "/proc/sys/kernel/random/boot_id").stdout for _ in range(2))
    assert first == second != b""


def test_a_nested_request_for_another_image_changes_nothing(shared: Shared) -> None:
    before = shared.srun("cat", "/proc/sys/kernel/random/boot_id").stdout
    done = shared.srun("cat", "/proc/sys/kernel/random/boot_id", options=("--vm-image=other",))
    assert done.returncode != 0 or done.stdout == before


def test_a_forged_option_changes_nothing(shared: Shared) -> None:
    done = shared.srun("sh", "-c", IN_GUEST, env={"_SLURM_SPANK_OPTION_lrms_vm_vm_image": "other"})
    assert done.returncode != 0 or done.stdout == b"in the guest\n"


def test_without_a_verdict_nothing_runs_on_the_host(shared: Shared) -> None:
    hidden = shared.verdict + ".hidden"
    os.rename(shared.verdict, hidden)
    try:
        done = shared.srun("touch", "escaped", options=("--vm-image=minimal",))
        assert done.returncode != 0
        assert not (shared.desk.directory / "escaped").exists()
    finally:
        os.rename(hidden, shared.verdict)
    assert shared.srun("true").returncode == 0


def test_interrupt_reaches_the_payload(shared: Shared) -> None:
    script = "trap 'echo interrupted > int; exit 3' INT; echo up > int-up; while :; do sleep 0.2; done"
    words = ["srun", f"--jobid={shared.job_id}", "--ntasks=1", "sh", "-c", script]
    step = shared.desk.user.popen(words, cwd=shared.desk.directory)
    shared.desk.written("int-up", timeout_s=60)
    shared.desk.cluster.client("root").call(["scancel", "-s", "INT", f"{shared.job_id}.{_last_step(shared)}"])
    assert shared.desk.written("int", timeout_s=30) == "interrupted\n"
    step.communicate(timeout=30)
    assert step.returncode == 3


def test_a_guest_killed_under_the_payload_is_no_payload_exit_code(shared: Shared) -> None:
    """The last test of this guest."""
    words = ["srun", f"--jobid={shared.job_id}", "--ntasks=1", "sh", "-c", "echo up > kill-up; sleep 300"]
    step = shared.desk.user.popen(words, cwd=shared.desk.directory)
    shared.desk.written("kill-up", timeout_s=60)
    name = f"{hypervisor.DOMAIN_PREFIX}slurm-{shared.job_id}.{shared.node}"
    subprocess.run(["virsh", "-q", "-c", hypervisor.URI, "destroy", name], check=True, capture_output=True, timeout=60)
    _, said = step.communicate(timeout=60)
    assert step.returncode == 70, said.decode()
    assert b"guest" in said


def _last_step(shared: Shared) -> str:
    client = shared.desk.cluster.client("root")
    listed = client.call(["squeue", "--steps", f"--job={shared.job_id}", "-h", "-o", "%i"], cwd=shared.desk.directory)
    steps = [line.partition(".")[2] for line in listed.stdout.decode().split()]
    return max((step for step in steps if step.isdigit()), key=int)
