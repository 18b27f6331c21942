"""A sick node loses its VM features through scontrol, unless something of the job still runs there."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from lrms_vm import slurm_node
from lrms_vm.cli import main
from lrms_vm.config import Config
from lrms_vm.errors import NodeError, SiteError
from lrms_vm.lrms.base import Action, Call
from lrms_vm.request import Allocation

TEXT = (Path(__file__).parent.parent / "unit/data/slurm-22.05-node.txt").read_text()
JOB = Allocation("slurm", str(4_000_000_000 + os.getpid()), "n1", 1001, 1001, "alice", "/", cpus=1, memory_mib=700)
WELL = TEXT.replace("ActiveFeatures=ssd", "ActiveFeatures=vm,ssd,vm_qemu").replace(
    "lrms_vm: no VMs: libvirt is down", ""
)


@dataclass
class Controller:
    """A stand-in for scontrol that says `text` of the node and writes down what it is told."""

    directory: Path
    text: str = WELL
    fails: str = ""  # the word whose command fails

    @property
    def config(self) -> Config:
        tool, said = self.directory / "scontrol", self.directory / "said"
        said.write_text(self.text)
        tool.write_text(
            f"""#!/bin/sh
            case "$*" in
            *show*) cat {said} ;;
            *"{self.fails or "no such word"}"*) echo refused >&2; exit 1 ;;
            *) printf '%s|' "$@" >> {self.directory}/told; echo >> {self.directory}/told ;;
            esac
            """
        )
        tool.chmod(0o755)
        return Config(hypervisor="qemu", scontrol=str(tool), sick_node="no-vm")

    @property
    def told(self) -> list[str]:
        file = self.directory / "told"
        return file.read_text().splitlines() if file.exists() else []


def act(action: Action, controller: Controller) -> None:
    slurm_node.act(action, "hypervisor-down: libvirt is down", JOB, Call(), controller.config)


def test_our_features_go_and_the_reason_is_on_the_node(tmp_path: Path) -> None:
    controller = Controller(tmp_path)
    act(Action.NO_VM, controller)
    assert controller.told == [
        "update|nodename=n1|activefeatures=ssd|comment=lrms_vm: no VMs: hypervisor-down: libvirt is down|"
    ]


def test_a_node_that_lost_them_already_is_left_alone(tmp_path: Path) -> None:
    controller = Controller(tmp_path, text=TEXT)
    act(Action.NO_VM, controller)
    assert controller.told == []


def test_a_node_without_features_has_none_to_lose(tmp_path: Path) -> None:
    controller = Controller(tmp_path, text=TEXT.replace("vm,vm_qemu,ssd", "ssd"))
    with pytest.raises(SiteError) as caught:
        act(Action.NO_VM, controller)
    assert caught.value.code == "features-missing"


def test_while_a_hypervisor_or_a_connection_of_the_job_runs_the_node_is_not_spared(tmp_path: Path) -> None:
    controller = Controller(tmp_path)
    for argv, env in (
        (["sh", "-c", "sleep 30; :", f"guest=lrms_vm-{JOB.key},debug-threads=on"], {}),
        (["sleep", "30"], {"LRMS_VM_KEY": JOB.key}),
    ):
        process = subprocess.Popen(argv, env={**os.environ, **env}, process_group=0)
        try:
            with pytest.raises(NodeError, match=str(process.pid)):
                act(Action.NO_VM, controller)
        finally:
            os.killpg(process.pid, 9)
            process.wait()
    assert controller.told == []
    act(Action.NO_VM, controller)
    assert len(controller.told) == 1


def test_a_job_is_sent_back_and_one_that_cannot_be_is_not_held_against_the_node(tmp_path: Path) -> None:
    controller = Controller(tmp_path)
    act(Action.SEND_BACK, controller)
    assert controller.told == [f"requeue|{JOB.job_id}|"]
    act(Action.SEND_BACK, Controller(tmp_path, fails="requeue"))


def test_a_health_check_without_a_configuration_fails_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody knows then what the site wants Slurm to be told."""
    code = main(["--config", str(tmp_path / "absent.toml"), "health", "--lrms=slurm", "--node=n1"])
    assert code != 0
    assert "absent.toml" in capsys.readouterr().err
