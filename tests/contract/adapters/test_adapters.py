"""What every adapter keeps, whatever its batch system: one class, every adapter, every outcome.

An adapter is added here by a `Case`: how its hooks are called for a job, with a request and without.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import pytest

from lrms_vm.cli import hooks
from lrms_vm.errors import ConfigError, GuestLost, LrmsVmError, NodeError, RequestError, SiteError, UsageError
from lrms_vm.lrms import gridengine, local, openpbs, slurm, torque
from lrms_vm.lrms.base import EPILOGUE, MAX_RETRIES, PROLOGUE, Action, Call, Outcome, Told, outcome_of
from lrms_vm.request import Allocation, parse_request

IMAGE, USER, NODE = "hep-jets@1.2", "physicist", "n1"
OUTCOMES = [(PROLOGUE, one) for one in Outcome if one not in (Outcome.LEFTOVERS, Outcome.SICK)]  # SICK: Slurm's alone
OUTCOMES += [(EPILOGUE, one) for one in (Outcome.READY, Outcome.LEFTOVERS)]


@dataclass(frozen=True)
class Case:
    """An adapter and its calls."""

    name: str
    identify: Callable[[Call], Allocation]
    parse_options: Callable[[Call], tuple[dict[str, str], str]]
    outcome: Callable[..., Told]
    call: Callable[[str | None], Call]  # of a job that asks for this image
    sends_back: tuple[int, ...] = ()  # the exit codes for which the batch system starts the job again, by itself
    fails_closed: bool = True  # its prologue's exit code alone keeps the job from running; else a refused verdict may


def slurm_call(image: str | None) -> Call:
    environ = {
        "SLURM_JOB_ID": "42", "SLURMD_NODENAME": NODE, "SLURM_JOB_UID": "1001", "SLURM_JOB_GID": "1001",
        "SLURM_JOB_USER": USER, "SLURM_JOB_WORK_DIR": "/home/physicist",
    }  # fmt: skip
    return Call(environ=environ if image is None else {**environ, "SPANK_VM_IMAGE": image})


def gridengine_call(image: str | None) -> Call:
    config = (
        f"h_vmem=INFINITY\nh_vmem_is_consumable_job=0\nh_rss=INFINITY\njob_owner={USER}\ncwd=/home/physicist\n"
        f"host_slots=2\nqueue=vm.q\nhost={NODE}\njob_id=42\nja_task_id=0\n"
    )
    environment = b"A=1\n" if image is None else f"A=1\nVM_IMAGE={image}\n".encode()
    return Call(files={"config": config.encode(), "environment": environment, "directory": b"42.1"})


def torque_call(image: str | None) -> Call:
    resources = "nodes=1:ppn=2" if image is None else f"nodes=1:ppn=2,other=vm:{image}"
    argv = ("42.head", USER, "users", "job", resources, "batch", "", "/var/spool/torque/mom_priv/jobs/42.head.SC")
    qstat = b"Job Id: 42.head\n    exec_host = n1/0-1\n    Variable_List = A=1\n"
    environ = {"PBS_O_WORKDIR": "/home/physicist"}
    return Call(argv, environ, {torque.HOST: b"n1.example.org", torque.QSTAT: qstat})


def openpbs_call(image: str | None) -> Call:
    facts = {
        "id": "42.head", "node": NODE, "euser": USER, "queue": "workq", "exec_vnode": "(n1:ncpus=2)", "vnodes": [NODE],
        "resources": {} if image is None else {"vm_image": image}, "variables": {"PBS_O_WORKDIR": "/home/physicist"},
        "run_count": 1, "jobs": ["42.head"],
    }  # fmt: skip
    return Call(("300",), {}, {openpbs.FACTS: json.dumps(facts).encode()})


_SLURM_CASE = Case(
    "slurm", lambda call: slurm.identify(call.environ), lambda call: slurm.parse_options(call.environ), slurm.outcome,
    slurm_call, sends_back=(), fails_closed=False,
)  # fmt: skip
_TORQUE_CASE = Case(
    "torque", partial(torque.identify, uid=1001, gid=1001), torque.parse_options, torque.outcome, torque_call, (2,)
)
CASES = [
    _SLURM_CASE,
    Case(
        "gridengine", partial(gridengine.identify, uid=1001, gid=1001), gridengine.parse_options, gridengine.outcome,
        gridengine_call, (99, 1),
    ),
    _TORQUE_CASE,
    replace(_TORQUE_CASE, name="torque-sister", outcome=partial(torque.outcome, sister=True), fails_closed=False),
    Case(
        "openpbs", partial(openpbs.identify, uid=1001, gid=1001), openpbs.parse_options, openpbs.outcome, openpbs_call,
        (1,), fails_closed=False,
    ),
]  # fmt: skip


def ways(told: Told) -> Iterator[Told]:
    """What may be done in the end: this, or what is done where an action fails."""
    yield told
    match told.otherwise:
        case int() as exit_code:
            yield Told(exit_code)
        case Told() as instead:
            yield from ways(instead)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
class TestAdapter:
    def test_it_is_known_to_the_hooks(self, case: Case) -> None:
        assert case.name in hooks.SYSTEMS
        assert case.name.startswith(hooks.system(case.name).NAME)

    def test_the_job_is_identified(self, case: Case) -> None:
        found = case.identify(case.call(IMAGE))
        assert (found.job_id, found.node, found.user, found.uid, found.gid) == ("42", NODE, USER, 1001, 1001)
        assert found.work_dir == "/home/physicist"
        assert found.key == f"{found.lrms}-42.{NODE}"
        assert found.key.partition(".")[2] == NODE, "a job id has no dot"

    def test_the_same_job_without_a_request_has_the_same_key(self, case: Case) -> None:
        assert case.identify(case.call(None)).key == case.identify(case.call(IMAGE)).key

    def test_the_request_is_brought_along(self, case: Case) -> None:
        options, source = case.parse_options(case.call(IMAGE))
        assert options == {"vm-image": IMAGE}
        assert parse_request(options, source=source).image.text == IMAGE

    def test_a_job_that_asks_for_nothing_is_told(self, case: Case) -> None:
        with pytest.raises(UsageError) as caught:
            case.parse_options(case.call(None))
        assert caught.value.code == "image-missing"

    @pytest.mark.parametrize("text", ["", " ", "a b", "a;b", "../x", "$(id)", "'", '"', "a\x07", "é", "x" * 5000])
    def test_a_hostile_name_is_refused_where_it_is_read(self, case: Case, text: str) -> None:
        with pytest.raises(RequestError):
            options, source = case.parse_options(case.call(text))
            parse_request(options, source=source)

    def test_what_is_no_hooks_call_is_refused(self, case: Case) -> None:
        for call in (Call(), Call(("x",), {"PATH": "/bin"}, {})):
            with pytest.raises(LrmsVmError):
                case.identify(call)

    @pytest.mark.parametrize(("hook", "outcome"), OUTCOMES)
    @pytest.mark.parametrize("retries", [0, 1, MAX_RETRIES, MAX_RETRIES + 5])
    def test_every_outcome_is_told(self, case: Case, hook: str, outcome: Outcome, retries: int) -> None:
        told = case.outcome(hook, outcome, retries=retries)
        assert all(0 <= way.exit_code <= 255 for way in ways(told))
        assert len(told.actions) == len(set(told.actions))

    def test_nothing_is_done_where_nothing_is_wrong(self, case: Case) -> None:
        for hook in (PROLOGUE, EPILOGUE):
            assert case.outcome(hook, Outcome.READY, retries=0) == Told(0)

    @pytest.mark.parametrize(
        "outcome", [one for hook, one in OUTCOMES if hook == PROLOGUE and one is not Outcome.READY]
    )
    @pytest.mark.parametrize("retries", [0, MAX_RETRIES])
    def test_a_job_without_its_guest_never_runs_on_the_host(self, case: Case, outcome: Outcome, retries: int) -> None:
        for way in ways(case.outcome(PROLOGUE, outcome, retries=retries)):
            assert way.exit_code != 0 if case.fails_closed else way.exit_code != 0 or Action.VERDICT in way.actions

    @pytest.mark.parametrize("retries", [0, MAX_RETRIES])
    def test_only_the_nodes_own_fault_takes_it_out(self, case: Case, retries: int) -> None:
        for outcome in (Outcome.REQUEST, Outcome.SITE, Outcome.CONFIG):
            for way in ways(case.outcome(PROLOGUE, outcome, retries=retries)):
                assert Action.TAKE_OUT not in way.actions
        assert Action.TAKE_OUT in case.outcome(PROLOGUE, Outcome.NODE, retries=retries).actions
        assert Action.TAKE_OUT in case.outcome(EPILOGUE, Outcome.LEFTOVERS, retries=retries).actions

    @pytest.mark.parametrize(
        "outcome", [one for hook, one in OUTCOMES if hook == PROLOGUE and one is not Outcome.READY]
    )
    def test_no_job_is_sent_back_for_ever(self, case: Case, outcome: Outcome) -> None:
        """Each time is counted, and the last time it is not sent back, or it is held, or this node takes no more."""
        if case.name == "torque-sister":
            return  # its code is always 0
        for way in ways(case.outcome(PROLOGUE, outcome, retries=0)):
            stops = {Action.HOLD, Action.COUNT, Action.TAKE_OUT} & set(way.actions)
            assert way.exit_code not in case.sends_back or stops or _puts_the_queue_out(case, way)
        for way in ways(case.outcome(PROLOGUE, outcome, retries=MAX_RETRIES)):
            stops = {Action.HOLD} & set(way.actions)
            assert way.exit_code not in case.sends_back or stops or _puts_the_queue_out(case, way)

    def test_a_finished_job_is_left_alone(self, case: Case) -> None:
        told = case.outcome(EPILOGUE, Outcome.LEFTOVERS, retries=0)
        assert Action.HOLD not in told.actions
        assert told.exit_code not in case.sends_back


def _puts_the_queue_out(case: Case, way: Told) -> bool:
    """Grid Engine: for 1 it puts the queue into its error state, so the job cannot come back here; Torque: 1 aborts."""
    return case.name == "gridengine" and way.exit_code == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, Outcome.READY), (RequestError("x"), Outcome.REQUEST), (UsageError("x"), Outcome.REQUEST),
        (SiteError("x"), Outcome.SITE), (ConfigError("x"), Outcome.CONFIG), (NodeError("x"), Outcome.NODE),
        (LrmsVmError("x"), Outcome.CONFIG), (GuestLost("x"), Outcome.CONFIG),
    ],
)  # fmt: skip
def test_blame_is_the_same_for_all(error: LrmsVmError | None, outcome: Outcome) -> None:
    assert outcome_of(error) is outcome


def test_no_batch_system_is_one_too() -> None:
    """`lrms-vm run`: no hooks, no outcome; its allocation is named as everybody's."""
    found = local.allocation(
        pid=42, node=NODE, uid=1, gid=1, user=USER, work_dir="/", cpus=1, memory="1G"
    )  # fmt: skip
    assert found.key == f"local-42.{NODE}"
