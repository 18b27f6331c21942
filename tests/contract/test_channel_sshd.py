"""The channel's contract with the real guest program, real sshd and real ssh: see tests/guest_in_namespace.py."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import pty
import signal
import stat
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.programs import wait_until
from lrms_vm.verdict import READY, REFUSED, Verdict, write_verdict
from tests.guest_in_namespace import GID, NAME, PROGRAM, REPOSITORY, UID, GuestInNamespace, read_json

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="makes name spaces: needs root"),
    pytest.mark.timeout(120),
]


@pytest.fixture(scope="module", autouse=True)
def program() -> None:
    subprocess.run(["make", "-s", "-C", str(REPOSITORY / "guest")], check=True)
    assert PROGRAM.exists()


@pytest.fixture(scope="module")
def guest(program: None) -> Iterator[GuestInNamespace]:
    with GuestInNamespace(up_after_s=1.5) as started:  # hellos queue up before the guest reads
        started.wait_until_up()
        yield started


def test_ready_says_when_the_guest_and_its_shares_were_up(guest: GuestInNamespace) -> None:
    times = read_json(guest.job.user.ready)
    assert times["guest_up"] >= 1500
    assert 0 < times["shares"] < 10000


def test_the_payload_is_the_job_s_user_and_its_groups(guest: GuestInNamespace) -> None:
    result = guest.exec("sh", "-c", "id -u; id -un; id -Gn; hostname; getent passwd | grep -c :x:" + f"{UID}:")
    assert result.stdout.decode().split("\n")[:5] == [str(UID), NAME, "theirs atlas", "test-guest", "1"]


@pytest.mark.parametrize("code", [0, 1, 7, 126, 127, 254, 255])
def test_exit_codes_are_exact(guest: GuestInNamespace, code: int) -> None:
    assert guest.exec("sh", "-c", f"exit {code}").returncode == code


@pytest.mark.parametrize("name", ["SEGV", "KILL", "TERM", "ABRT", "USR1", "PIPE"])
def test_death_by_signal_is_exact(guest: GuestInNamespace, name: str) -> None:
    result = guest.exec("sh", "-c", f"kill -{name} $$")
    assert result.returncode == -signal.Signals[f"SIG{name}"]
    assert result.stderr == b""


def test_what_cannot_be_started_is_127_or_126_with_its_name(guest: GuestInNamespace) -> None:
    missing, directory = guest.exec("no-such-program"), guest.exec("/etc")
    assert (missing.returncode, b"no-such-program: command not found" in missing.stderr) == (127, True)
    assert (directory.returncode, b"/etc: Permission denied" in directory.stderr) == (126, True)


def test_50_mb_of_random_bytes_pass_unchanged(guest: GuestInNamespace) -> None:
    text = os.urandom(50_000_000)
    result = guest.exec("cat", stdin=text)
    assert result.returncode == 0
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(text).digest()


def test_stdout_and_stderr_stay_apart_and_can_be_opened_by_name(guest: GuestInNamespace) -> None:
    result = guest.exec("sh", "-c", "echo one; echo two >&2; echo three > /dev/stdout; echo four > /dev/stderr")
    assert (result.stdout, result.stderr) == (b"one\nthree\n", b"two\nfour\n")


def test_arguments_pass_byte_by_byte(guest: GuestInNamespace) -> None:
    words = [
        b"",
        b" two  blanks ",
        b"'\"`$(id)\\",
        b"new\nline\n",
        "Grüße 物理".encode(),
        b"\xff\x80\x81",
        b"-n",
        b"--",
        b"*",
    ]
    result = guest.exec("printf", "%s\\0", *words)
    assert result.stdout == b"\0".join(words) + b"\0"


def test_a_long_environment_and_exported_functions_survive(guest: GuestInNamespace) -> None:
    environment = {b"PATH": b"/nowhere", b"BASH_FUNC_hello%%": b'() {  echo "hello $1"\n}', b"LD_PRELOAD": b"/x.so"}
    environment |= {b"BIG_%d" % i: os.urandom(3000).hex().encode() for i in range(40)}
    result = guest.exec("bash", "-c", "hello you; echo ${#BIG_39} $PATH ${LD_PRELOAD-unset}", environment=environment)
    assert result.stdout.split() == [b"hello", b"you", b"6000", *[b"/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"], b"unset"]  # fmt: skip


def test_a_script_is_copied_in(guest: GuestInNamespace) -> None:
    script = guest.root / "slurm_script"
    script.write_text('#!/bin/sh\necho "$0" "$1"; cat\nexit 3\n')
    script.chmod(0o755)
    result = guest.exec(str(script), "an argument", options=["--script"], stdin=b"input")
    assert result.returncode == 3
    assert result.stdout.startswith(b"/run/lrms_vm/tasks/t")
    assert result.stdout.endswith(b"/script an argument\ninput")


def test_the_working_directory_is_shared_both_ways_with_the_umask(guest: GuestInNamespace) -> None:
    (guest.work / "in").write_text("from the host")
    result = guest.exec(
        "sh", "-c", "umask 022; pwd; cat in; echo made > out; mkdir d; chmod 750 d; ls d/..", umask=0o027
    )
    assert result.stdout.startswith(f"{guest.work}\nfrom the host".encode()), result
    assert (guest.work / "out").read_text() == "made\n"
    assert stat.S_IMODE((guest.work / "out").stat().st_mode) == 0o644
    assert (guest.work / "out").stat().st_uid == UID
    assert stat.S_IMODE((guest.work / "d").stat().st_mode) == 0o750


def test_links_mean_what_they_mean_on_the_host(guest: GuestInNamespace) -> None:
    """Absolute ones too, and those with "..": working directories are full of them."""
    (guest.work / "data").write_text("events")
    links = {
        "absolute": f"{guest.work}/data",
        "upward": f"../{guest.work.name}/data",
        "beside": "data",
        "gone": "/no/where",
    }
    for name, target in links.items():
        (guest.work / name).symlink_to(target)
    done = guest.exec(
        "sh", "-c", "cat absolute upward beside; for i in absolute upward beside gone; do echo; readlink $i; done"
    )
    assert done.stdout.split() == [b"events" * 3, *(target.encode() for target in links.values())], done.stderr


def test_the_job_s_umask_is_the_payload_s(guest: GuestInNamespace) -> None:
    assert guest.exec("sh", "-c", "umask", umask=0o027).stdout == b"0027\n"


def test_the_share_s_server_sees_nothing_else_of_the_host(guest: GuestInNamespace) -> None:
    os.symlink("/etc/hostname", guest.work / "escape")
    os.symlink(str(guest.root), guest.work / "up")
    servers = [p for p in Path("/proc").glob("[0-9]*/comm") if _read(p) == "sftp-server\n"]
    ours = [p.parent for p in servers if str(guest.work) in _mounts(p.parent)]
    assert ours
    for process in ours:
        assert not (process / "root" / "etc/hostname").exists()
        assert not (process / "root" / "home").exists()
        assert [p.name for p in (process / "root" / "tmp" / guest.root.name).iterdir()] == ["shares"]
        assert [p.name for p in (process / "root" / str(guest.shares).lstrip("/")).iterdir()] == ["work"]


def test_a_directory_that_only_the_group_can_read_can_be_read_and_not_written(guest: GuestInNamespace) -> None:
    result = guest.exec("sh", "-c", "pwd; cat calibration; echo x > new || echo refused", cwd=guest.team)
    assert result.stdout == f"{guest.team}\npedestal 7\nrefused\n".encode()


def test_a_directory_that_is_not_shared_is_told_and_home_is_used(guest: GuestInNamespace) -> None:
    result = guest.exec("pwd", cwd="/usr")
    assert result.stdout == f"/home/{NAME}\n".encode()
    assert result.stderr.count(b"\n") == 1
    assert b"/usr is not shared" in result.stderr


@pytest.fixture
def nothing_ignored() -> Iterator[None]:
    """What is ignored where we start is not passed on: under nohup(1) the tests would wait for a HUP for ever, and in
    a shell's background for an INT."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


PARENT_AND_CHILD = """
import os, signal, sys, time
def told(number, _):
    os.write(1, signal.Signals(number).name[3:].encode() + b"\\n")
    if number == signal.SIGTERM:
        if child:
            os.waitpid(child, 0)
        os._exit(9)
for name in ("USR1", "USR2", "HUP", "INT", "ALRM", "TERM"):
    signal.signal(getattr(signal, "SIG" + name), told)
child = os.fork()
os.write(1, b"ready\\n")  # both: what comes while a Python forks, its child forgets
while True:
    time.sleep(0.01)
"""


@pytest.mark.usefixtures("nothing_ignored")
def test_signals_reach_the_payload_s_whole_group_in_order(guest: GuestInNamespace) -> None:
    # bash passes over a trapped INT that comes just as the command it waits for ends: 15 of 1,118 on a busy processor
    process = guest.start("/usr/bin/python3", "-Ic", PARENT_AND_CHILD)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == [b"ready\n"] * 2
    for name in ("USR1", "USR2", "HUP", "INT", "ALRM", "TERM"):
        os.killpg(process.pid, signal.Signals[f"SIG{name}"])  # as Slurm does: the whole group, ssh among it
        if name != "TERM":
            assert [process.stdout.readline() for _ in range(2)] == [f"{name}\n".encode()] * 2
    assert process.communicate(timeout=20)[0] == b"TERM\nTERM\n"
    assert process.returncode == 9


def test_a_payload_killed_by_a_forwarded_signal_kills_us_the_same_way(guest: GuestInNamespace) -> None:
    process = guest.start("sh", "-c", "echo ready; exec sleep 60")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGUSR2)
    assert process.wait(20) == -signal.SIGUSR2


def test_a_killed_step_s_payload_gets_a_hang_up(guest: GuestInNamespace) -> None:
    process = guest.start("sh", "-c", "trap 'echo hup > hup; exit' HUP; echo ready; while :; do sleep 0.05; done")
    assert process.stdout is not None
    process.stdout.readline()
    for pid in _descendants(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    until = time.monotonic() + 15
    while not (guest.work / "hup").exists():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_reader_that_leaves_ends_the_writer(guest: GuestInNamespace) -> None:
    process = guest.start("yes")
    assert process.stdout is not None
    process.stdout.read(100_000)
    process.stdout.close()
    assert process.wait(20) in (-signal.SIGPIPE, -signal.SIGHUP)


def test_processes_left_behind_end_with_the_payload(guest: GuestInNamespace) -> None:
    started = time.monotonic()
    result = guest.exec("sh", "-c", "sleep 300 & echo $!")
    assert time.monotonic() - started < 10
    state = guest.exec("sh", "-c", f"cut -d' ' -f3 /proc/{int(result.stdout)}/stat")
    assert state.stdout in (b"", b"Z\n")


def test_many_tasks_at_once(guest: GuestInNamespace) -> None:
    tasks = [guest.start("sh", "-c", f"sleep 0.2; echo {i}; exit {i}") for i in range(12)]
    assert [(task.communicate(timeout=60)[0], task.returncode) for task in tasks] == [
        (b"%d\n" % i, i) for i in range(12)
    ]


def test_a_task_takes_little_more_than_on_the_host(guest: GuestInNamespace) -> None:
    took = []
    for _ in range(5):
        started = time.monotonic()
        assert guest.exec("true").returncode == 0
        took.append(time.monotonic() - started)
    assert min(took) < 0.3


def test_a_terminal_is_the_payload_s(guest: GuestInNamespace) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    script = "stty size; test -t 1 && echo tty; trap 'echo got; exit 4' INT; echo ready; while :; do sleep 0.05; done"
    process = guest.start(
        *("bash", "-c", script),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    seen = b""
    with open(ours, "r+b", buffering=0) as terminal:
        while b"ready" not in seen:
            seen += terminal.read(1000)
        terminal.write(b"\x03")
        while b"got" not in seen:
            seen += terminal.read(1000)
        assert process.wait(20) == 4
    assert b"33 99" in seen
    assert b"tty" in seen


def test_a_lost_connection_is_70_with_the_console_whatever_the_payload_did(program: None) -> None:
    with GuestInNamespace() as lost:
        lost.wait_until_up()
        process = lost.start("sh", "-c", "echo ready; sleep 60; exit 3")
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        lost.kill()
        _, err = process.communicate(timeout=20)
        assert process.returncode == 70
        assert b"| [31mKernel panic - not syncing: test[0m\n" in err  # without the escapes
        assert b"\x1b" not in err
        assert lost.exec("true").returncode == 70


def test_a_guest_that_never_answers_is_70_for_the_payload(program: None) -> None:
    with GuestInNamespace(answers=False, boot_timeout_s=1) as silent:
        result = silent.exec("true")
        assert result.returncode == 70
        assert b"did not come up within 1 s" in result.stderr
        assert b"Kernel panic" in result.stderr


def test_a_guest_that_dies_while_booting_is_known_at_once(program: None) -> None:
    with GuestInNamespace(dies=True) as dead:
        started = time.monotonic()
        result = dead.exec("true")
        assert result.returncode == 70
        assert b"no connection to the guest" in result.stderr
        assert time.monotonic() - started < 5


TICKING = "trap 'echo told >> told' TSTP; (setsid sh -c 'while :; do echo . >> child; sleep 0.2; done' &) ; {body}"


@pytest.mark.parametrize("lrms, told", [("slurm", True), ("gridengine", False)])
def test_a_suspended_job_s_payload_is_stopped_with_all_it_started_and_goes_on(
    guest: GuestInNamespace, lrms: str, told: bool
) -> None:
    """As slurmd suspends: SIGTSTP to all of the step's processes, a moment, SIGSTOP; others send the latter alone."""
    here = guest.work / f"suspended-{lrms}"
    here.mkdir()
    os.chown(here, UID, GID)
    ticks = "while [ ! -e end ]; do echo . >> ticks; sleep 0.2; done; exit 7"
    process = guest.start("sh", "-c", TICKING.format(body=ticks), options=["--lrms", lrms], cwd=here)
    wait_until("ticks", lambda: size(here / "ticks") > 2 and size(here / "child") > 2, timeout_s=30)
    for number, pause_s in ((signal.SIGTSTP, 2), (signal.SIGSTOP, 5))[0 if told else 1 :]:
        for pid in tree(process.pid):
            os.kill(pid, number)
        time.sleep(pause_s)
    assert (here / "told").exists() == told
    before = size(here / "ticks"), size(here / "child")
    time.sleep(2)
    assert (size(here / "ticks"), size(here / "child")) == before
    for pid in tree(process.pid):
        os.kill(pid, signal.SIGCONT)
    wait_until(
        "ticks", lambda: size(here / "ticks") > before[0] + 2 and size(here / "child") > before[1] + 2, timeout_s=30
    )
    (here / "end").touch()
    assert process.wait(30) == 7


def test_a_tstp_that_nothing_follows_stops_nothing(guest: GuestInNamespace) -> None:
    """A payload may use it for its own ends."""
    here = guest.work / "told"
    here.mkdir()
    os.chown(here, UID, GID)
    ticks = "while [ ! -e end ]; do date +%s.%N >> ticks; sleep 0.2; done; exit 7"
    process = guest.start("sh", "-c", TICKING.format(body=ticks), cwd=here)
    wait_until("ticks", lambda: size(here / "ticks") > 2, timeout_s=30)
    process.send_signal(signal.SIGTSTP)
    time.sleep(8)
    (here / "end").touch()
    assert process.wait(30) == 7
    assert (here / "told").read_text() == "told\n"
    times = [float(word) for word in (here / "ticks").read_text().split()]
    assert max(late - early for early, late in itertools.pairwise(times)) < 2.5


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def tree(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in tree(int(child)))]


@pytest.mark.parametrize("set_by_s", [172800.0, -172800.0])
def test_a_clock_that_is_set_under_a_job_shows_in_no_duration(program: None, set_by_s: float) -> None:
    with GuestInNamespace(clock_set_by_s=set_by_s) as guest:
        assert guest.exec("sleep", "0.3").returncode == 0
        times = {**read_json(guest.job.user.ready), **read_json(guest.job.user.payload)}
        assert set(times) >= {"guest_up", "shares", "payload", "payload_began", "exec_waited"}
        assert all(isinstance(ms, float) and 0 <= ms < 60000 for ms in times.values()), times
        assert float(str(times["payload"])) >= 300


def test_closed_standard_descriptors_are_empty_ones(guest: GuestInNamespace) -> None:
    process = guest.start("sh", "-c", "cat; exit 3", preexec_fn=lambda: (os.close(0), os.close(2)))
    assert process.communicate(timeout=30)[0] == b""
    assert process.returncode == 3


def test_term_while_the_guest_boots_ends_the_job_by_term(program: None) -> None:
    with GuestInNamespace(answers=False) as booting:
        process = booting.start("true")
        time.sleep(0.5)
        process.send_signal(signal.SIGCONT)  # scancel sends this first
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM


def test_a_signal_while_the_guest_boots_waits_for_the_payload(program: None) -> None:
    with GuestInNamespace(up_after_s=1.5) as booting:
        process = booting.start("sh", "-c", "trap 'echo got; exit 5' USR1; while :; do sleep 0.05; done")
        time.sleep(0.7)
        process.send_signal(signal.SIGUSR1)
        assert process.communicate(timeout=30)[0] == b"got\n"
        assert process.returncode == 5


@pytest.mark.parametrize("owner, mode", [(UID, 0o444), (0, 0o666), (0, 0o464)])
def test_a_verdict_that_others_could_write_is_not_believed(tmp_path_factory, owner: int, mode: int) -> None:  # type: ignore[no-untyped-def]
    from lrms_vm.errors import NodeError
    from lrms_vm.verdict_file import believe

    path = tmp_path_factory.mktemp("verdict") / "v.json"
    path.write_bytes(write_verdict(Verdict(state=REFUSED, key="k", uid=0)))
    os.chown(path, owner, 0)
    path.chmod(mode)
    with pytest.raises(NodeError, match="only root"):
        believe(path)


def test_a_refusal_is_printed_and_its_code_is_ours(guest: GuestInNamespace) -> None:
    path = guest.root / "refused.json"
    refusal = Verdict(state=REFUSED, key="k", uid=UID, exit_code=77, message="--vm-image: no", hint="ask", code="x")
    path.write_bytes(write_verdict(refusal))
    path.chmod(0o440)
    os.chown(path, 0, GID)
    process = guest.lrms_vm("exec", "--verdict", str(path), "--", "touch", "ran", stderr=subprocess.PIPE)
    assert process.communicate(timeout=20)[1] == b"lrms-vm: --vm-image: no (ask)\n"
    assert process.returncode == 77
    assert not (guest.work / "ran").exists()


def test_without_a_verdict_or_with_another_s_nothing_runs(guest: GuestInNamespace) -> None:
    path = guest.root / "other.json"
    path.write_bytes(write_verdict(Verdict(state=READY, key="k", uid=UID + 1)))
    path.chmod(0o444)
    for verdict, code in ((guest.root / "none.json", 69), (path, 77)):
        process = guest.lrms_vm("exec", "--verdict", str(verdict), "--", "touch", "ran", stderr=subprocess.DEVNULL)
        assert process.wait(20) == code
    assert not (guest.work / "ran").exists()


FAKE_SRUN = """#!/bin/bash
case " $* " in *" fail "*) exit 42;; *" die "*) kill -USR1 $$;; esac
trap 'echo "got TERM"; exit 12' TERM
printf 'args:'; printf ' <%s>' "$@"; echo
echo "cwd:$PWD"; echo "preload:${LD_PRELOAD-none} job:$SLURM_JOB_ID mine:${MINE-none}" >&2
case " $* " in *" wait "*) while :; do sleep 0.05; done;; *) cat;; esac
"""


def test_srun_in_the_guest_runs_the_real_one_on_the_host(guest: GuestInNamespace) -> None:
    # The search path is fixed, so the stand-in goes in by the service's own argument.
    bin_directory = guest.root / "bin"
    bin_directory.mkdir()
    (bin_directory / "srun").write_text(FAKE_SRUN)
    (bin_directory / "srun").chmod(0o755)
    service = guest.root / "lrms_vm" / "launch_service.py"
    service.write_text(
        service.read_text().replace('PATH = "/usr/local/sbin:', f'PATH = "{bin_directory}:/usr/local/sbin:')
    )
    script = guest.root / "job.sh"
    srun = "/run/lrms_vm/guest srun"
    script.write_text(
        f"""#!/bin/bash
export LD_PRELOAD_=x MINE=guest
echo "in put" | {srun} -n2 --ntasks-per-node 1 -l prog 'a  b' -x; echo "rc $?"
{srun} fail < /dev/null; echo "rc $?"
{srun} --prolog=/bin/evil true; echo "rc $?"
({srun} wait < /dev/null & P=$!; sleep 1; kill -TERM $P; wait $P; echo "rc $?")
bash -c 'exec {srun} die' < /dev/null; echo "rc $?"
"""
    )
    script.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    result = guest.exec(str(script), options=["--script"], environment=environment)
    lines = result.stdout.decode().splitlines()
    assert lines[0] == "args: <--ntasks=2> <--ntasks-per-node=1> <--label> <--> <prog> <a  b> <-x>"
    assert lines[1:5] == [f"cwd:{guest.work}", "in put", "rc 0", "rc 42"]
    assert lines[5] == "rc 64"
    assert lines[6:10] == ["args: <--> <wait>", f"cwd:{guest.work}", "got TERM", "rc 12"]
    assert lines[10] == "rc 138"
    assert b"preload:none job:7 mine:none" in result.stderr
    assert b"--prolog" in result.stderr


def test_a_step_of_a_guest_s_srun_has_that_guest_s_environment(guest: GuestInNamespace) -> None:
    from lrms_vm.environment import pack

    packed = pack({b"MINE": b"guest's", b"PATH": b"/opt/x:/usr/bin:/bin", b"SLURM_PROCID": b"0", b"LD_PRELOAD": b""})
    environment = {b"PATH": b"/usr/bin", b"SLURM_PROCID": b"1", b"LRMS_VM_TASK_ENV": packed, b"MINE": b"host's"}
    result = guest.exec("sh", "-c", 'echo "$MINE $PATH $SLURM_PROCID"', environment=environment)
    assert result.stdout == b"guest's /opt/x:/usr/bin:/bin 1\n"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""  # ended while we looked


def _mounts(process: Path) -> str:
    return _read(process / "mountinfo")


def _descendants(pid: int) -> list[int]:
    children = _read(Path(f"/proc/{pid}/task/{pid}/children")).split()
    return [pid, *(found for child in children for found in _descendants(int(child)))]
