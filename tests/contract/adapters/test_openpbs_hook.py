"""The one hook file of OpenPBS, each of its events, with a stand-in for our isolated Python and a small `pbs`."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lrms_vm.errors import SiteError
from lrms_vm.lrms import openpbs
from lrms_vm.lrms.base import Action, Call
from tests.contract.adapters import fake_pbs

HOOK = Path(__file__).parents[3] / "prologue" / "openpbs.hook.py"


class Node:
    """A node with our hook: `tells` is what our Python says there, `asked` how it was called."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log: list[str] = []
        self.vnodes = {"n1": fake_pbs.Vnode()}
        (root / "home" / "mom_priv" / "jobs").mkdir(parents=True)
        for name in ("verdicts", "jobs"):
            (root / "run" / name).mkdir(parents=True)
        self.tells()

    def tells(self, *lines: str, exit_code: int = 0, stderr: str = "") -> None:
        python = self.root / "python"
        said = "".join(lines)
        python.write_text(
            f"#!/bin/sh\nfor word; do printf '%s\\n' \"$word\"; done >{self.root}/argv\ncat >{self.root}/stdin\nenv >{self.root}/env\n"
            f"cat <<'END'\n{said}END\nprintf '%s' '{stderr}' >&2\nexit {exit_code}\n"
        )
        python.chmod(0o755)

    def verdict(self, name: str) -> Path:
        path = self.root / "run" / "verdicts" / name
        path.write_text("{}")
        return path

    def run(
        self, kind: str, job: fake_pbs.Job | None, change: Callable[[fake_pbs.Event], None] | None = None
    ) -> fake_pbs.Event:
        event = fake_pbs.Event(kind, job, self.vnodes)
        if change is not None:
            change(event)
        text = HOOK.read_text()
        names = {
            "PYTHON": str(self.root / "python"), "CONFIG": "/etc/x.toml", "RUN_DIR": str(self.root / "run"),
            "EXEC": "/opt/lrms-vm-exec", "ALARM_S": 300,
        }  # fmt: skip
        for name, value in names.items():
            assert f'"@{name}@"' in text
            text = text.replace(f'"@{name}@"', repr(value))
        script = self.root / "hook.py"
        script.write_text(text)
        before = sys.modules.get("pbs")
        sys.modules["pbs"] = fake_pbs.module(event, self.root / "home", self.log)
        try:
            with pytest.raises(SystemExit):
                runpy.run_path(str(script))
        finally:
            sys.modules.pop("pbs") if before is None else sys.modules.update(pbs=before)
        return event

    @property
    def argv(self) -> list[str]:
        path = self.root / "argv"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def given(self) -> Call:
        return Call(argv=("300",), files={openpbs.FACTS: (self.root / "stdin").read_bytes()})


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def job(job_id: str = "42.server", user: str = "physicist", /, **variables: str) -> fake_pbs.Job:
    resources = {"ncpus": 2, "vm_image": variables.pop("resource", None)}
    return fake_pbs.Job(job_id, resources, {"PBS_O_WORKDIR": "/home/physicist", **variables}, user)


ALL = [name for name in fake_pbs.EVENTS if name != "EXECHOST_STARTUP"]


@pytest.mark.parametrize("kind", ALL)
def test_a_job_that_asks_for_nothing_is_untouched(node: Node, kind: str) -> None:
    event = node.run(kind, job())
    assert event.accepted
    assert node.argv == []
    assert (event.progname, event.argv) == ("/bin/bash", [])


# -- queuejob


@pytest.mark.parametrize("name", ["hep-jets", "a/b@1.2", "sha256:00ff", "/images/a.img", "a+b_c:d"])
def test_a_name_is_queued_by_either_carrier(node: Node, name: str) -> None:
    assert node.run("QUEUEJOB", job(resource=name)).accepted
    assert node.run("QUEUEJOB", job(VM_IMAGE=name)).accepted


@pytest.mark.parametrize("name", ["a b", "a,b", "a;b", "../x", "a/../b", "-x", "$(id)", "x\n", "x" * 2000])
def test_what_is_no_name_is_rejected_at_once(node: Node, name: str) -> None:
    event = node.run("QUEUEJOB", job(resource=name))
    assert not event.accepted
    assert event.said.startswith("lrms_vm: ")


# -- execjob_begin


def test_the_facts_of_the_event_reach_our_isolated_python(node: Node) -> None:
    (node.root / "home/mom_priv/jobs/41.server.JB").touch()
    assert node.run("EXECJOB_BEGIN", job("42[3].server", VM_IMAGE="hep-jets", VM_CPUS="1")).accepted
    assert node.argv == ["-I", "-m", "lrms_vm", "--config", "/etc/x.toml", "prologue", "--lrms", "openpbs", "--", "300"]
    found = openpbs.identify(node.given, uid=1001, gid=1001)
    assert (found.key, found.cpus, found.memory_mib) == ("openpbs-42-3.n1", 2, 1024)
    assert (found.user, found.work_dir, found.partition) == ("physicist", "/home/physicist", "workq")
    assert openpbs.parse_options(node.given) == ({"vm-image": "hep-jets", "vm-cpus": "1"}, "VM_IMAGE")
    assert openpbs.keys(openpbs.jobs_here(node.given), "n1") == {"openpbs-41.n1", "openpbs-42-3.n1"}


def test_nothing_of_pbss_environment_reaches_it(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "LD_PRELOAD_X", "PBS_JOBCOOKIE"):
        monkeypatch.setenv(name, "/evil")
    node.run("EXECJOB_BEGIN", job(resource="hep-jets"))
    assert "/evil" not in (node.root / "env").read_text()


def test_what_is_held_is_rejected_with_the_reason_for_administrators(node: Node) -> None:
    node.tells(openpbs.instruction(Action.HOLD, "config-missing: x"), exit_code=1, stderr="lrms_vm: no configuration")
    wanted = job(resource="hep-jets")
    event = node.run("EXECJOB_BEGIN", wanted)
    assert (event.accepted, event.said) == (False, "lrms_vm: no configuration")
    assert (wanted.Hold_Types, wanted.reruns) == ("hold s", 1)
    assert node.vnodes["n1"].state == "free"


def test_the_sites_fault_runs_it_again(node: Node) -> None:
    node.tells(exit_code=1, stderr="lrms_vm: image server down")
    wanted = job(resource="hep-jets")
    event = node.run("EXECJOB_BEGIN", wanted)
    assert (event.accepted, wanted.Hold_Types, wanted.reruns) == (False, None, 1)


def test_the_nodes_fault_takes_it_out_and_runs_the_job_elsewhere(node: Node) -> None:
    node.tells(openpbs.instruction(Action.TAKE_OUT, "hypervisor-down: dead"), exit_code=1)
    wanted = job(resource="hep-jets")
    event = node.run("EXECJOB_BEGIN", wanted)
    assert (event.accepted, wanted.Hold_Types, wanted.reruns) == (False, None, 1)
    assert (node.vnodes["n1"].state, node.vnodes["n1"].comment) == ("offline", "lrms_vm: hypervisor-down: dead")


@pytest.mark.parametrize("exit_code", [2, 64, 127, 137])
def test_a_program_that_ends_oddly_holds_the_job(node: Node, exit_code: int) -> None:
    node.tells(exit_code=exit_code)
    wanted = job(resource="hep-jets")
    assert node.run("EXECJOB_BEGIN", wanted).accepted is False
    assert wanted.Hold_Types == "hold s"


def test_a_program_that_is_not_there_or_talks_nonsense_holds_the_job(node: Node) -> None:
    node.tells("nonsense\n", exit_code=1)
    first, second = job(resource="x"), job(resource="x")
    assert node.run("EXECJOB_BEGIN", first).accepted is False
    (node.root / "python").unlink()
    assert node.run("EXECJOB_BEGIN", second).accepted is False
    assert (first.Hold_Types, second.Hold_Types) == ("hold s", "hold s")


# -- between


def test_without_a_verdict_nothing_runs(node: Node) -> None:
    wanted = job(resource="hep-jets")
    assert node.run("EXECJOB_PROLOGUE", wanted).accepted is False
    assert wanted.Hold_Types == "hold s"
    assert node.run("EXECJOB_LAUNCH", wanted).accepted is False


def test_the_payload_is_led_into_the_guest(node: Node) -> None:
    path = node.verdict("openpbs-42-3.n1.json")
    wanted = job("42[3].server", resource="hep-jets")
    assert node.run("EXECJOB_PROLOGUE", wanted).accepted
    event = node.run("EXECJOB_LAUNCH", wanted)
    options = ["--lrms", "openpbs", "--commands", "/opt/pbs/bin", "--verdict", str(path)]
    start = ["/opt/lrms-vm-exec", "exec", *options, "--"]
    assert (event.progname, event.argv) == ("/opt/lrms-vm-exec", [*start, "/bin/bash"])

    def task(event: fake_pbs.Event) -> None:
        event.progname, event.argv = "/bin/echo", ["/bin/echo", "-n", "a b"]

    assert node.run("EXECJOB_LAUNCH", wanted, task).argv == [*start, "/bin/echo", "-n", "a b"]


def test_a_verdict_leads_into_the_guest_whatever_the_job_says_now(node: Node) -> None:
    node.verdict("openpbs-42.n1.json")
    assert node.run("EXECJOB_LAUNCH", job()).progname == "/opt/lrms-vm-exec"


# -- after


@pytest.mark.parametrize("kind", ["EXECJOB_EPILOGUE", "EXECJOB_END"])
@pytest.mark.parametrize("exit_code", [0, 1, 127])
def test_the_end_is_always_accepted(node: Node, kind: str, exit_code: int) -> None:
    node.verdict("openpbs-42.n1.json")
    node.tells(openpbs.instruction(Action.TAKE_OUT, "leftovers: x"), exit_code=exit_code)
    wanted = job(resource="hep-jets")
    assert node.run(kind, wanted).accepted
    assert node.argv[5] == "epilogue"
    assert (wanted.Hold_Types, wanted.reruns) == (None, 0)
    assert node.vnodes["n1"].comment == "lrms_vm: leftovers: x"


def test_a_job_of_which_something_is_noted_is_cleaned_up(node: Node) -> None:
    (node.root / "run/jobs/openpbs-42.n1").mkdir()
    node.run("EXECJOB_END", job())
    assert node.argv[5] == "epilogue"


def test_a_starting_node_is_reaped_but_for_the_jobs_it_has(node: Node) -> None:
    assert node.run("EXECHOST_STARTUP", None).accepted
    assert node.argv[5:] == ["reap", "--lrms", "openpbs", "--node", "n1", "--", "none"]
    (node.root / "home/mom_priv/jobs/7.server.SC").touch()
    node.run("EXECHOST_STARTUP", None)
    assert node.argv[-2:] == ["--", "7.server"]


@pytest.mark.parametrize(
    "broken", [b"", b"[]", b"{}", b'{"id": 7}', b"[" * 100_000, json.dumps({"id": "1"}).encode()], ids=range(6)
)
def test_facts_that_are_none_are_refused(broken: bytes) -> None:
    with pytest.raises(SiteError):
        openpbs.identify(Call(files={openpbs.FACTS: broken}), uid=1, gid=1)
