"""OpenPBS's adapter: the carriers in their order, and every row of what its events are told."""

from __future__ import annotations

import json

import pytest

from lrms_vm.errors import SiteError, UsageError
from lrms_vm.lrms import openpbs
from lrms_vm.lrms.base import EPILOGUE, MAX_RETRIES, PROLOGUE, Action, Call, Outcome, Told
from lrms_vm.lrms.command import Command

FACTS = {
    "id": "42[3].head", "node": "n1.example.org", "euser": "physicist", "queue": "workq",
    "exec_vnode": "(n1:ncpus=2:mem=2gb)+(n2:ncpus=1)", "vnodes": ["n1"], "resources": {}, "variables": {},
    "run_count": 2, "jobs": ["42[3].head"],
}  # fmt: skip


def call(**facts: object) -> Call:
    return Call(("300",), {}, {openpbs.FACTS: json.dumps({**FACTS, **facts}).encode()})


# -- the carriers, in their order


def test_the_resource_wins_and_the_other_options_come_along() -> None:
    asking = call(resources={"vm_image": "deb12"}, variables={"VM_IMAGE": "other", "VM_MEMORY": "2G", "VM_CPUS": "1"})
    assert openpbs.parse_options(asking) == (
        {"vm-image": "deb12", "vm-memory": "2G", "vm-cpus": "1"},
        "-l vm_image",
    )


def test_then_the_variables() -> None:
    asking = call(resources={"vm_image": ""}, variables={"VM_IMAGE": "deb12"})
    assert openpbs.parse_options(asking) == ({"vm-image": "deb12"}, "VM_IMAGE")


def test_a_job_that_asks_for_nothing_is_told() -> None:
    with pytest.raises(UsageError):
        openpbs.parse_options(call(variables={"VM_MEMORY": "2G"}))


# -- the facts


def test_an_array_task_has_a_name_without_brackets_and_the_nodes_share() -> None:
    found = openpbs.identify(call(), uid=1001, gid=1001)
    assert (found.key, found.cpus, found.memory_mib, found.restart_count) == ("openpbs-42-3.n1", 2, 2048, 1)


@pytest.mark.parametrize(
    "wrong",
    [{"euser": "root"}, {"euser": ""}, {"euser": "a/b"}, {"id": "x"}, {"run_count": "1"}, {"vnodes": [1]}, {"more": 1}],
)
def test_what_our_hook_never_writes_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SiteError):
        openpbs.identify(call(**wrong), uid=1, gid=1)


# -- the way in


def test_an_array_tasks_script_is_found() -> None:
    """PBS writes its path for a shell."""
    path = "/var/spool/pbs/mom_priv/jobs/42[3].head.SC"
    line = b"/var/spool/pbs/mom_priv/jobs/42\\[3\\].head.SC\n"
    assert openpbs.command(["/bin/bash"], {}, line) == Command(("/bin/bash", "-c", 'exec "$0"', path), script_at=3)
    assert openpbs.command(["/bin/echo", "a\\["], {}, None) == Command(("/bin/echo", "a\\["))


# -- what the events are told: every row of the table

HELD = Told(1, (Action.HOLD,))
ROWS = [
    (PROLOGUE, Outcome.READY, 0, Told(0)),
    (PROLOGUE, Outcome.REQUEST, 0, Told(0, (Action.VERDICT,))),
    (PROLOGUE, Outcome.REQUEST, 9, Told(0, (Action.VERDICT,))),
    (PROLOGUE, Outcome.SITE, 0, Told(1, (Action.COUNT,), otherwise=HELD)),
    (PROLOGUE, Outcome.SITE, MAX_RETRIES - 1, Told(1, (Action.COUNT,), otherwise=HELD)),
    (PROLOGUE, Outcome.SITE, MAX_RETRIES, HELD),
    (PROLOGUE, Outcome.CONFIG, 0, HELD),
    (PROLOGUE, Outcome.NODE, 0, Told(1, (Action.TAKE_OUT, Action.COUNT), otherwise=HELD)),
    (PROLOGUE, Outcome.NODE, MAX_RETRIES, Told(1, (Action.TAKE_OUT, Action.HOLD))),
    (EPILOGUE, Outcome.READY, 0, Told(0)),
    (EPILOGUE, Outcome.LEFTOVERS, 0, Told(0, (Action.TAKE_OUT,))),
]


@pytest.mark.parametrize(("hook", "outcome", "retries", "told"), ROWS)
def test_what_the_events_are_told(hook: str, outcome: Outcome, retries: int, told: Told) -> None:
    assert openpbs.outcome(hook, outcome, retries=retries) == told


def test_an_instruction_is_one_line_of_plain_text() -> None:
    line = openpbs.instruction(Action.TAKE_OUT, "disk full, \n'x' \x07")
    assert json.loads(line) == {"do": "take out", "why": "lrms_vm: disk full x"}
    assert line.count("\n") == 1


def test_the_jobs_of_a_node_are_known_by_our_keys() -> None:
    assert openpbs.keys(["42[3].head", "7.head"], "n1") == {"openpbs-42-3.n1", "openpbs-7.n1"}
    with pytest.raises(SiteError):
        openpbs.keys(["?"], "n1")
