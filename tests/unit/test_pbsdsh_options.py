"""What `pbsdsh` in a guest may ask of the real one: read as Torque and OpenPBS read it, and nothing past the table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrms_vm import launchers
from lrms_vm.environment import TASK_VARIABLE, unpack
from lrms_vm.errors import UsageError
from lrms_vm.launch_options import Grammar
from lrms_vm.launch_service import command
from lrms_vm.lrms.base import LAUNCHER_NAMES
from lrms_vm.pbsdsh_options import OPENPBS, TORQUE, Tasks, parse

GUEST = {b"A": b"1", b"B": b"x=y", b"PBS_TASKNUM": b"1", b"LD_PRELOAD": b"/x"}
JOB = {
    b"PBS_JOBID": b"7.s",
    b"PBS_JOBCOOKIE": b"C0",
    b"PBS_MOMPORT": b"15003",
    b"LD_PRELOAD": b"/e",
    b"LRMS_VM_X": b"1",
}


def read(*arguments: str, grammar: Grammar = TORQUE) -> Tasks:
    return parse(grammar, arguments, GUEST)


@pytest.mark.parametrize(
    "arguments, options",
    [
        ([], []),
        (["-c", "2"], ["-c", "2"]),
        (["-c2"], ["-c", "2"]),
        (["-n", "0", "-s"], ["-n", "0", "-s"]),
        (["-suv"], ["-s", "-u", "-v"]),
        (["-vn1"], ["-v", "-n", "1"]),
        (["-h", "node-1.site/1", "-o"], ["-h", "node-1.site/1", "-o"]),
        (["-o", "--"], ["-o"]),
    ],
)
def test_options_are_read_as_pbsdsh_reads_them(arguments: list[str], options: list[str]) -> None:
    assert read(*arguments, "prog", "-n5", "--", "x") == Tasks(tuple(options), None, ("prog", "-n5", "--", "x"))


@pytest.mark.parametrize(
    "grammar, arguments, named",
    [
        (TORQUE, ["-x"], "-x"),
        (TORQUE, ["-sx"], "-x"),
        (TORQUE, ["--host=n1"], "--host"),
        (TORQUE, ["--copies", "2"], "--copies"),
        (OPENPBS, ["-u"], "-u"),
        (OPENPBS, ["-e", "A"], "-e"),
        (OPENPBS, ["-E"], "-E"),
        (OPENPBS, ["--version"], "--version"),
    ],
)
def test_what_the_system_s_table_does_not_know_is_refused_by_name(
    grammar: Grammar, arguments: list[str], named: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read(*arguments, "prog", grammar=grammar)
    assert f"pbsdsh: option '{named}' is not possible from inside a guest" in str(caught.value)
    assert (caught.value.exit_code, caught.value.code) == (64, "launch-refused")


@pytest.mark.parametrize(
    "arguments",
    [[], ["-c"], ["-c", "1"], ["-c", "x", "p"], ["-n", "-1", "p"], ["-c", "1e9", "p"], ["-h", "../f", "p"], ["-h", "", "p"]],
)  # fmt: skip
def test_what_cannot_be_read_is_usage(arguments: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        read(*arguments)
    assert caught.value.code == "launch-usage"


def test_variables_are_the_guest_s_and_the_last_word_counts() -> None:
    assert read("-e", "A,NEW=2,NONE,,B", "p").variables == {b"A": b"1", b"NEW": b"2", b"NONE": b"", b"B": b"x=y"}
    assert read("-E", "-eA=9", "p").variables == {**GUEST, b"A": b"9"}
    assert read("-e", "A=9", "-E", "p").variables == GUEST
    assert read("p", "-E").variables is None


ALLOWED = {f"-{letter}" for letter in "cnhsvou"}


@given(st.sampled_from([TORQUE, OPENPBS]), st.lists(st.text(max_size=12), max_size=6))
def test_no_command_line_gets_an_option_past_the_table(grammar: Grammar, arguments: list[str]) -> None:
    try:
        tasks = read(*arguments, grammar=grammar)
    except UsageError:
        return
    words = list(tasks.options)
    while words:
        letter = words.pop(0)
        assert letter in ALLOWED
        if letter in ("-c", "-n", "-h"):
            assert not words.pop(0).startswith("-")
    assert tasks.command == tuple(arguments[len(arguments) - len(tasks.command) :])


@given(st.lists(st.sampled_from(["-c", "2", "-n1", "-h", "n1/0", "-s", "-u", "-v", "-o", "--"]), max_size=6))
def test_what_is_passed_on_reads_the_same_again(arguments: list[str]) -> None:
    try:
        once = read(*arguments, "prog", "-x")
    except UsageError:
        return
    assert read(*once.options, "--", *once.command) == once


def asked(*words: bytes) -> dict[bytes, bytes]:
    fields = b"".join(name + b"=" + value + b"\0" for name, value in GUEST.items())
    return {b"A": b"\0".join((b"pbsdsh", *words)) + b"\0", b"D": b"/\0", b"E": fields}


def test_the_real_pbsdsh_gets_the_job_s_task_manager_and_nothing_of_the_guest(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "pbsdsh").touch(mode=0o755)
    torque = launchers.LAUNCHERS["torque"]
    argv, _, environment = command(asked(b"-c2", b"prog", b"a b"), torque, JOB, shares=(), search=str(tmp_path))
    assert argv == [bytes(tmp_path / "pbsdsh"), b"-c", b"2", b"--", b"prog", b"a b"]
    assert environment == {b"PBS_JOBID": b"7.s", b"PBS_JOBCOOKIE": b"C0", b"PBS_MOMPORT": b"15003"}


def test_what_e_names_travels_packed_and_without_what_says_which_task_it_is(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "pbsdsh").touch(mode=0o755)
    torque = launchers.LAUNCHERS["torque"]
    argv, _, environment = command(asked(b"-Ev", b"prog"), torque, JOB, shares=(), search=str(tmp_path))
    assert argv[1:3] == [b"-v", b"-e"]
    name, _, packed = argv[3].partition(b"=")
    assert name == TASK_VARIABLE
    assert b"," not in packed  # pbsdsh would cut there
    assert unpack(packed) == {b"A": b"1", b"B": b"x=y", b"LD_PRELOAD": b"/x"}
    assert not {TASK_VARIABLE, b"A", b"LD_PRELOAD"} & set(environment)


@pytest.mark.parametrize(
    "lrms, job, name",
    [
        ("slurm", {b"SLURM_JOB_ID": b"7"}, "srun"),
        ("slurm", JOB, None),
        ("torque", JOB, "pbsdsh"),
        ("openpbs", JOB, "pbsdsh"),
        ("torque", {b"PBS_JOBID": b"7"}, None),
        ("gridengine", JOB, None),
        ("local", JOB, None),
    ],
)
def test_a_job_has_its_own_system_s_launcher_or_none(lrms: str, job: dict[bytes, bytes], name: str | None) -> None:
    found = launchers.usable(lrms, job)
    assert (found.name if found else None) == name


def test_what_the_prologue_puts_into_a_guest_is_what_its_host_answers() -> None:
    assert {lrms: launcher.name for lrms, launcher in launchers.LAUNCHERS.items()} == LAUNCHER_NAMES
