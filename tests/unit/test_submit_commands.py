"""Argument lists of the systems' own commands, and what they print: recorded on Slurm 22.05.8, Grid Engine 8.1.9; the
forms of Torque 6.1.3 and OpenPBS 23.06 after their manuals."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrms_vm.errors import SiteError, UsageError
from lrms_vm.submit import JobDescription, JobState, Resources, gridengine, pbs, slurm
from lrms_vm.submit.carry import Carried, Way, carry

FULL = JobDescription(
    "true",
    directory="/home/a b",
    stdin_path="in",
    stdout_path="out.{index}",
    duration=timedelta(hours=1, seconds=30),
    queue="main",
    account="hep",
    name="jets",
    held=True,
    resources=Resources(memory_mib=2048),
    image="hep-jets",
)


def made(system: str, job: JobDescription = FULL) -> Carried:
    return carry(job, system, Way.COMMANDS)


# -- Slurm


def test_sbatch() -> None:
    assert slurm.submit_argv("/usr/bin/sbatch", made("slurm"), 3) == [
        "/usr/bin/sbatch",
        "--parsable",
        "--export=ALL",
        "--job-name=jets",
        "--partition=main",
        "--account=hep",
        "--chdir=/home/a b",
        "--input=in",
        "--output=out.%a",
        "--time=1:00:30",
        "--mem=2048M",
        "--array=1-3",
        "--hold",
        "--comment=lrms_vm:hep-jets",
    ]


def test_the_users_own_option_may_not_say_it_again() -> None:
    job = JobDescription("true", queue="main", custom_attributes={"slurm.partition": "other"})
    with pytest.raises(UsageError):
        slurm.submit_argv("sbatch", made("slurm", job), None)


@pytest.mark.parametrize(
    ("text", "count", "ids"),
    [("12\n", None, ["12"]), ("12;cluster\n", None, ["12"]), ("12\n", 2, ["12_1", "12_2"])],
)
def test_what_sbatch_prints(text: str, count: int | None, ids: list[str]) -> None:
    assert slurm.parse_submitted(text, count) == ids


@pytest.mark.parametrize("text", ["", "Submitted batch job 12", "12\n13", "x"])
def test_what_sbatch_should_not_print(text: str) -> None:
    with pytest.raises(SiteError):
        slurm.parse_submitted(text, None)


def row(*columns: str) -> str:
    return "".join(f"{text:<{width}}" for text, width in zip(columns, (20, 20, 24, 16, 64), strict=True)) + "\n"


@pytest.mark.parametrize(
    ("state", "code", "reason", "wanted"),
    [
        ("PENDING", "0", "Priority", (JobState.QUEUED, None, None)),
        ("PENDING", "0", "JobHeldUser", (JobState.HELD, None, None)),
        ("CONFIGURING", "0", "None", (JobState.ACTIVE, None, None)),
        ("COMPLETING", "1792", "None", (JobState.ACTIVE, None, None)),
        ("SUSPENDED", "0", "None", (JobState.SUSPENDED, None, None)),
        ("COMPLETED", "0", "None", (JobState.COMPLETED, 0, None)),
        ("FAILED", "1792", "NonZeroExitCode", (JobState.FAILED, 7, None)),
        ("FAILED", "33280", "NonZeroExitCode", (JobState.FAILED, 130, None)),
        ("FAILED", "9", "JobLaunchFailure", (JobState.FAILED, None, 9)),
        ("FAILED", "7:0", "NonZeroExitCode", (JobState.FAILED, 7, None)),
        ("FAILED", "0:11", "x", (JobState.FAILED, None, 11)),
        ("CANCELLED", "15", "None", (JobState.CANCELED, None, 15)),
        ("CANCELLED", "0", "None", (JobState.CANCELED, None, None)),
        ("TIMEOUT", "0", "TimeLimit", (JobState.FAILED, None, None)),
        ("NODE_FAIL", "0", "None", (JobState.FAILED, None, None)),
        ("OUT_OF_MEMORY", "125", "OutOfMemory", (JobState.FAILED, None, 125)),
    ],
)
def test_what_squeue_says(state: str, code: str, reason: str, wanted: tuple[JobState, int | None, int | None]) -> None:
    look = slurm.parse_look(row("5", "2", state, code, reason))["5_2"]
    result = look.result
    assert (look.state, result and result.exit_code, result and result.signal) == wanted
    if look.state is JobState.FAILED and result and result.exit_code is None and result.signal is None:
        assert result.reason


def test_a_row_of_squeue_that_cannot_be_read() -> None:
    for text in ("slurm_load_jobs error\n", row("5", "N/A", "NEWSTATE", "0", "None")):
        with pytest.raises(SiteError):
            slurm.parse_look(text)


# -- Grid Engine


def test_qsub_of_grid_engine() -> None:
    assert gridengine.submit_argv("/usr/bin/qsub", made("gridengine"), 8) == [
        *("/usr/bin/qsub", "-terse", "-S", "/bin/sh", "-N", "jets", "-q", "main", "-A", "hep", "-wd", "/home/a b"),
        *("-i", "in", "-o", "out.$TASK_ID", "-j", "y", "-l", "h_rt=3630", "-l", "mem_free=2048M", "-h"),
        *("-l", "vm_capable=TRUE", "-t", "1-8", "-v", "VM_IMAGE"),
    ]


def test_several_processes_need_the_sites_own_name() -> None:
    many = JobDescription("true", resources=Resources(process_count=4))
    with pytest.raises(UsageError):
        gridengine.submit_argv("qsub", made("gridengine", many), None)
    named = JobDescription("true", custom_attributes={"gridengine.pe": "smp 4"})
    assert gridengine.submit_argv("qsub", made("gridengine", named), None)[4:] == ["-pe", "smp", "4"]


def test_what_qsub_terse_prints() -> None:
    assert gridengine.parse_submitted("7\n", None) == ["7"]
    assert gridengine.parse_submitted("5.1-3:1\n", 3) == ["5.1", "5.2", "5.3"]
    with pytest.raises(SiteError):
        gridengine.parse_submitted("Your job 7", None)


def listed(*rows: tuple[str, str, str]) -> str:
    jobs = "".join(
        f"<job_list state='x'><JB_job_number>{number}</JB_job_number><JB_name>a&lt;b</JB_name><state>{state}</state>"
        f"{f'<tasks>{task}</tasks>' if task else ''}</job_list>"
        for number, task, state in rows
    )
    return f"<?xml version='1.0'?>\n<job_info xmlns:xsd='x'><queue_info/><job_info>{jobs}</job_info></job_info>"


def test_what_qstat_lists() -> None:
    text = listed(
        ("1", "", "r"),
        ("2", "", "hqw"),
        ("3", "2", "qw"),
        ("4", "", "Eqw"),
        ("5", "", "hs"),
        ("6", "", "Rq"),
        ("7", "", "dr"),
    )
    assert {job_id: look.state for job_id, look in gridengine.parse_list(text).items()} == {
        "1": JobState.ACTIVE,
        "2": JobState.HELD,
        "3.2": JobState.QUEUED,
        "4": JobState.FAILED,
        "5": JobState.SUSPENDED,
        "6": JobState.QUEUED,
        "7": JobState.ACTIVE,
    }


@pytest.mark.parametrize("text", ["", "no xml", "<a>", listed(("x", "", "r")), listed(("1", "", ""))])
def test_what_qstat_should_not_list(text: str) -> None:
    with pytest.raises(SiteError):
        gridengine.parse_list(text)


def accounted(failed: str, status: str) -> str:
    return f"==========\nqname        all.q\njobname      failed 1\nfailed       {failed}\nexit_status  {status}\nru_wallclock 0s\n"


@pytest.mark.parametrize(
    ("failed", "status", "wanted"),
    [
        ("0    ", "0                   ", (JobState.COMPLETED, 0, None, "")),
        ("0    ", "7                   ", (JobState.FAILED, 7, None, "")),
        ("0    ", "130                  (Interrupt)", (JobState.FAILED, 130, None, "")),
        ("100 : assumedly after job", "137                  (Killed)", (JobState.FAILED, None, 9, "")),
        ("37  : qmaster enforced h_rt, h_cpu, or h_vmem limit", "137                  (Killed)",
         (JobState.FAILED, None, 9, "qmaster enforced h_rt, h_cpu, or h_vmem limit")),
        ("8   : in prolog", "1    ", (JobState.FAILED, None, None, "in prolog")),
        ("30  : application error returned", "0    ", (JobState.FAILED, None, None,
         "application error returned: refused by its prolog, the job's stderr says why")),
        ("30  : application error returned", "100  ", (JobState.FAILED, 100, None, "application error returned")),
        ("100 : assumedly after job", "0    ", (JobState.FAILED, None, None, "assumedly after job")),
    ],
)  # fmt: skip
def test_what_qacct_says(failed: str, status: str, wanted: tuple[JobState, int | None, int | None, str]) -> None:
    look = gridengine.parse_ended(accounted(failed, status), "7")
    assert look is not None and look.result is not None
    assert (look.state, look.result.exit_code, look.result.signal, look.result.reason) == wanted


@given(st.integers(1, 999), st.integers(0, 255))
def test_what_failed_is_never_a_success(failed: int, status: int) -> None:
    look = gridengine.parse_ended(accounted(f"{failed} : x", str(status)), "7")
    assert look is not None and look.state is JobState.FAILED


def test_a_job_that_ran_twice_ended_as_the_last_time() -> None:
    text = accounted("0", "99") + accounted("0", "3")
    look = gridengine.parse_ended(text, "7")
    assert look is not None and look.result is not None and look.result.exit_code == 3
    assert gridengine.parse_ended("", "7") is None


def test_why_a_job_is_in_error() -> None:
    text = (
        "job_number:   9\nerror reason          1:      11/23/2026 00:38:35 [105:15324]: exit_status of prolog = 100\n"
    )
    assert gridengine.parse_reason(text, "9") == "exit_status of prolog = 100"
    assert gridengine.parse_reason("", "9") == ""


# -- Torque and OpenPBS


def test_qsub_of_torque_and_openpbs() -> None:
    assert pbs.submit_argv(
        "/usr/bin/qsub",
        made("torque", JobDescription("true", duration=timedelta(minutes=1), image="a")),
        2,
        openpbs=False,
    ) == [
        *(
            "/usr/bin/qsub",
            "-S",
            "/bin/sh",
            "-l",
            "walltime=0:01:00",
            "-l",
            "other=vm:a",
            "-t",
            "1-2",
            "-v",
            "VM_IMAGE=a",
        ),
    ]
    wide = Resources(node_count=2, processes_per_node=4, memory_mib=1000)
    job = JobDescription("true", stdout_path="o.{index}", resources=wide, image="a")
    assert pbs.submit_argv("qsub", made("openpbs", job), 2, openpbs=True) == [
        *("qsub", "-S", "/bin/sh", "-o", "o.^array_index^", "-j", "oe", "-l", "select=2:ncpus=4:mem=1000mb"),
        *("-l", "vm_image=a", "-J", "1-2", "-v", "VM_IMAGE=a"),
    ]
    assert "nodes=2:ppn=4,mem=2000mb" in pbs.submit_argv(
        "qsub", made("torque", JobDescription("true", resources=wide)), None, openpbs=False
    )


def test_what_qsub_of_torque_prints() -> None:
    assert pbs.parse_submitted("42.head.site\n", None) == ["42.head.site"]
    assert pbs.parse_submitted("42[].head\n", 2) == ["42[1].head", "42[2].head"]
    for text, count in (("42[].head", None), ("42.head", 2), ("", None), ("qsub: refused", None)):
        with pytest.raises(SiteError):
            pbs.parse_submitted(text, count)


def full(job_id: str, *fields: str) -> str:
    return (
        f"Job Id: {job_id}\n"
        + "".join(f"    {field}\n" for field in ("Job_Name = x", "Job_Owner = a@h", *fields))
        + "\n"
    )


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        (("job_state = R",), (JobState.ACTIVE, None, None)),
        (("job_state = H",), (JobState.HELD, None, None)),
        (("job_state = E", "exit_status = 3"), (JobState.ACTIVE, None, None)),
        (("job_state = C", "exit_status = 0"), (JobState.COMPLETED, 0, None)),
        (("job_state = C", "exit_status = 127"), (JobState.FAILED, 127, None)),
        (("job_state = F", "Exit_status = 130"), (JobState.FAILED, 130, None)),
        (("job_state = C", "exit_status = 271"), (JobState.FAILED, None, 15)),
        (("job_state = C", "exit_status = -2"), (JobState.FAILED, None, None)),
        (("job_state = C",), (JobState.CANCELED, None, None)),
        (("job_state = C", "exit_status = 3", "Variable_List = A=", "exit_status = 0"), (JobState.FAILED, None, None)),
    ],
)
def test_what_qstat_f_says(fields: tuple[str, ...], wanted: tuple[JobState, int | None, int | None]) -> None:
    look, owner = pbs.parse_look(full("1.h", "job_state = Q") + full("42[1].h", *fields))["42[1].h"]
    assert owner == "a"
    result = look.result
    assert (look.state, result and result.exit_code, result and result.signal) == wanted


def test_long_values_go_on() -> None:
    text = full("1.h", "job_state = Q", "comment = a long\n\t story")
    assert pbs.parse_look(text)["1.h"][0].reason == "a long story"
    with pytest.raises(SiteError):
        pbs.parse_look(full("1.h", "job_state = ?"))
