"""What cannot be carried exactly is refused at once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from lrms_vm.errors import UsageError
from lrms_vm.submit import JobDescription, Resources
from lrms_vm.submit.session import environment
from lrms_vm.submit.systems import detect
from lrms_vm.submit.words import clock, path


@pytest.mark.parametrize(
    "wrong",
    [
        {"executable": ""},
        {"executable": "-x"},
        {"executable": "a\0b"},
        {"arguments": ("a\0",)},
        {"arguments": ("\ud800",)},
        {"arguments": "one text"},
        {"environment": {"A-B": "x"}},
        {"environment": {"LRMS_VM_IMAGE": "x"}},
        {"environment": {"UID": "0"}},
        {"environment": {"A": "\0"}},
        {"name": "two words"},
        {"name": "7up"},
        {"queue": "main;x"},
        {"account": "a b"},
        {"directory": "relative"},
        {"directory": "/a\nb"},
        {"stdout_path": "a%b"},
        {"stdout_path": "host:/a"},
        {"stderr_path": "$HOME/x"},
        {"stdin_path": "-"},
        {"stdout_path": " "},
        {"duration": timedelta(0)},
        {"resources": Resources(node_count=0)},
        {"custom_attributes": {"comment": "x"}},
        {"custom_attributes": {"lsf.q": "x"}},
        {"custom_attributes": {"slurm.comment": "\0"}},
    ],
)
def test_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        JobDescription(**{"executable": "true", **wrong})


def test_arguments_may_be_anything_else() -> None:
    texts = ("", " ", "'\"$`\\", "\n\r\n#SBATCH -x", "é", "\udcff", "-x", "--")
    assert JobDescription("x y", texts).arguments == texts


def test_marks_in_paths() -> None:
    assert path("{job}.{index}", "x", job="%A", index="%a") == "%A.%a"
    with pytest.raises(UsageError):
        path("{index}", "x", job="%j", index=None)
    assert clock(timedelta(days=2, seconds=0.2)) == "48:00:01"


ENVIRON = {"HOME": "/root", "PATH": "/bin", "SEED": "1", "LD_PRELOAD": "x", "SLURM_JOB_ID": "1", "UID": "0", "A-B": "x"}


def test_nothing_is_inherited_unless_asked() -> None:
    assert environment(JobDescription("true", environment={"A": "1"}), ENVIRON) == {"A": "1"}


def test_inherited_on_a_host_and_in_a_guest() -> None:
    host = JobDescription("true", environment={"SEED": "2"}, inherit_environment=True)
    assert environment(host, ENVIRON) == {"HOME": "/root", "PATH": "/bin", "SEED": "2", "LD_PRELOAD": "x"}
    guest = JobDescription("true", image="a", inherit_environment=True)
    assert environment(guest, ENVIRON) == {"SEED": "1"}


SLURM = {"sbatch", "squeue", "scontrol"}
ENGINE = {"qsub", "qstat", "qconf", "qacct"}
TORQUE = {"qsub", "qstat", "qmgr", "momctl"}
OPENPBS = {"qsub", "qstat", "qmgr", "pbs_rstat"}


@pytest.mark.parametrize(
    ("programs", "environ", "system"),
    [
        (SLURM, {}, "slurm"),
        (SLURM | {"qsub", "qstat"}, {}, "slurm"),  # slurm-wlm-torque's wrappers
        (ENGINE, {}, "gridengine"),
        (TORQUE, {}, "torque"),
        ({"qsub", "qmgr"}, {}, "torque"),
        (OPENPBS, {}, "openpbs"),
        (SLURM | ENGINE, {"SGE_ROOT": "/x"}, "gridengine"),
        (SLURM | ENGINE, {"SLURM_CONF": "/x"}, "slurm"),
        (SLURM, {"SGE_ROOT": "/x"}, "slurm"),
    ],
)
def test_which_system(programs: set[str], environ: dict[str, str], system: str) -> None:
    found = detect(programs, environ)
    assert found.system == system
    assert found.why


@pytest.mark.parametrize(
    ("programs", "environ", "asked", "code"),
    [
        (set(), {}, None, "lrms-unknown"),
        ({"qsub"}, {}, None, "lrms-unknown"),
        (SLURM | ENGINE, {}, None, "lrms-ambiguous"),
        (SLURM | ENGINE, {"SGE_ROOT": "/x", "SLURM_CONF": "/y"}, None, "lrms-ambiguous"),
        (SLURM, {}, "lsf", "lrms-unknown"),
    ],
)
def test_which_system_nobody_can_say(programs: set[str], environ: dict[str, str], asked: str | None, code: str) -> None:
    with pytest.raises(UsageError) as caught:
        detect(programs, environ, asked=asked)
    assert caught.value.code == code


def test_the_system_that_is_asked_for() -> None:
    assert detect(SLURM | ENGINE, {}, asked="gridengine").system == "gridengine"
