"""Torque's hook files: what they let pass, whom they ask, what they hand to Python; and that shell and Python agree."""

from __future__ import annotations

import contextlib
import os
import pty
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrms_vm import torque_node
from lrms_vm.config import Config
from lrms_vm.errors import NodeError, SiteError, UsageError
from lrms_vm.lrms import torque
from lrms_vm.lrms.base import Action, Call

CHECKOUT = Path(__file__).parents[3]
SOURCES = {
    "prologue": "prologue/torque.prologue", "prologue.parallel": "prologue/torque.prologue.parallel",
    "epilogue": "epilogue/torque.epilogue", "epilogue.parallel": "epilogue/torque.epilogue.parallel",
    "starter": "prologue/torque.starter",
}  # fmt: skip
OF_THE_JOB = ("alice", "users", "job")


class Node:
    """A node with our hooks and stand-ins for Python, qstat and lrms-vm-exec, each of which says how it was called."""

    def __init__(self, root: Path) -> None:
        self.root, self.run_dir, self.site = root, root / "run", root / "it's site"
        self.mom_priv = root / "mom_priv"
        (self.mom_priv / "jobs").mkdir(parents=True)
        (root / "bin").mkdir()
        self.site.mkdir()
        (self.mom_priv / "config").write_text("")
        self.program(root / "python", f'echo "python $*" >>{root}/log; exit $(cat {root}/exit 2>/dev/null || echo 0)')
        self.program(root / "exec", 'echo "exec $*"')
        self.qstat("X=1")
        names = {
            "PYTHON": root / "python", "CONFIG": "/etc/x.toml", "RUN_DIR": self.run_dir, "EXEC": root / "exec",
            "COMMANDS": root / "bin", "SITE": self.site, "MOM_PRIV": self.mom_priv, "PROLOGUE": root / "prologue",
            "WAIT_S": "5",
        }  # fmt: skip
        for name, source in SOURCES.items():
            text = (CHECKOUT / source).read_text()
            for word, value in names.items():
                text = text.replace(f"@{word}@", shlex.quote(str(value)))
            assert "@" not in text.replace("$@", "").replace('"@"', "").replace("between @.", "")
            (root / name).write_text(text)
            (root / name).chmod(0o755)

    def into_guest(self, verdict: Path) -> str:
        """What the stand-in for lrms-vm-exec prints, up to the payload's own words."""
        return f"exec exec --lrms torque --commands {self.root}/bin --verdict {verdict}"

    @staticmethod
    def program(path: Path, text: str) -> None:
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def qstat(self, variables: str | None, other: str = "") -> None:
        """None: it fails."""
        text = f"Job Id: 42.tqa\n    job_state = R\n{other}    Variable_List = {variables}\n    euser = alice\n"
        says = "exit 1" if variables is None else f"cat <<'EOF'\n{text}EOF"
        self.program(self.root / "bin" / "qstat", f'echo "qstat $*" >>{self.root}/log\n{says}')

    def call(self, hook: str, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": "/bin:/usr/bin", "PBS_JOBID": "42.tqa", **environ}
        return subprocess.run(
            [self.root / hook, *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
            stdin=subprocess.DEVNULL,
        )

    def prologue(self, resources: str = "nodes=1:ppn=2", job: str = "42.tqa", hook: str = "prologue") -> int:
        return self.call(hook, *self.words(resources, job)).returncode

    def epilogue(self, job: str = "42.tqa", hook: str = "epilogue") -> int:
        script = str(self.mom_priv / "jobs" / f"{job}.SC")
        return self.call(hook, job, *OF_THE_JOB, "17135", "nodes=1", "cput=0", "batch", "", "0", script).returncode

    def words(self, resources: str, job: str = "42.tqa") -> tuple[str, ...]:
        return (job, *OF_THE_JOB, resources, "batch", "", str(self.mom_priv / "jobs" / f"{job}.SC"))

    def log(self) -> list[str]:
        path = self.root / "log"
        return path.read_text().splitlines() if path.exists() else []

    def started(self) -> list[str]:
        return [line for line in self.log() if line.startswith("python ")]

    def marker(self, name: str = "42") -> Path:
        return self.run_dir / "torque" / name

    def verdict(self, key: str = "torque-42.n1") -> Path:
        path = self.run_dir / "verdicts" / f"{key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        return path


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def eventually() -> Iterator[object]:
    def wait(what) -> bool:
        deadline = time.monotonic() + 10
        while not what() and time.monotonic() < deadline:
            time.sleep(0.05)
        return bool(what())

    yield wait


# -- the prologue


def test_an_ordinary_job_leaves_before_python(node: Node) -> None:
    assert node.prologue() == 0
    assert node.log() == ["qstat -f -1 42.tqa"]
    assert node.marker().read_text() == "none\n"


def test_the_resource_goes_to_python_and_nobody_is_asked(node: Node) -> None:
    assert node.prologue("nodes=1,other=vm:deb12") == 0
    words = " ".join(node.words("nodes=1,other=vm:deb12"))
    want = f"python -I -m lrms_vm --config /etc/x.toml prologue --lrms torque -- {node.root}/bin {words}"
    assert node.log() == [want]
    assert node.marker().read_text() == "asked\n"
    assert node.marker().parent.stat().st_mode & 0o777 == 0o755, "pbs_mom's umask is 077"


VARIABLES = [
    "X=1", "VM_IMAGE=a", "X=1,VM_IMAGE=a", "X=1,VM_IMAGE=", "XVM_IMAGE=a", "VM_IMAGE", "X=VM_IMAGE=a", "VM_IMAGES=a",
    "X=a VM_IMAGE=b", "A=$(id),VM_IMAGE=`id`", "X=*,VM_IMAGE=*", "VM_MEMORY=2G", "X=1,\tVM_IMAGE=a",
]  # fmt: skip


@pytest.mark.parametrize("variables", VARIABLES)
def test_shell_and_python_agree_on_the_variables(node: Node, variables: str) -> None:
    node.qstat(variables)
    assert node.prologue() == 0
    text = f"Job Id: 42.tqa\n    Variable_List = {variables}\n".encode()
    call = Call(node.words("nodes=1"), {}, {torque.QSTAT: text, torque.HOST: b"n1"})
    try:
        asks = bool(torque.parse_options(call))
    except UsageError:
        asks = False
    assert bool(node.started()) == asks


def test_another_field_that_looks_like_the_variable_is_not_asked_by(node: Node) -> None:
    node.qstat("X=1", other="    submit_args = -F VM_IMAGE=a,VM_IMAGE=b job.sh\n")
    assert node.prologue() == 0
    assert node.started() == []


@pytest.mark.parametrize(
    ("variables", "asks"), [("X=1,VM_IMAGE=a", True), ("VM_IMAGE=a", True), ("X=VM_IMAGE=a", False)]
)
def test_where_qstat_fails_the_job_file_is_read(node: Node, variables: str, asks: bool) -> None:
    node.qstat(None)
    text = (CHECKOUT / "tests/data/torque/job.JB.xml").read_text()
    before = next(line for line in text.splitlines() if "<Variable_List" in line)
    text = text.replace(before, f'    <Variable_List flags="1">{variables}</Variable_List>')
    (node.mom_priv / "jobs" / "42-1.tqa.JB").write_text(text)
    assert node.prologue(job="42[1].tqa") == 0
    assert bool(node.started()) == asks
    assert node.marker("42-1").exists()


@pytest.mark.parametrize(("python", "told"), [(0, 0), (1, 1), (2, 2), (3, 1), (64, 1), (127, 1), (137, 1)])
def test_only_what_was_counted_starts_the_job_again(node: Node, python: int, told: int) -> None:
    (node.root / "exit").write_text(str(python))
    assert node.prologue("other=vm:a") == told


def test_a_server_that_hangs_is_asked_for_five_seconds_and_no_more(node: Node) -> None:
    """Where trqauthd does not run, qstat hangs for minutes: pbs_mom would kill the hook, and start the job again."""
    node.program(node.root / "bin" / "qstat", "exec sleep 60")
    (node.mom_priv / "jobs" / "42.tqa.JB").write_text('<job><Variable_List flags="1">X=1</Variable_List></job>')
    begin = time.monotonic()
    assert node.prologue() == 0
    assert 4 < time.monotonic() - begin < 9
    assert node.started() == []


def test_a_python_that_is_gone_aborts_the_job_instead_of_starting_it_for_ever(node: Node) -> None:
    (node.root / "python").unlink()
    assert node.prologue("other=vm:a") == 1


# -- the site's own hooks


@pytest.mark.parametrize("hook", ["prologue", "prologue.parallel"])
def test_the_sites_own_prologue_runs_first_and_may_refuse(node: Node, hook: str) -> None:
    node.program(node.site / hook, f'echo "site $1 $#" >>{node.root}/log; exit 4')
    assert node.prologue("other=vm:a", hook=hook) == 4
    assert node.log() == ["site 42.tqa 8"]


@pytest.mark.parametrize("hook", ["epilogue", "epilogue.parallel"])
def test_the_sites_own_epilogue_runs_last(node: Node, hook: str) -> None:
    node.program(node.site / hook, f'echo "site $1 $#" >>{node.root}/log; exit 4')
    node.verdict()
    assert node.epilogue(hook=hook) == 4
    assert [line.split()[0] for line in node.log()] == ["python", "site"]


@pytest.mark.parametrize("hook", ["prologue", "prologue.parallel", "epilogue", "epilogue.parallel"])
def test_a_copy_of_ours_in_the_sites_place_does_not_call_itself(node: Node, hook: str) -> None:
    (node.site / hook).write_text((node.root / hook).read_text())
    (node.site / hook).chmod(0o755)
    assert (node.prologue(hook=hook) if hook.startswith("pro") else node.epilogue(hook=hook)) == 0


# -- the epilogue


def test_an_ordinary_jobs_epilogue_leaves_before_python_and_forgets_it(node: Node) -> None:
    node.prologue()
    assert node.epilogue() == 0
    assert node.started() == []
    assert not node.marker().exists()


@pytest.mark.parametrize("noted", ["marker", "verdict", "record"])
@pytest.mark.parametrize("python", [0, 1, 2, 69])
def test_a_vm_jobs_epilogue_cleans_up_and_ends_with_0(node: Node, noted: str, python: int) -> None:
    if noted == "marker":
        node.prologue("other=vm:a")
    elif noted == "verdict":
        node.verdict("torque-42.n1")
    else:
        (node.run_dir / "jobs" / "torque-42.n1").mkdir(parents=True)
    (node.root / "exit").write_text(str(python))
    assert node.epilogue() == 0
    assert "epilogue --lrms torque --" in node.started()[-1]
    assert not node.marker().exists()


def test_the_job_of_a_similar_number_is_not_touched(node: Node) -> None:
    node.verdict("torque-421.n1")
    node.verdict("torque-42-1.n1")
    assert node.epilogue() == 0
    assert node.started() == []


# -- the nodes that join


def test_a_sisters_prologue_returns_at_once_and_never_fails(node: Node, eventually) -> None:
    node.program(node.root / "python", f'sleep 1; echo "python $*" >>{node.root}/log; exit 9')
    begin = time.monotonic()
    assert node.prologue("nodes=2,other=vm:a", hook="prologue.parallel") == 0
    assert time.monotonic() - begin < 0.7
    state, pid = node.marker().read_text().split()
    assert state == "asked"
    assert eventually(lambda: os.getsid(int(pid)) == int(pid)), "pbs_mom kills the hook's session"
    assert eventually(node.started)
    assert "--lrms torque-sister --" in node.started()[0]


def test_a_sister_asks_qstat_in_the_background_too(node: Node, eventually) -> None:
    assert node.prologue(hook="prologue.parallel") == 0
    assert eventually(node.log)
    assert node.marker().read_text().startswith("unknown ")
    assert node.started() == []


def test_a_sisters_epilogue_ends_a_prologue_that_is_still_at_work(node: Node) -> None:
    node.program(node.root / "python", f'case "$*" in *prologue*) sleep 5;; esac; echo "python $*" >>{node.root}/log')
    node.prologue("nodes=2,other=vm:a", hook="prologue.parallel")
    pid = int(node.marker().read_text().split()[1])
    assert node.epilogue(hook="epilogue.parallel") == 0
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:4]
    assert [line.split()[6] for line in node.started()] == ["epilogue"]
    assert not node.marker().exists()


def test_a_sisters_epilogue_does_not_wait_for_ever(node: Node) -> None:
    node.verdict()
    node.program(node.root / "python", "sleep 8")
    begin = time.monotonic()
    assert node.epilogue(hook="epilogue.parallel") == 0
    assert 2.5 < time.monotonic() - begin < 7


def test_a_number_that_is_another_process_now_is_not_killed(node: Node) -> None:
    bystander = subprocess.Popen(["sleep", "30"], start_new_session=True)
    try:
        node.marker().parent.mkdir(parents=True)
        node.marker().write_text(f"asked {bystander.pid}\n")
        node.epilogue(hook="epilogue.parallel")
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


# -- the job starter


def test_an_ordinary_task_is_started_as_it_is(node: Node) -> None:
    node.prologue()
    done = node.call("starter", "/bin/echo", "a  b", "*", PBS_TASKNUM="2")
    assert (done.stdout, done.stderr, done.returncode) == ("a  b *\n", "", 0)
    assert node.call("starter", "/bin/sh", "-c", "exit 7", PBS_TASKNUM="2").returncode == 7


@pytest.mark.parametrize(
    ("config", "kind", "name"),
    [
        ("", "PBS_BATCH", "-sh"),
        ("$source_login_batch false\n", "PBS_BATCH", "sh"),
        ("$source_login_batch false\n", "PBS_INTERACTIVE", "-sh"),
        ("$source_login_interactive False\n", "PBS_INTERACTIVE", "sh"),
        ("$source_login_batch true\n", "PBS_BATCH", "-sh"),
    ],
)
def test_an_ordinary_shell_is_a_login_shell_as_pbs_mom_would_have_it(
    node: Node, config: str, kind: str, name: str
) -> None:
    node.prologue()
    (node.mom_priv / "config").write_text(config)
    words = ("/bin/sh", "-c", "tr '\\0' '\\n' </proc/$$/cmdline | head -1")
    done = node.call("starter", *words, PBS_TASKNUM="1", PBS_ENVIRONMENT=kind)
    assert done.stdout == f"{name}\n"


def test_the_environment_of_an_ordinary_task_is_its_own(node: Node) -> None:
    node.prologue()
    done = node.call("starter", "/usr/bin/env", PBS_TASKNUM="2", A="b", BASH_ENV="/nonexistent", PWD="/")
    assert {"A=b", "BASH_ENV=/nonexistent"} <= set(done.stdout.splitlines())


def test_a_verdict_leads_into_the_guest(node: Node) -> None:
    path = node.verdict("torque-42-1.n1")
    done = node.call("starter", "/bin/bash", PBS_JOBID="42[1].tqa")
    assert done.stdout == f"{node.into_guest(path)} -- /bin/bash\n"


def test_an_interactive_shell_keeps_its_terminal_on_the_way_into_the_guest(node: Node) -> None:
    """`qsub -I`: what the starter runs in the shell's place has the user's pty, and nothing of it was read."""
    path = node.verdict()
    code = (
        "import os, sys; from lrms_vm import starter; "
        "words = starter.command_of('torque', sys.argv[sys.argv.index('--') + 1:], os.environ, script=False).words; "
        "print(words, os.isatty(0), os.isatty(1), os.ttyname(0), sys.stdin.readline())"
    )
    Node.program(node.root / "exec", f'cd {CHECKOUT}; exec {sys.executable} -c "{code}" "$@"')
    ours, theirs = pty.openpty()
    environ = {"PATH": "/bin:/usr/bin", "PBS_JOBID": "42.tqa", "PBS_ENVIRONMENT": "PBS_INTERACTIVE"}
    shell = subprocess.Popen(
        [node.root / "starter", "/bin/bash"], env=environ, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.write(ours, b"typed ahead\n")
    assert shell.wait(30) == 0
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # EIO: the last of its ends was closed
        while part := os.read(ours, 4096):
            said += part
    os.close(ours)
    assert "('/bin/bash',) True True /dev/pts/" in said.decode(), path
    assert said.decode().rstrip().endswith("typed ahead")


@pytest.mark.parametrize("asked_by", ["variable", "marker", "qstat"])
def test_no_verdict_but_a_vm_was_asked_for_never_runs(node: Node, asked_by: str) -> None:
    environ = {}
    if asked_by == "variable":
        node.prologue()
        environ["VM_IMAGE"] = ""
    elif asked_by == "marker":
        node.prologue("other=vm:a")
    else:  # qsub -T: another prologue ran, none of ours
        node.qstat("X=1", other="    Resource_List.other = vm:a\n")
    done = node.call("starter", "/bin/echo", "on the host", **environ)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("lrms-vm: ")


def test_a_task_waits_for_the_prologue_that_is_at_work_on_its_node(node: Node) -> None:
    path = node.run_dir / "verdicts" / "torque-42.n1.json"
    path.parent.mkdir(parents=True)
    node.program(node.root / "python", f"sleep 1; echo '{{}}' >{path}")
    assert node.prologue("nodes=2,other=vm:a", hook="prologue.parallel") == 0
    assert node.call("starter", "/bin/hostname").stdout == f"{node.into_guest(path)} -- /bin/hostname\n"


def test_a_task_does_not_wait_for_a_prologue_that_ended_without_a_verdict(node: Node) -> None:
    node.program(node.root / "python", "exit 1")
    assert node.prologue("nodes=2,other=vm:a", hook="prologue.parallel") == 0
    assert node.call("starter", "/bin/hostname").returncode == 78


@pytest.mark.parametrize(("config", "limit_s"), [("", 275), ("$prologalarm 15\n", 2.5), ("$prologalarm 60\n", 35)])
def test_a_prologue_keeps_time_to_tell_the_server(node: Node, config: str, limit_s: float) -> None:
    (node.mom_priv / "config").write_text(config)
    assert torque_node.MOTHER.prologue_limit_s(Call(node.words("nodes=1"))) == limit_s


@pytest.mark.parametrize(
    ("config", "starter", "reason"),
    [
        ("", "exec lrms-vm-exec", "$job_starter is ''"),
        ("$job_starter {root}/starter\n", "exec something", "$job_starter is"),
        ("$job_starter {root}/gone\n", "exec lrms-vm-exec", "cannot read"),
        ("$job_starter {root}/starter\n$job_starter_run_privileged true\n", "exec lrms-vm-exec", "run as root"),
        ("$job_starter {root}/starter\n", "exec lrms-vm-exec", ""),
    ],
)
def test_no_guest_is_made_where_the_job_would_run_on_the_host(
    node: Node, config: str, starter: str, reason: str
) -> None:
    node.program(node.root / "starter", starter)
    (node.mom_priv / "config").write_text(config.format(root=node.root))
    call = Call(node.words("nodes=1"))
    if not reason:
        torque_node.MOTHER.require_way_in(call, Config())
        return
    with pytest.raises(NodeError) as caught:
        torque_node.MOTHER.require_way_in(call, Config())
    assert reason in caught.value.message


def test_what_the_server_and_pbs_mom_say_is_in_the_call(node: Node) -> None:
    node.qstat("VM_IMAGE=a")
    call = torque_node.MOTHER.call([f"{node.root}/bin", *node.words("nodes=1")])
    assert torque.parse_options(call) == ({"vm-image": "a"}, "VM_IMAGE")
    node.qstat(None)
    text = (CHECKOUT / "tests/data/torque/job.JB.xml").read_text().replace("5.tqa</jobid>", "42.tqa</jobid>")
    (node.mom_priv / "jobs" / "42.tqa.JB").write_text(text.replace("PBS_O_QUEUE=batch", "VM_IMAGE=b"))
    (node.mom_priv / "jobs" / "42.tqa.JB").chmod(0o600)
    call = torque_node.MOTHER.call([f"{node.root}/bin", *node.words("nodes=1")])
    assert torque.parse_options(call) == ({"vm-image": "b"}, "VM_IMAGE")


def test_a_server_that_hangs_is_not_waited_for(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torque_node, "ASK_TIMEOUT_S", 0.3)
    node.program(node.root / "bin" / "qstat", "sleep 20")
    begin = time.monotonic()
    call = torque_node.MOTHER.call([f"{node.root}/bin", *node.words("other=vm:a")])
    assert time.monotonic() - begin < 5
    assert torque.parse_options(call)[0] == {"vm-image": "a"}


@pytest.mark.parametrize(
    ("action", "told"), [(Action.HOLD, "qhold"), (Action.EXPLAIN, "qalter"), (Action.TAKE_OUT, "pbsnodes")]
)
def test_what_is_told_goes_to_the_server(node: Node, action: Action, told: str) -> None:
    call = torque_node.MOTHER.call([f"{node.root}/bin", *node.words("other=vm:a")])
    job = torque.identify(call, uid=1, gid=1)
    node.program(node.root / "bin" / told, f'echo "{told} $*" >>{node.root}/log')
    torque_node.MOTHER.act(action, "code: why, indeed", job, call, Config())
    assert node.log()[-1].startswith(f"{told} ")
    (node.root / "bin" / told).unlink()
    if action is Action.EXPLAIN:
        torque_node.MOTHER.act(action, "why", job, call, Config())  # worth no more than a line in the log
        return
    with pytest.raises(SiteError):
        torque_node.MOTHER.act(action, "why", job, call, Config())


def test_the_batch_line_on_stdin_is_read_and_a_tasks_stdin_is_not(node: Node) -> None:
    code = (
        "import os, sys; from lrms_vm import starter; "
        "print(starter.command_of('torque', sys.argv[1:], os.environ, script=False).words, os.read(0, 9))"
    )

    def said(*words: str, **stdin) -> str:
        return subprocess.run(
            [sys.executable, "-c", code, *words], cwd=CHECKOUT, capture_output=True, text=True, **stdin
        ).stdout

    assert said("/bin/sh", input="/p/1.SC 'a b'\n") == "('/bin/sh', '-c', 'exec \"$0\" \\'a b\\'', '/p/1.SC') b''\n"
    assert said("/bin/cat", "-", input="mine\n") == "('/bin/cat', '-') b'mine\\n'\n"
    assert said("/bin/sh", stdin=subprocess.DEVNULL) == "('/bin/sh',) b''\n"


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
@pytest.mark.parametrize("first", ["#!/bin/sh\n", "", "# no program is named\n"])
def test_a_script_may_tidy_up_when_its_job_is_deleted(tmp_path: Path, shell: str, first: str) -> None:
    """TERM reaches all of the payload's processes; the one that counts is the script."""
    script = tmp_path / "42.SC"
    text = "trap 'sleep 0.5; echo tidied; exit 3' TERM; echo \"up $#$1\"; while :; do sleep 0.1; done\n"
    script.write_text(first + text)
    script.chmod(0o700)
    command = torque.command([shell], {}, f"{script} 'a  b'\n".encode())
    payload = subprocess.Popen(command.words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert payload.stdout is not None
    assert payload.stdout.readline() == "up 1a  b\n"
    os.killpg(payload.pid, 15)
    assert payload.wait(20) == 3
    assert payload.stdout.read() == "tidied\n"
    payload.stdout.close()
