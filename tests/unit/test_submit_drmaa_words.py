"""The measured differences of the DRMAA libraries, row by row; and that nothing but texts and flags reaches one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from lrms_vm.errors import UsageError
from lrms_vm.submit import JobDescription, JobState, Resources
from lrms_vm.submit.carry import Way, carry
from lrms_vm.submit.description import SYSTEMS
from lrms_vm.submit.drmaa_words import INCREMENT, status, templates


def info(exited: bool, signaled: bool, aborted: bool, code: int, signal: int | None = None) -> dict[str, Any]:
    return {"hasExited": exited, "hasSignal": signaled, "wasAborted": aborted, "exitStatus": code, "signal": signal}


@pytest.mark.parametrize(
    ("system", "told", "terminated", "wanted"),
    [
        ("gridengine", info(True, False, False, 0), False, (JobState.COMPLETED, 0, None)),
        ("gridengine", info(True, False, False, 127), False, (JobState.FAILED, 127, None)),
        ("gridengine", info(True, False, False, 130), False, (JobState.FAILED, 130, None)),
        ("gridengine", info(False, False, True, 0), True, (JobState.CANCELED, None, None)),
        ("gridengine", info(False, False, True, 0), False, (JobState.CANCELED, None, None)),
        ("gridengine", info(False, True, False, 0, 9), False, (JobState.FAILED, None, 9)),
        ("torque", info(True, False, False, 7), False, (JobState.FAILED, 7, None)),
        ("torque", info(False, False, True, 127), False, (JobState.FAILED, 127, None)),
        ("torque", info(False, False, True, 255), False, (JobState.FAILED, 255, None)),
        ("torque", info(False, True, True, 15, 15), True, (JobState.CANCELED, None, 15)),
        ("openpbs", info(False, True, True, 15, 15), False, (JobState.FAILED, None, 15)),
        ("slurm", info(True, False, False, 0), True, (JobState.CANCELED, None, None)),
        ("slurm", info(True, False, False, 0), False, (JobState.COMPLETED, 0, None)),
        ("slurm", info(True, False, False, 130), False, (JobState.FAILED, 130, None)),
        ("slurm", info(False, False, True, 0), False, (JobState.FAILED, None, None)),
        ("slurm", info(False, True, False, 0, None), False, (JobState.FAILED, None, None)),
    ],
)
def test_one_meaning(
    system: str, told: dict[str, Any], terminated: bool, wanted: tuple[JobState, int | None, int | None]
) -> None:
    look = status("7", {"state": "done", "info": told}, system, terminated=terminated)
    assert look.result is not None
    assert (look.state, look.result.exit_code, look.result.signal) == wanted


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_job_that_we_terminated_never_reads_as_success(system: str) -> None:
    ways = [(True, False, False), (False, False, True), (False, True, True)]
    for told in (info(*way, code, 15) for way in ways for code in range(256)):
        look = status("7", {"state": "done", "info": told}, system, terminated=True)
        assert look.result is not None
        assert look.state is JobState.CANCELED
        assert look.result.returncode != 0


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("queued_active", JobState.QUEUED),
        ("user_on_hold", JobState.HELD),
        ("running", JobState.ACTIVE),
        ("user_suspended", JobState.SUSPENDED),
        ("undetermined", JobState.UNKNOWN),
        ("done", JobState.ACTIVE),
        ("failed", JobState.FAILED),
        ("of a later DRMAA", JobState.UNKNOWN),
    ],
)
def test_states_without_an_end(word: str, state: JobState) -> None:
    assert status("7", {"state": word}, "gridengine", terminated=False).state is state


FULL = JobDescription(
    "prog",
    ("it's", "a\nb"),
    directory="/home/a b",
    stdin_path="in put",
    stdout_path="out.{index}",
    duration=timedelta(seconds=3601),
    queue="main",
    account="hep",
    name="jets",
    held=True,
    resources=Resources(memory_mib=1000),
    image="hep-jets",
)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("count", [None, 3])
def test_nothing_but_texts_and_flags_reaches_a_library(system: str, count: int | None) -> None:
    job = FULL if count else JobDescription("prog", duration=timedelta(hours=1), image="a")
    for template in templates(carry(job, system, Way.LIBRARY), system, {"A": "x\0y".replace("\0", "")}, count):
        for name, value in template.items():
            values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            assert all(isinstance(each, str) or each is True for each in values), name
            assert "\0" not in repr(value)
        assert "hardWallclockTimeLimit" not in template
        assert "'" not in template["args"][1]  # slurm-drmaa and pbs-drmaa would end their own quotes there
        assert "\n" not in template["args"][1]


@pytest.mark.parametrize(
    ("system", "native"),
    [
        ("slurm", "-p main -A hep -t 1:01 --mem=1000 --comment=lrms_vm:hep-jets"),
        ("gridengine", "-q main -A hep -l h_rt=3601 -l mem_free=1000M -w n -l vm_capable=TRUE"),
        ("torque", "-q main -A hep -j oe -l walltime=1:00:01 -l mem=1000mb"),
        ("openpbs", "-q main -A hep -j oe -l walltime=1:00:01 -l select=1:ncpus=1:mem=1000mb"),
    ],
)
def test_the_native_specification(system: str, native: str) -> None:
    first, *rest = templates(carry(FULL, system, Way.LIBRARY), system, {}, 3)
    assert first["nativeSpecification"] == native
    if system in ("torque", "openpbs"):  # pbs-drmaa's bulks are single jobs without an index
        names = [f":/home/a b/out.{index}" for index in (1, 2, 3)]  # it leaves a relative one to the home directory
        assert [template["outputPath"] for template in (first, *rest)] == names
        assert "BULK_INDEX=2" in rest[0]["args"][1]
        assert "workingDirectory" not in first
    else:
        assert rest == []
        assert first["outputPath"] == f":out.{INCREMENT}"
        assert first["workingDirectory"] == "/home/a b"


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_job_that_names_no_directory_runs_in_the_submitters(system: str) -> None:
    """pbs-drmaa would start it in the home directory."""
    for count in (None, 3):
        for template in templates(carry(JobDescription("prog"), system, Way.LIBRARY), system, {}, count, here="/here"):
            if system in ("slurm", "gridengine"):
                assert template["workingDirectory"] == "/here"
            else:
                assert 'LRMS_VM_V=/here; cd "$LRMS_VM_V" ||' in template["args"][1]


def test_a_job_id_in_a_path_is_nothing_drmaa_can_say() -> None:
    job = JobDescription("true", stdout_path="{job}.out")
    with pytest.raises(UsageError):
        templates(carry(job, "gridengine", Way.LIBRARY), "gridengine", {}, None)
