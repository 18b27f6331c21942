"""The calls in tests/data/torque were recorded on a real Torque 6.1.3."""

from __future__ import annotations

import ast
import io
from dataclasses import replace
from pathlib import Path

import pytest

from lrms_vm.errors import RequestError, SiteError, UsageError
from lrms_vm.lrms import torque, torque_filter
from lrms_vm.lrms.base import EPILOGUE, MAX_RETRIES, PROLOGUE, Action, Call, Outcome, Told
from lrms_vm.lrms.command import Command

DATA = Path(__file__).parent.parent / "data" / "torque"


def recorded(name: str) -> Call:
    """A hook's call, as it was."""
    lines = (DATA / f"{name}.txt").read_text().splitlines()
    argv = ast.literal_eval(lines[0].removeprefix("ARGV "))
    environ = dict(line.strip().split(" = ", 1) for line in lines[lines.index("ENV") + 1 :])
    return Call(argv=tuple(argv[1:]), environ=environ, files={torque.HOST: b"tqa"})


def qstat(call: Call, variables: str, exec_host: str = "tqa/0") -> Call:
    text = f"Job Id: {call.argv[0]}\n    job_state = R\n    exec_host = {exec_host}\n    Variable_List = {variables}\n"
    return replace(call, files={**call.files, torque.QSTAT: text.encode()})


def job_file(call: Call, variables: str, job: str | None = None) -> Call:
    text = (DATA / "job.JB.xml").read_text().replace("<jobid>5.tqa<", f"<jobid>{job or call.argv[0]}<")
    text = text.replace("PBS_O_QUEUE=batch", f"PBS_O_QUEUE=batch,{variables}")
    return replace(call, files={**call.files, torque.JOB_FILE: text.encode()})


def asking(resources: str, call: Call | None = None) -> Call:
    call = call or recorded("prologue")
    return replace(call, argv=(*call.argv[:4], resources, *call.argv[5:]))


# -- who and what


def test_the_recorded_prologue_is_identified() -> None:
    found = torque.identify(recorded("prologue"), uid=1001, gid=1001)
    assert found.key == "torque-77.tqa"
    assert (found.user, found.cpus, found.memory_mib, found.partition) == ("alice", 1, None, "batch")
    assert found.work_dir == "/"
    assert found.account == ""


def test_the_recorded_epilogue_is_the_same_job() -> None:
    before, after = (torque.identify(recorded(name), uid=1, gid=1) for name in ("prologue", "epilogue"))
    assert (before.key, before.user, before.partition) == (after.key, after.user, after.partition)


def test_an_epilogue_does_not_stumble_over_the_users_texts() -> None:
    call = recorded("epilogue")
    muddled = replace(call, argv=(*call.argv[:5], "other=a,other=b", *call.argv[6:]))
    assert torque.identify(muddled, uid=1, gid=1).key == "torque-77.tqa"


def test_an_array_task_has_a_name_without_brackets() -> None:
    call = recorded("prologue")
    assert torque.identify(replace(call, argv=("42[1].tqa", *call.argv[1:])), uid=1, gid=1).key == "torque-42-1.tqa"


def test_the_nodes_name_is_short_in_the_key() -> None:
    call = replace(recorded("prologue"), files={torque.HOST: b"tqa.cluster.example.org"})
    assert torque.identify(call, uid=1, gid=1).node == "tqa"


@pytest.mark.parametrize("argv", [(), ("77.tqa",), ("77.tqa",) * 9, ("x", *["a"] * 7)])
def test_what_is_no_hooks_call_is_refused(argv: tuple[str, ...]) -> None:
    with pytest.raises(SiteError):
        torque.identify(Call(argv=argv), uid=1, gid=1)


@pytest.mark.parametrize("user", ["root", "", "a/b", "a\nb"])
def test_a_job_of_nobody_is_refused(user: str) -> None:
    call = recorded("prologue")
    with pytest.raises(SiteError):
        torque.owner(replace(call, argv=("7.tqa", user, *call.argv[2:])))


# -- the allocation, from the best that is there


def test_cpus_are_those_the_server_says() -> None:
    call = qstat(asking("nodes=1:ppn=8,mem=4gb"), "X=1", exec_host="tqa/0-1+tqb/0-1")
    found = torque.identify(call, uid=1, gid=1)
    assert (found.cpus, found.memory_mib) == (2, 2048)


def test_else_those_of_the_node_file_else_those_asked_for() -> None:
    call = asking("nodes=2:ppn=3,pmem=100mb")
    by_file = replace(call, files={**call.files, torque.NODE_FILE: b"tqa\ntqa\ntqb\n"})
    assert torque.identify(by_file, uid=1, gid=1).cpus == 2
    assert torque.identify(call, uid=1, gid=1).cpus == 3
    assert torque.identify(call, uid=1, gid=1).memory_mib == 300
    assert torque.identify(asking("nodes=tqa:ppn=2+tqb"), uid=1, gid=1).cpus == 1


# -- the carriers, in their order


def test_the_resource_wins_and_the_other_options_come_along() -> None:
    call = qstat(asking("nodes=1,other=vm:deb12"), "VM_IMAGE=other,VM_MEMORY=2G,VM_CPUS=1")
    assert torque.parse_options(call) == ({"vm-image": "deb12", "vm-memory": "2G", "vm-cpus": "1"}, "-l other=vm:")


def test_the_resource_needs_nobody_to_be_asked() -> None:
    assert torque.wants_by_resource(asking("other=vm:deb12"))
    assert torque.parse_options(asking("other=vm:deb12"))[0] == {"vm-image": "deb12"}


def test_then_the_variables_that_qstat_says() -> None:
    call = job_file(qstat(recorded("prologue"), "VM_IMAGE=deb12,VM_NETWORK=none"), "VM_IMAGE=older")
    assert torque.parse_options(call) == ({"vm-image": "deb12", "vm-network": "none"}, "VM_IMAGE")


def test_then_the_job_file() -> None:
    assert torque.parse_options(job_file(recorded("prologue"), "VM_IMAGE=deb12"))[0] == {"vm-image": "deb12"}


def test_a_job_that_asks_for_nothing_is_told_apart_from_one_that_cannot_be_asked() -> None:
    with pytest.raises(UsageError) as caught:
        torque.parse_options(qstat(recorded("prologue"), "X=1"))
    assert caught.value.code == "image-missing"
    with pytest.raises(SiteError):
        torque.parse_options(recorded("prologue"))
    with pytest.raises(SiteError):
        torque.parse_options(job_file(recorded("prologue"), "VM_IMAGE=deb12", job="6.tqa"))


@pytest.mark.parametrize("other", ["", "x", "VM:deb12", "avm:deb12", "vm"])
def test_another_use_of_the_resource_is_not_ours(other: str) -> None:
    assert not torque.wants_by_resource(asking(f"nodes=1,other={other}"))


def test_an_empty_name_asks_and_is_kept_for_the_refusal() -> None:
    assert torque.parse_options(asking("other=vm:"))[0] == {"vm-image": ""}


# -- what pbs_mom is told: every row of the table


HELD = Told(2, (Action.EXPLAIN, Action.HOLD), otherwise=1)
ROWS = [
    (PROLOGUE, Outcome.READY, 0, Told(0)),
    (PROLOGUE, Outcome.REQUEST, 0, Told(1, (Action.EXPLAIN,))),
    (PROLOGUE, Outcome.REQUEST, 9, Told(1, (Action.EXPLAIN,))),
    (PROLOGUE, Outcome.SITE, 0, Told(2, (Action.COUNT,), otherwise=HELD)),
    (PROLOGUE, Outcome.SITE, MAX_RETRIES - 1, Told(2, (Action.COUNT,), otherwise=HELD)),
    (PROLOGUE, Outcome.SITE, MAX_RETRIES, HELD),
    (PROLOGUE, Outcome.CONFIG, 0, HELD),
    (PROLOGUE, Outcome.NODE, 0, Told(2, (Action.TAKE_OUT, Action.COUNT), otherwise=HELD)),
    (PROLOGUE, Outcome.NODE, 9, Told(2, (Action.TAKE_OUT, Action.EXPLAIN, Action.HOLD), otherwise=HELD)),
    (EPILOGUE, Outcome.READY, 0, Told(0)),
    (EPILOGUE, Outcome.LEFTOVERS, 0, Told(0, (Action.TAKE_OUT,))),
]  # fmt: skip


@pytest.mark.parametrize(("hook", "outcome", "retries", "told"), ROWS)
def test_what_the_mother_superior_is_told(hook: str, outcome: Outcome, retries: int, told: Told) -> None:
    assert torque.outcome(hook, outcome, retries=retries) == told


@pytest.mark.parametrize("outcome", [one for one in Outcome if one not in (Outcome.LEFTOVERS, Outcome.SICK)])
def test_a_sister_never_fails(outcome: Outcome) -> None:
    told = torque.outcome(PROLOGUE, outcome, retries=9, sister=True)
    assert told.exit_code == 0
    assert (Action.VERDICT in told.actions) == (outcome is not Outcome.READY)
    assert (Action.TAKE_OUT in told.actions) == (outcome is Outcome.NODE)


# -- pbs_mom's configuration


@pytest.mark.parametrize(
    ("text", "limit_s"),
    [
        ("", 290),
        ("$prologalarm 15", 5),
        ("$prologalarm 10", 10),
        ("$prologalarm 600\n$prologalarm 60\n", 50),
        ("#$prologalarm 15\n", 290),
        ("$prologalarm soon", 290),
    ],
)
def test_a_prologue_ends_before_it_is_killed(text: str, limit_s: float) -> None:
    assert torque.prologue_limit_s(text) == limit_s


def test_a_directive_is_found_as_pbs_mom_reads_it() -> None:
    text = "$pbsserver tqa\n  $JOB_STARTER\t/opt/x y \n# $job_starter /z\n"
    assert torque.mom_setting(text, "job_starter") == "/opt/x y"
    assert torque.mom_setting(text, "usecp") is None


# -- who is active


def test_a_job_is_active_unless_it_ended_or_waits_without_a_host() -> None:
    text = "".join(
        f"Job Id: {job}\n    job_state = {state}\n{f'    exec_host = {host}{chr(10)}' if host else ''}\n"
        for job, state, host in [
            ("1.t", "R", "tqa/0"), ("2.t", "C", "tqa/0"), ("3.t", "Q", ""), ("4.t", "Q", "tqa/0"), ("5.t", "E", "tqa/0"),
            ("6[].t", "R", ""), ("6[2].t", "R", "tqb/0"), ("7.t", "H", ""), ("8.t", "T", ""), ("9.t", "S", "tqa/0"),
        ]
    )  # fmt: skip
    assert torque.parse_active(text) == {"1", "4", "5", "6-2", "8", "9"}
    assert torque.parse_active("") == set()


@pytest.mark.parametrize("text", ["Job Id: rubbish!\n    job_state = R\n", "Job Id: 1.t\n    a = 1\n    a = 2\n"])
def test_a_list_of_jobs_that_cannot_be_read_reaps_nobody(text: str) -> None:
    with pytest.raises(SiteError):
        torque.parse_active(text)


def test_the_notes_say_that_they_are_ours() -> None:
    assert torque.offline_argv("/b", "tqa", "disk full, \n'x'") == [
        "/b/pbsnodes",
        "-o",
        "-N",
        "lrms_vm: disk full x",
        "tqa",
    ]
    assert torque.hold_argv("/b", "7.tqa") == ["/b/qhold", "-h", "s", "7.tqa"]
    assert torque.comment_argv("/b", "7.tqa", "no=way") == ["/b/qalter", "-W", "comment=lrms_vm: no way", "7.tqa"]
    assert torque.health_report(None) == ""
    assert torque.health_report("no disk\nx") == "ERROR lrms_vm: no disk x\n"


# -- the way in: how the job starter is called (recorded: job_starter.txt)


def started(name: str) -> tuple[list[str], bytes]:
    lines = (DATA / f"{name}.txt").read_text().splitlines()
    argv = ast.literal_eval(lines[0].split(" argv ")[1].split(" uid ")[0])
    return argv[1:], ast.literal_eval(lines[1].split(" stdin line ")[1])


def test_the_recorded_script_and_its_arguments() -> None:
    argv, line = started("job_starter")
    assert torque.command(argv, {}, line) == Command(
        ("/bin/bash", "-c", "exec \"$0\" arg1 'arg 2'", "/mnt/tq/mom_priv/jobs/3.tqa.SC"), script_at=3
    )


def test_the_recorded_script_of_an_array() -> None:
    argv, line = started("job_starter-array")
    assert torque.command(argv, {}, line) == Command(
        ("/bin/bash", "-c", 'exec "$0"', "/mnt/tq/mom_priv/jobs/42-1.tqa.SC"), script_at=3
    )


@pytest.mark.parametrize(
    ("argv", "line", "words", "script_at"),
    [
        (["/bin/hostname", "-f"], None, ("/bin/hostname", "-f"), None),
        (["/bin/bash"], None, ("/bin/bash",), None),
        (["/bin/bash", "-c", "echo hi"], None, ("/bin/bash", "-c", "echo hi"), None),
        (["/bin/sh"], b"exec /p/1.SC\n", ("/bin/sh", "-c", 'exec "$0"', "/p/1.SC"), 3),
        (["/bin/sh"], b"/p/1.SC a $X\n", ("/bin/sh", "-c", 'exec "$0" a $X', "/p/1.SC"), 3),
        (["/bin/sh"], b"/p/1.SC a > b\n", ("/bin/sh", "-c", '"$0" a > b', "/p/1.SC"), 3),
        (["/bin/csh"], b"/p/1.SC a 'b c' $x\n", ("/p/1.SC", "a", "b c", "$x"), 0),
        (["/bin/tcsh"], b"/p/1.SC\n", ("/p/1.SC",), 0),
        (["/bin/bash"], b"/p/1.SC $A; b | c\n", ("/bin/bash", "-c", '"$0" $A; b | c', "/p/1.SC"), 3),
    ],
)
def test_each_way_of_starting(
    argv: list[str], line: bytes | None, words: tuple[str, ...], script_at: int | None
) -> None:
    assert torque.command(argv, {}, line) == Command(words, script_at)


def test_a_build_that_puts_the_script_among_the_arguments() -> None:
    script = "/var/spool/torque/mom_priv/jobs/42-1.tqa.SC"
    environ = {"PBS_JOBID": "42[1].tqa"}
    assert torque.command(["/bin/bash", script], environ, None) == Command(("/bin/bash", script), script_at=1)
    assert torque.command(["/bin/bash", "/home/alice/x.SC"], environ, None).script_at is None


def test_a_task_has_no_script_of_the_host_s() -> None:
    """`pbsdsh sh PATH` in a guest, where PATH is a link in a shared directory to another file of the user's."""
    link = "/work/mom_priv/jobs/42.tqa.SC"
    environ = {"PBS_JOBID": "42.tqa", "PBS_TASKNUM": "2"}
    assert torque.command(["/bin/sh", link], environ, None) == Command(("/bin/sh", link), script_at=None)


@pytest.mark.parametrize("line", [b"", b"\n", b"relative arg\n", b"/p/1.SC \0\n"])
def test_a_line_that_names_no_script_is_refused(line: bytes) -> None:
    with pytest.raises(UsageError):
        torque.command(["/bin/bash"], {}, line)
    with pytest.raises(UsageError):
        torque.command([], {}, None)


def test_quotes_that_do_not_end_are_refused_where_we_read_them() -> None:
    with pytest.raises(UsageError):
        torque.command(["/bin/csh"], {}, b"/p/1.SC 'a\n")


# -- the submit filter


def test_the_filter_leaves_a_script_without_our_options_as_it_is() -> None:
    for script in (b"", b"echo from stdin\n", b"#!/bin/sh\r\n#PBS -N x\n\xff\xfe\0", b"#VM\n"):
        assert torque_filter.filtered(script, ["-N", "x"]) == script


def test_the_filter_turns_our_options_into_torques() -> None:
    script = b"#!/bin/bash\n#PBS -N vmf\n#VM --vm-image=debian12 --vm-memory=2G\necho '#VM --vm-image=x'\n"
    assert torque_filter.filtered(script, ["vm.sh"]) == (
        b"#!/bin/bash\n#PBS -N vmf\n#PBS -l other=vm:debian12\n#PBS -v VM_MEMORY=2G\necho '#VM --vm-image=x'\n"
    )
    assert torque_filter.filtered(b"#PBS -N r --vm-image a -q x\n", []) == b"#PBS -N r  -q x\n#PBS -l other=vm:a\n"
    both = b"#VM --vm-cpus=1\n#VM --vm-image=a --vm-memory=2G\nhostname\n"
    assert torque_filter.filtered(both, []) == b"#PBS -l other=vm:a\n#PBS -v VM_CPUS=1,VM_MEMORY=2G\nhostname\n"


def test_the_image_goes_with_a_list_of_variables() -> None:
    script = b"#VM --vm-image=a\n#PBS -v A=1\nhostname\n"
    assert torque_filter.filtered(script, ["-v", "B=1"]) == b"#PBS -v A=1\n#PBS -l other=vm:a\nhostname\n"


def test_the_filter_stops_reading_where_qsub_does() -> None:
    script = b"#!/bin/sh\nhostname\n#VM --vm-image=x\n"
    assert torque_filter.filtered(script, []) == script


@pytest.mark.parametrize(
    ("script", "argv"),
    [
        (b"#VM --vm-image=a,b\n", []),
        (b"#VM --vm-image='a'\n", []),
        (b"#VM --vm-image=\n", []),
        (b"#VM --vm-image=a\n#VM --vm-image=b\n", []),
        (b"#VM --vm-colour=red\n", []),
        (b"#VM --vm-image=a rubbish\n", []),
        (b"echo\n", ["-I", "--vm-image=foo", "vm.sh"]),
        (b"#VM --vm-image=a --vm-cpus=1\n", ["-v", "A=1"]),
        (b"#VM --vm-image=a --vm-cpus=1\n", ["-vA=1"]),
        (b"#VM --vm-image=a --vm-cpus=1\n#PBS -q x -v A=1\n", []),
    ],
)
def test_the_filter_rejects_what_would_not_arrive(script: bytes, argv: list[str]) -> None:
    with pytest.raises(RequestError):
        torque_filter.filtered(script, argv)
    out, err = io.BytesIO(), io.StringIO()
    assert torque_filter.main(argv, io.BytesIO(script), out, err) == torque_filter.REJECT
    assert (out.getvalue(), err.getvalue()[:8]) == (b"", "lrms-vm:")
