"""`pbsdsh` typed in a guest, with a stand-in for the real one: streams, exit codes, signals, refusals, its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest_in_namespace import GuestInNamespace

# What it does is the first word of the program it is to start.
STAND_IN = r"""#!/bin/bash
while [ "$1" != -- ]; do options+=("$1"); shift; done
case $2 in
show) printf '<%s>' "${options[@]}" "$@"; echo; env | LC_ALL=C sort; readlink /proc/self/fd/0 >&2; pwd >&2;;
bytes) head -c 300000 /dev/zero | tr '\0' '\377'; printf 'a\0b' >&2;;
code) exit "$3";;
die) kill -"$3" $$;;
wait) trap 'echo killed >>"$3"; exit 1' TERM; echo up; while :; do sleep 0.05; done;;
late) (sleep 1; echo late) & exit 4;;
silent) (sleep 60) & echo $! >"$3"; exit 5;;
esac
"""
PBSDSH = "/run/lrms_vm/guest pbsdsh"
JOB = {"PATH": "/usr/bin:/bin", "PBS_JOBID": "7.s", "PBS_JOBCOOKIE": "C0", "LD_PRELOAD_": "x"}


@pytest.fixture(scope="module")
def guest() -> Iterator[GuestInNamespace]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with GuestInNamespace() as up:
        up.wait_until_up()
        bin_directory = up.root / "commands"
        bin_directory.mkdir()
        (bin_directory / "pbsdsh").write_text(STAND_IN)
        (bin_directory / "pbsdsh").chmod(0o755)
        yield up


def start(guest: GuestInNamespace, text: str, *, lrms: str = "torque") -> subprocess.Popen[bytes]:
    """A job's script, as pbs_mom starts it: a shell with the script's path on its stdin."""
    script = guest.root / "job.sh"
    script.write_text(f"#!/bin/bash\n{text}\n")
    script.chmod(0o755)
    options = ["--lrms", lrms, "--commands", str(guest.root / "commands")]
    process = guest.start("/bin/bash", options=options, environment=JOB, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(f"{script}\n".encode())
    process.stdin.close()
    process.stdin = None
    return process


def run(guest: GuestInNamespace, text: str, **how: str) -> subprocess.CompletedProcess[bytes]:
    process = start(guest, text, **how)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess((), process.returncode, out, err)


def test_it_runs_the_real_one_on_the_host_with_the_job_s_own_environment(guest: GuestInNamespace) -> None:
    done = run(guest, f"export MINE=guest LD_PRELOAD_=y PBS_JOBID=8.s PBS_EVIL=1\nexec {PBSDSH} -vc2 show 'a  b' -x")
    assert done.stdout.decode().splitlines()[:3] == [
        "<-v><-c><2><--><show><a  b><-x>",
        "PBS_JOBCOOKIE=C0",
        "PBS_JOBID=7.s",
    ]
    assert b"MINE" not in done.stdout and b"LD_PRELOAD_" not in done.stdout and b"EVIL" not in done.stdout
    assert done.stderr.decode().splitlines() == ["/dev/null", str(guest.work)]


def test_the_guest_does_not_know_the_cookie(guest: GuestInNamespace) -> None:
    assert run(guest, "echo ${PBS_JOBCOOKIE-none} $PBS_JOBID").stdout == b"none 7.s\n"


def test_a_loop_keeps_its_input(guest: GuestInNamespace) -> None:
    done = run(guest, f"printf '1\\n2\\n3\\n' | while read -r n; do {PBSDSH} -n $n code $n; echo $n:$?; done")
    assert done.stdout == b"1:1\n2:2\n3:3\n"


def test_output_is_whole_and_apart(guest: GuestInNamespace) -> None:
    done = run(guest, f"{PBSDSH} bytes")
    assert (done.stdout, done.stderr) == (b"\xff" * 300000, b"a\0b")


@pytest.mark.parametrize("word, code", [("code 0", 0), ("code 17", 17), ("code 255", 255), ("die USR1", 128 + 10)])
def test_the_exit_code_is_the_real_one_s(guest: GuestInNamespace, word: str, code: int) -> None:
    assert run(guest, f"{PBSDSH} {word}; echo $?").stdout == f"{code}\n".encode()


def test_a_signal_reaches_the_real_one(guest: GuestInNamespace) -> None:
    text = f"{PBSDSH} wait /dev/stdout & sleep 1; kill -TERM $!; wait $!; echo rc $?"
    assert run(guest, text).stdout == b"up\nkilled\nrc 1\n"


def test_the_real_one_ends_with_the_job(guest: GuestInNamespace) -> None:
    said = guest.work / "said"
    process = start(guest, f"exec {PBSDSH} wait {said}")
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGTERM)  # qdel: the payload's own group, and with it the guest's pbsdsh
    process.communicate(timeout=30)
    until = time.monotonic() + 10
    while not said.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert said.read_text() == "killed\n"


def test_what_the_tasks_say_after_its_end_still_comes_but_is_not_waited_for_for_ever(guest: GuestInNamespace) -> None:
    assert run(guest, f"{PBSDSH} late; echo $?").stdout == b"late\n4\n"
    pid = guest.work / "pid"
    began = time.monotonic()
    assert run(guest, f"{PBSDSH} silent {pid}; echo $?").stdout == b"5\n"
    assert time.monotonic() - began < 30
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(pid.read_text()), signal.SIGKILL)


def test_a_guest_cannot_fill_the_host_with_processes(guest: GuestInNamespace) -> None:
    service = guest.root / "lrms_vm" / "launch_service.py"
    whole = service.read_text()
    service.write_text(whole.replace("MAX_AT_ONCE = 256", "MAX_AT_ONCE = 2"))
    start_three = f"for i in 1 2 3; do {PBSDSH} wait /dev/null >said.$i & done"
    try:
        done = run(guest, f"{start_three}; sleep 3; cat said.*; kill $(jobs -p); wait; {PBSDSH} code 9; echo $?")
    finally:
        service.write_text(whole)
    assert done.stdout == b"up\nup\n9\n"


@pytest.mark.parametrize(
    "lrms, options", [("torque", "-x"), ("torque", "--host=n1"), ("openpbs", "-u"), ("openpbs", "-E")]
)
def test_a_refused_option_starts_nothing(guest: GuestInNamespace, lrms: str, options: str) -> None:
    done = run(guest, f"{PBSDSH} {options} show", lrms=lrms)
    assert (done.returncode, done.stdout) == (64, b"")
    assert b"is not possible from inside a guest" in done.stderr


def test_without_a_real_one_on_the_node_it_says_so(guest: GuestInNamespace) -> None:
    real, away = guest.root / "commands" / "pbsdsh", guest.root / "commands" / "away"
    real.rename(away)
    try:
        done = run(guest, f"{PBSDSH} show")
    finally:
        away.rename(real)
    assert done.returncode == 69
    assert f"no pbsdsh on this node in {real.parent}".encode() in done.stderr


def test_a_task_has_what_e_named_and_keeps_its_own(guest: GuestInNamespace) -> None:
    """The real one hands the variable on to the task, whose job starter is `exec` again."""
    shown = run(guest, f"export MINE=guest\n{PBSDSH} -e MINE,NEW=2,PBS_TASKNUM=9 show").stdout.decode()
    packed = shown.partition("<LRMS_VM_TASK_ENV=")[2].partition(">")[0]
    environment = {**JOB, "PBS_TASKNUM": "2", "MINE": "job's", "LRMS_VM_TASK_ENV": packed}
    done = guest.exec(
        "sh", "-c", 'echo "$MINE $NEW $PBS_TASKNUM ${LRMS_VM_TASK_ENV-none}"',
        options=["--lrms", "torque"], environment=environment,
    )  # fmt: skip
    assert done.stdout == b"guest 2 2 none\n"


def test_a_task_reads_no_file_of_the_host_for_the_guest(guest: GuestInNamespace) -> None:
    """Neither one that is called as a script of pbs_mom's, nor one that its stdin names."""
    secret, link = guest.root / "secret", guest.work / "mom_priv" / "jobs" / "7.s.SC"
    secret.write_text('echo "$0"\n')  # would be said as the name of a copy
    link.parent.mkdir(parents=True)
    link.symlink_to(secret)
    for argv, stdin in (("/bin/sh", str(link)), b""), (("/bin/sh",), f"{secret}\n".encode()):
        environment = {**JOB, "PBS_TASKNUM": "2"}
        done = guest.exec(*argv, options=["--lrms", "torque"], stdin=stdin, environment=environment)
        assert b"/run/lrms_vm/" not in done.stdout


def test_a_task_cannot_start_tasks(guest: GuestInNamespace) -> None:
    done = guest.exec("/run/lrms_vm/guest", "pbsdsh", "true", options=["--lrms", "torque"], environment=JOB)
    assert done.returncode == 64
    assert b"pbsdsh: not possible from here" in done.stderr


def test_nothing_of_the_service_is_left(guest: GuestInNamespace) -> None:
    assert [path.name for path in Path(guest.job.user.root).glob("st*")] == []
