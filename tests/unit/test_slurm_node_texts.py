"""What a node is said to be able to do, and how a sick one loses its VMs. The text was recorded from Slurm 22.05.8."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lrms_vm.errors import SiteError
from lrms_vm.lrms import slurm
from lrms_vm.lrms.base import EPILOGUE, MAX_RETRIES, PROLOGUE, Action, Outcome, Told

TEXT = (Path(__file__).parent / "data/slurm-22.05-node.txt").read_text()
NODE = slurm.parse_node(TEXT, "n1")


def test_a_node_is_read() -> None:
    assert (
        slurm.Node(
            name="n1",
            available=("vm", "vm_qemu", "ssd"),
            active=("ssd",),
            guests=2,
            cpus=2,
            memory_mib=4000,
            state="IDLE",
            comment="lrms_vm: no VMs: libvirt is down",
        )
        == NODE
    )


@pytest.mark.parametrize(
    ("gres", "guests"),
    [("vm:4", 4), ("vm:0", 0), ("vm:4(S:0-1)", 4), ("gpu:2,vm:4", 4), ("(null)", None), ("vmware:4", None), ("", None)],
)
def test_guests_are_counted_where_the_gres_is_vm(gres: str, guests: int | None) -> None:
    assert slurm.parse_node(TEXT.replace("gpu:tesla:2(S:0),vm:2", gres), "n1").guests == guests


@pytest.mark.parametrize("text", ["", "slurm_load_node error", TEXT.replace("NodeName=n1 ", "NodeName=n11 ")])
def test_an_answer_about_no_such_node_is_the_sites_fault(text: str) -> None:
    with pytest.raises(SiteError) as caught:
        slurm.parse_node(text, "n1")
    assert caught.value.code == "controller-unreadable"


def test_a_sick_node_loses_our_features_and_keeps_the_others() -> None:
    well = replace(NODE, active=("vm", "ssd", "vm_qemu"), comment="")
    assert slurm.without_vm(well, "qemu") == ("ssd",)
    assert slurm.features_argv("/s", well, ("ssd",), "no\nlibvirt") == [
        "/s", "update", "nodename=n1", "activefeatures=ssd", "comment=lrms_vm: no VMs: no libvirt",
    ]  # fmt: skip
    assert slurm.with_vm(NODE, "qemu") == ("ssd", "vm", "vm_qemu")
    assert slurm.with_vm(well, "qemu") == well.active
    assert slurm.features_argv("/s", NODE, ("ssd", "vm"), "")[-1] == "comment="


def test_a_node_is_given_only_what_its_administrators_gave_it() -> None:
    assert slurm.with_vm(replace(NODE, available=("ssd",)), "qemu") == ("ssd",)
    assert slurm.without_vm(replace(NODE, available=("ssd",)), "qemu") is None


def test_the_administrators_own_comment_stays() -> None:
    argv = slurm.features_argv("/s", replace(NODE, comment="rack 7"), (), "sick")
    assert not [word for word in argv if word.startswith("comment=")]


def test_a_reason_is_one_bounded_line() -> None:
    assert len(slurm.features_argv("/s", NODE, (), "x\n" * 5000)[-1]) < 250


def test_a_sick_nodes_job_fails_closed_and_is_sent_back_three_times() -> None:
    told = slurm.outcome(PROLOGUE, Outcome.SICK, retries=0)
    assert told.exit_code == 0  # or slurmd drains the node
    assert told.actions == (Action.NO_VM, Action.VERDICT, Action.COUNT, Action.SEND_BACK)
    last = slurm.outcome(PROLOGUE, Outcome.SICK, retries=MAX_RETRIES)
    assert last.actions == (Action.NO_VM, Action.VERDICT)
    drained = Told(1, (Action.TAKE_OUT,))
    for hook in (PROLOGUE, EPILOGUE):
        assert slurm.outcome(hook, Outcome.SICK, retries=0).otherwise == drained
