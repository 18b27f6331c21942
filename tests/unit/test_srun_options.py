from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrms_vm.errors import UsageError
from lrms_vm.launch_service import command
from lrms_vm.launchers import SRUN, _exported
from lrms_vm.srun_options import Step, parse


def read(*arguments: str) -> Step:
    return parse(arguments, may_change_to=lambda path: path.startswith("/work"))


@pytest.mark.parametrize(
    "arguments, options",
    [
        (["-n2"], ["--ntasks=2"]),
        (["-n", "2"], ["--ntasks=2"]),
        (["--ntasks=2"], ["--ntasks=2"]),
        (["--ntasks", "2"], ["--ntasks=2"]),
        (["-lun", "2"], ["--label", "--unbuffered", "--ntasks=2"]),
        (["-N2", "-wn[1-2]"], ["--nodes=2", "--nodelist=n[1-2]"]),
        (["-K"], ["--kill-on-bad-exit"]),
        (["-K0"], ["--kill-on-bad-exit=0"]),
        (["--exclusive"], ["--exclusive"]),
        (["--mem-per-c=100M"], ["--mem-per-cpu=100M"]),
        (["-D", "/work/here"], ["--chdir=/work/here"]),
        (["--cpu-bind=none", "--"], ["--cpu-bind=none"]),
    ],
)
def test_options_are_read_as_srun_reads_them(arguments: list[str], options: list[str]) -> None:
    assert read(*arguments, "prog", "-n5", "--", "x") == Step(tuple(options), None, ("prog", "-n5", "--", "x"))


@pytest.mark.parametrize(
    "word, named",
    [
        ("--prolog=/bin/sh", "--prolog"),
        ("--epilog=x", "--epilog"),
        ("--task-prolog=x", "--task-prolog"),
        ("--task-epilog=x", "--task-epilog"),
        ("--output=/etc/x", "--output"),
        ("-o/etc/x", "-o (--output)"),
        ("-ne", "x"),
        ("-lo/etc/x", "-o (--output)"),
        ("-i", "-i (--input)"),
        ("--jobid=8", "--jobid"),
        ("--job=8", "--job"),
        ("--bcast", "--bcast"),
        ("--multi-prog", "--multi-prog"),
        ("--multi", "--multi-prog"),
        ("-Z", "-Z (--no-allocate)"),
        ("--no-allocate", "--no-allocate"),
        ("--pty", "--pty"),
        ("--vm-image=other", "--vm-image"),
        ("--het-group=0", "--het-group"),
        ("--container=/x", "--container"),
        ("--uid=0", "--uid"),
        ("--x11", "--x11"),
        ("--het-group=0", "--het-group"),
        ("--debugger-test", "--debugger-test"),
    ],
)
def test_what_would_act_on_the_host_is_refused_by_name(word: str, named: str) -> None:
    if word == "-ne":
        assert read(word, "prog").options == ("--ntasks=e",)  # srun itself complains
        return
    with pytest.raises(UsageError) as caught:
        read(word, "prog")
    assert named in str(caught.value)
    assert caught.value.exit_code == 64
    assert caught.value.code == "launch-refused"


@pytest.mark.parametrize("before", [[], ["-n1"], ["--"], ["-n", "1", "--"]])
def test_a_second_component_of_the_step_gets_no_options_past_the_table(before: list[str]) -> None:
    """srun takes any word ":" for the end of a component, after "--" too, and reads options again."""
    with pytest.raises(UsageError) as caught:
        read(*before, "true", ":", "--prolog=/home/me/on-the-host", "true")
    assert caught.value.code == "launch-refused"
    assert read(*before, "test", "::", ": ").command == ("test", "::", ": ")


@pytest.mark.parametrize("arguments", [["--chdir=/etc"], ["-D", "/"], ["-w", "/etc/shadow"], ["--exclude=./f"]])
def test_host_paths_outside_the_shares_are_refused(arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        read(*arguments, "prog")


@pytest.mark.parametrize("arguments", [[], ["-n"], ["--ntasks"], ["--label=1", "p"], ["-n", "1"]])
def test_what_cannot_be_read_is_usage(arguments: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        read(*arguments)
    assert caught.value.code == "launch-usage"


@given(st.lists(st.text(max_size=12) | st.sampled_from([":", "--", "true", "-n1"]), max_size=6))
def test_no_command_line_gets_an_option_past_the_table(arguments: list[str]) -> None:
    from lrms_vm.srun_options import LONG

    try:
        step = read(*arguments)
    except UsageError:
        return
    assert ":" not in step.command
    assert all(option.removeprefix("--").partition("=")[0] in LONG for option in step.options)


def test_an_export_list_is_applied_to_the_task_and_never_to_the_host() -> None:
    guest = {b"A": b"1", b"B": b"2"}
    assert _exported(guest, None) == (guest, [])
    assert _exported(guest, "NONE") == ({}, ["--export=NONE"])
    assert _exported(guest, "ALL,LD_PRELOAD=/x") == ({**guest, b"LD_PRELOAD": b"/x"}, ["--export=ALL"])
    assert _exported(guest, "A,C") == ({b"A": b"1"}, ["--export=ALL"])


def test_the_real_srun_never_gets_the_guest_s_environment() -> None:
    asked = {b"A": b"srun\0-n2\0prog\0", b"D": b"/\0", b"E": b"LD_PRELOAD=/x\0SLURM_CONF=/y\0"}
    job = {b"PATH": b"/usr/bin", b"SLURM_JOB_ID": b"7", b"LRMS_VM_KEY": b"k"}
    argv, _, environment = command(asked, SRUN, job, shares=(), search="/work/none:/usr/bin:/bin")
    assert argv[1:] == [b"--ntasks=2", b"--", b"prog"]
    assert set(environment) == {b"PATH", b"SLURM_JOB_ID", b"LRMS_VM_TASK_ENV"}
