"""The hook files: what they let pass, they hand to Python; and the shell and Python agree about what that is."""

from __future__ import annotations

import mmap
import os
import subprocess
import time
from pathlib import Path

import pytest

from lrms_vm import install, slurm_node
from lrms_vm.config import Config
from lrms_vm.errors import NodeError, SiteError
from lrms_vm.lrms import slurm
from lrms_vm.lrms.base import Call, Patience

CHECKOUT = Path(__file__).parent.parent.parent
HOOKS = {"prologue": CHECKOUT / "prologue" / "slurm.prolog", "epilogue": CHECKOUT / "epilogue" / "slurm.epilog"}


@pytest.fixture
def hook(tmp_path: Path):
    """The hook, with a stand-in that says how it was called instead of Python."""
    python = tmp_path / "it's python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)

    def run(verb: str, environ: dict[str, str]) -> str:
        text = HOOKS[verb].read_text()
        for name, value in (("PYTHON", python), ("CONFIG", "/etc/a b.toml"), ("RUN_DIR", tmp_path)):
            text = text.replace(f"@{name}@", "'" + str(value).replace("'", "'\\''") + "'")
        script = tmp_path / verb
        script.write_text(text)
        script.chmod(0o755)
        done = subprocess.run(
            [script],
            env={"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1", **environ},
            capture_output=True,
            check=True,
            text=True,
        )
        assert done.stderr == ""
        return done.stdout

    return run


COMMENTS = [
    "", "lrms_vm:x", "a lrms_vm:x", "a,lrms_vm:x", "a;lrms_vm:x", "a\tlrms_vm:x", "a\nlrms_vm:x", "lrms_vm:",
    "xlrms_vm:x", "lrms_vm", "see lrms_vm x:", "a=lrms_vm:x", "'lrms_vm:x'", "\\lrms_vm:x", "*lrms_vm:x", "\rlrms_vm:x",
    "\u00a0lrms_vm:x", "$(id) lrms_vm:$(id)", "`id`", "x" * 3000, '"lrms_vm:x', "]lrms_vm:x", "\x0blrms_vm:x", "-n lrms_vm:x",
]  # fmt: skip


@pytest.mark.parametrize("comment", COMMENTS)
@pytest.mark.parametrize("verb", HOOKS)
def test_shell_and_python_agree_on_the_comment(hook, verb: str, comment: str) -> None:
    environ = {"SLURM_JOB_COMMENT": comment}
    said = hook(verb, environ)
    assert bool(said) == slurm.wants_vm(environ)
    assert said in ("", f"-I -m lrms_vm --config /etc/a b.toml {verb} --lrms slurm\n")


@pytest.mark.parametrize("name", slurm.VARIABLES.values())
@pytest.mark.parametrize("verb", HOOKS)
def test_any_option_even_an_empty_one_goes_to_python(hook, verb: str, name: str) -> None:
    assert hook(verb, {name: ""})


@pytest.mark.parametrize(
    ("own", "given", "known"),
    [
        (True, None, "own"),
        (True, "/etc/given.conf", "given"),
        (True, "", "own"),
        (False, None, ""),
        (False, "/x", "/x"),
    ],
)
def test_the_health_check_knows_where_slurm_conf_is_though_slurmd_does_not_say(
    tmp_path: Path, own: bool, given: str | None, known: str
) -> None:
    directory = tmp_path / "its own"
    directory.mkdir()
    if own:
        (directory / "slurm.conf").write_text("")
    (tmp_path / "python").write_text('#!/bin/sh\necho "${SLURM_CONF-}"\n')
    (tmp_path / "python").chmod(0o755)
    names = {"PYTHON": str(tmp_path / "python"), "CONFIG": "/c", "SLURM_CONF_DIR": str(directory)}
    program = tmp_path / "slurm.health"
    program.write_bytes(install.hook("prologue/slurm.health", names))
    program.chmod(0o755)
    environ = {"SLURMD_NODENAME": "n1", **({} if given is None else {"SLURM_CONF": given})}
    done = subprocess.run([program], env=environ, capture_output=True, check=True, text=True)
    wanted = {"own": f"{directory}/slurm.conf", "given": "/etc/given.conf"}
    assert done.stdout.strip() == wanted.get(known, known)


@pytest.mark.parametrize("place", ["jobs/slurm-7.n1", "verdicts/slurm-7.n1.json"])
def test_the_epilogue_looks_for_what_is_noted_of_the_job(hook, tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir()
    assert hook("epilogue", {}) == ""
    (tmp_path / place).write_text("")
    assert hook("epilogue", {})
    assert hook("prologue", {}) == ""


@pytest.mark.parametrize(("running", "told"), [("7", "requeue 7"), ("", ""), ("71", "")])
def test_a_job_whose_guest_a_reboot_took_is_requeued_if_it_runs(tmp_path: Path, running: str, told: str) -> None:
    """One that was cancelled just before would be started again."""
    for name, text in (("squeue", f"echo {running}"), ("scontrol", f'echo "$@" > {tmp_path}/told')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "told").write_text("")
    slurm_node.lost("slurm-7.n1", Call(), Config(scontrol=str(tmp_path / "scontrol")))
    assert (tmp_path / "told").read_text().strip() == told


def test_a_controller_that_hangs_costs_a_reap_its_patience_once_and_not_for_each_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = list[str]()
    monkeypatch.setattr("lrms_vm.journal.say", lambda level, key, text: said.append(text))
    for name in ("squeue", "scontrol"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho asked >> {tmp_path}/asked\nsleep 60\n")
        (tmp_path / name).chmod(0o755)
    call, config = Call(patience=Patience(1.5)), Config(scontrol=str(tmp_path / "scontrol"))
    start = time.monotonic()
    for job_id in range(7, 27):
        slurm_node.lost(f"slurm-{job_id}.n1", call, config)
    assert 1.5 <= time.monotonic() - start < 4
    assert (tmp_path / "asked").read_text() == "asked\n"
    assert len(said) == 20 and all("not requeued: the Slurm controller does not answer" in line for line in said)
    assert "no answer within" in said[0] and "waited 2 s for it already, not asked" in said[-1]


def test_where_the_patience_is_spent_the_blame_stays_the_site_s(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="not asked: /no/such/scontrol") as caught:
        slurm_node.look_at_node("n1", Call(patience=Patience(0)), Config(scontrol="/no/such/scontrol"))
    assert (caught.value.code, caught.value.exit_code) == ("controller-down", 75)


def test_a_plugin_that_was_replaced_under_slurmd_wants_a_restart_and_no_installation(tmp_path: Path) -> None:
    plugin, pid = tmp_path / "lrms_vm.so", os.getpid()
    plugin.write_bytes(b"old")
    with plugin.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
        slurm_node.require_plugin(str(plugin), slurmd_pid=pid)
        (tmp_path / "new").write_bytes(b"new")
        (tmp_path / "new").replace(plugin)  # as install.apply does
        with pytest.raises(NodeError, match="before it was replaced") as caught:
            slurm_node.require_plugin(str(plugin), slurmd_pid=pid)
        assert (caught.value.code, caught.value.hint) == ("plugin-missing", "restart slurmd")
    with pytest.raises(NodeError, match="has not loaded") as caught:
        slurm_node.require_plugin(str(plugin), slurmd_pid=pid)
    assert "lrms-vm install" in caught.value.hint


def test_a_comment_is_set_without_waiting_for_the_controller(tmp_path: Path) -> None:
    tool = tmp_path / "scontrol"
    tool.write_text(
        f"""#!/bin/sh
        sleep 0.5
        printf '%s|' "$SLURM_CONF" "$@" > {tmp_path}/told.new
        mv {tmp_path}/told.new {tmp_path}/told
        """
    )
    tool.chmod(0o755)
    argv = slurm.comment_argv(str(tool), "7", 'image=a signer="CN=A B"')
    start = time.monotonic()
    slurm_node.annotate(argv, {"SLURM_CONF": "/etc/x.conf", "LD_PRELOAD": "/x.so"}, log=tmp_path / "log")
    assert time.monotonic() - start < 0.4
    while not (tmp_path / "told").exists() and time.monotonic() < start + 10:
        time.sleep(0.02)
    assert (tmp_path / "told").read_text() == '/etc/x.conf|update|jobid=7|admincomment=image=a signer="CN=A B"|'
