"""The texts in data/slurm-22.05-*.txt were recorded in a Prolog of Slurm 22.05.8; user and path renamed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrms_vm.errors import LrmsVmError, RequestError, SiteError, UsageError
from lrms_vm.lrms import local, slurm
from lrms_vm.lrms.slurm_notation import hostlist_has, range_size
from lrms_vm.request import parse_request

DATA = Path(__file__).parent / "data"


def recorded(name: str) -> str:
    return (DATA / f"slurm-22.05-{name}.txt").read_text()


def environ(job_id: int, node: str, **more: str) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": str(job_id),
        "SLURMD_NODENAME": node,
        "SLURM_JOB_UID": "27001",
        "SLURM_JOB_GID": "27001",
        "SLURM_JOB_USER": "physicist",
        "SLURM_JOB_WORK_DIR": "/home/physicist",
        "SLURM_JOB_PARTITION": "main",
        "SLURM_JOB_RESTART_COUNT": "2",
        **more,
    }


# -- the request


def test_an_ordinary_job_wants_no_vm() -> None:
    assert not slurm.wants_vm(environ(1, "c1", SLURM_JOB_COMMENT="see lrms_vm docs", SPANK_OTHER="x"))
    with pytest.raises(UsageError):
        slurm.parse_options(environ(1, "c1"))


def test_job_control_variables_become_option_words() -> None:
    options, source = slurm.parse_options(environ(1, "c1", SPANK_VM_IMAGE="img", SPANK_VM_SHARE="/a,/b"))
    assert options == {"vm-image": "img", "vm-share": "/a,/b"}
    assert source == "--vm-image"


def test_the_option_wins_over_the_comment() -> None:
    both = environ(1, "c1", SPANK_VM_IMAGE="img", SLURM_JOB_COMMENT="lrms_vm:other")
    assert slurm.parse_options(both)[0] == {"vm-image": "img"}


@pytest.mark.parametrize("comment", ["lrms_vm:a/b@1", "x lrms_vm:a/b@1", "x,lrms_vm:a/b@1;y", "note\nlrms_vm:a/b@1\tz"])
def test_the_comment_carries_an_image_as_a_word(comment: str) -> None:
    options, source = slurm.parse_options(environ(1, "c1", SLURM_JOB_COMMENT=comment))
    assert (options, source) == ({"vm-image": "a/b@1"}, "job comment")


def test_the_comments_image_goes_with_the_other_options() -> None:
    options, _ = slurm.parse_options(environ(1, "c1", SPANK_VM_CPUS="2", SLURM_JOB_COMMENT="lrms_vm:a"))
    assert options == {"vm-image": "a", "vm-cpus": "2"}


def test_an_empty_name_in_the_comment_asks_and_is_kept_for_the_refusal() -> None:
    assert slurm.wants_vm(environ(1, "c1", SLURM_JOB_COMMENT="lrms_vm:"))
    assert slurm.parse_options(environ(1, "c1", SLURM_JOB_COMMENT="lrms_vm: x"))[0] == {"vm-image": ""}


def test_the_comment_carries_the_other_options_beside_an_image() -> None:
    comment = "run 7,lrms_vm:a,lrms_vm-memory:2G;lrms_vm-share:/a lrms_vm-share:/b,lrms_vm-network:bridge:br0"
    options, source = slurm.parse_options(environ(1, "c1", SLURM_JOB_COMMENT=comment, SPANK_VM_CPUS="2"))
    assert source == "job comment"
    wanted = {"vm-memory": "2G", "vm-share": "/a,/b", "vm-network": "bridge:br0", "vm-cpus": "2", "vm-image": "a"}
    assert options == wanted


@pytest.mark.parametrize("comment", ["lrms_vm-memory:2G", "xlrms_vm:a", "lrms_vm-image:a"])
def test_other_options_alone_in_the_comment_ask_for_nothing(comment: str) -> None:
    assert not slurm.wants_vm(environ(1, "c1", SLURM_JOB_COMMENT=comment))


def test_an_option_twice_in_the_comment_is_refused() -> None:
    with pytest.raises(UsageError):
        slurm.parse_options(environ(1, "c1", SLURM_JOB_COMMENT="lrms_vm:a lrms_vm-cpus:1 lrms_vm-cpus:2"))
    same = "lrms_vm:a lrms_vm-cpus:1 lrms_vm-cpus:1"
    assert slurm.parse_options(environ(1, "c1", SLURM_JOB_COMMENT=same))[0]["vm-cpus"] == "1"


def test_an_unknown_option_in_the_comment_is_refused_with_the_request() -> None:
    options, source = slurm.parse_options(environ(1, "c1", SLURM_JOB_COMMENT="lrms_vm:a lrms_vm-nonsense:1"))
    with pytest.raises(UsageError):
        parse_request(options, source=source)


def test_two_images_in_the_comment_are_refused() -> None:
    with pytest.raises(UsageError):
        slurm.parse_options(environ(1, "c1", SLURM_JOB_COMMENT="lrms_vm:a lrms_vm:b"))


# -- the job


@pytest.mark.parametrize("wrong", [{"SLURM_JOB_ID": "7;x"}, {"SLURMD_NODENAME": "../x"}, {"SLURM_JOB_UID": "-1"}])
def test_an_environment_that_is_no_hooks_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(LrmsVmError):
        slurm.identify(environ(1, "c1") | wrong)
    with pytest.raises(SiteError):
        slurm.identify({})


def test_the_key_names_job_and_node() -> None:
    assert slurm.identify(environ(3, "c2")).key == "slurm-3.c2"


def test_a_plain_job_is_read() -> None:
    job = slurm.parse_job(recorded("plain"), environ(3, "c2"))
    assert (job.cpus, job.memory_mib, job.partition, job.restart_count) == (1, 100, "main", 2)
    assert (job.uid, job.gid, job.user, job.work_dir) == (27001, 27001, "physicist", "/home/physicist")


def test_the_working_directory_is_read_where_the_hook_does_not_say_it() -> None:
    hook = environ(3, "c2")
    del hook["SLURM_JOB_WORK_DIR"]
    assert slurm.parse_job(recorded("plain"), hook).work_dir == "/home/physicist"


@pytest.mark.parametrize("node", ["c1", "c2", "c3"])
def test_one_group_of_nodes_serves_each_of_them(node: str) -> None:
    job = slurm.parse_job(recorded("three-nodes"), environ(27, node))
    assert (job.cpus, job.memory_mib) == (2, 600)


@pytest.mark.parametrize(("node", "cpus"), [("c1", 2), ("c2", 1), ("c3", 1)])
def test_each_node_gets_its_own_group(node: str, cpus: int) -> None:
    job = slurm.parse_job(recorded("two-groups"), environ(28, node))
    assert (job.cpus, job.memory_mib) == (cpus, 500)


def test_memory_that_is_not_counted_is_none() -> None:
    assert slurm.parse_job(recorded("plain").replace(" Mem=100 ", " Mem=0 "), environ(3, "c2")).memory_mib is None


def test_a_task_of_an_array_is_found_among_the_others() -> None:
    assert slurm.parse_job(recorded("array"), environ(29, "c1")).job_id == "29"
    assert slurm.parse_job(recorded("array"), environ(32, "c1")).job_id == "32"


def test_a_newline_in_the_jobs_name_does_no_harm() -> None:
    assert slurm.parse_job(recorded("newline-in-name"), environ(31, "c2")).cpus == 1


def test_a_job_name_with_made_up_fields_is_the_requests_fault() -> None:
    with pytest.raises(RequestError) as caught:
        slurm.parse_job(recorded("made-up-fields"), environ(30, "c2"))
    assert caught.value.code == "job-text-muddled"


FIELDS = " UserId=root(0) GroupId=root(0) MCS_label=N/A JobState=RUNNING JOB_GRES=(null)   Nodes=c2 CPU_IDs=0-3 Mem=9 GRES= MinCPUsNode=1 "


@pytest.mark.parametrize("place", ["JobName=", " Account=", " Network=", " Command=", " WorkDir="])
@pytest.mark.parametrize(
    "forged",
    [
        FIELDS,
        "\nJobId=3 JobName=x" + FIELDS,
        "\nJobId=4 x" + FIELDS,
        " JOB_GRES=x   Nodes=c2 CPU_IDs=0-63 Mem=99999 GRES= ",
    ],
)
def test_no_text_of_the_users_changes_the_allocation(place: str, forged: str) -> None:
    text = recorded("plain").replace(place, place + forged)
    try:
        job = slurm.parse_job(text, environ(3, "c2"))
    except LrmsVmError as error:
        assert error.blame in ("request", "site")
    else:
        assert (job.uid, job.cpus, job.memory_mib) == (27001, 1, 100)


def test_a_job_of_somebody_else_is_not_ours() -> None:
    with pytest.raises(SiteError) as caught:
        slurm.parse_job(recorded("plain"), environ(3, "c2", SLURM_JOB_UID="0"))
    assert caught.value.code == "job-not-ours"


def test_a_job_that_ended_needs_no_guest() -> None:
    with pytest.raises(RequestError) as caught:
        slurm.parse_job(recorded("plain").replace("JobState=RUNNING", "JobState=CANCELLED"), environ(3, "c2"))
    assert caught.value.code == "job-ended"


@pytest.mark.parametrize(
    "text", ["", "slurm_load_jobs error: Invalid job id specified", "JobId=3 ", "JobId=33 JobName=x\n"]
)
def test_an_answer_we_cannot_read_is_the_sites_fault(text: str) -> None:
    with pytest.raises(SiteError):
        slurm.parse_job(text, environ(3, "c2"))


@given(st.text(max_size=300))
def test_any_text_ends_in_an_error_of_ours(text: str) -> None:
    with pytest.raises(LrmsVmError):
        slurm.parse_job(text, environ(3, "c2"))


@given(st.integers(0, len(recorded("plain"))), st.text(max_size=20))
def test_a_damaged_answer_never_gives_another_user_or_more_memory(at: int, text: str) -> None:
    plain = recorded("plain")
    try:
        job = slurm.parse_job(plain[:at] + text + plain[at + 5 :], environ(3, "c2"))
    except LrmsVmError:
        return
    assert job.uid == 27001


# -- notation


@pytest.mark.parametrize(
    ("hostlist", "node", "there"),
    [
        ("n1", "n1", True), ("n[1-3,5]", "n4", False), ("n[1-3,5]", "n5", True), ("n[01-12]", "n07", True),
        ("n[01-12]", "n7", False), ("n[8-11]", "n10", True), ("a1,b[2-3],c", "b3", True), ("a1,b[2-3],c", "c", True),
        ("r[1-2]n[1-4]", "r2n4", True), ("r[1-2]n[1-4]", "r3n4", False), ("n[1-3", "n1", False), ("n[3-1]", "n2", False),
        ("n.1", "nx1", False), ("n[0-999999999]", "n5", True), ("", "n1", False), ("(null)", "n1", False),
    ],
)  # fmt: skip
def test_hostlists(hostlist: str, node: str, there: bool) -> None:
    assert hostlist_has(hostlist, node) is there


@given(st.text(alphabet="n0123456789[],-", max_size=60))
def test_a_hostile_hostlist_is_answered(text: str) -> None:
    assert hostlist_has(text, "n1") in (True, False)


def test_range_sizes() -> None:
    assert [range_size(text) for text in ("0", "0-3", "0-1,4", "", "3-1", "x", "-1", "1-")] == [1, 4, 3] + [None] * 5


# -- what is told to Slurm


def test_a_drain_reason_is_one_bounded_line_that_is_ours() -> None:
    argv = slurm.drain_argv("/usr/bin/scontrol", "n1", "disk\nfull\x1b[31m " + "x" * 500)
    assert argv[:4] == ["/usr/bin/scontrol", "update", "nodename=n1", "state=drain"]
    assert argv[4].startswith("reason=lrms_vm: disk full")
    assert argv[4].isprintable()
    assert len(argv[4]) < 240


def test_active_jobs_come_from_the_squeue_beside_scontrol() -> None:
    assert slurm.active_jobs_argv("/opt/slurm/bin/scontrol", "n1")[0] == "/opt/slurm/bin/squeue"
    assert slurm.parse_active_jobs("27\n28\n\n31\n") == {"27", "28", "31"}
    with pytest.raises(SiteError):
        slurm.parse_active_jobs("slurm_load_jobs error")


# -- no batch system


def test_the_account_is_what_slurm_charges() -> None:
    plain = recorded("plain")
    assert slurm.parse_job(plain, environ(3, "c2")).account == ""
    assert slurm.parse_job(plain.replace(" Account=(null) ", " Account=atlas "), environ(3, "c2")).account == "atlas"
    with pytest.raises(RequestError):
        slurm.parse_job(plain.replace("JobName=job.sh", "JobName=x Account=atlas QOS=y"), environ(3, "c2"))


def test_a_local_allocation_is_what_the_command_line_says() -> None:
    job = local.allocation(pid=7, node="my host", uid=1, gid=2, user="u", work_dir="/w", cpus=2, memory="2G")
    assert (job.key, job.cpus, job.memory_mib) == ("local-7.my-host", 2, 2048)
    with pytest.raises(UsageError):
        local.allocation(pid=7, node="n", uid=1, gid=2, user="u", work_dir="/w", cpus=0, memory="2G")


def test_a_jobs_admin_comment_is_one_argument_of_one_line() -> None:
    argv = slurm.comment_argv("/usr/bin/scontrol", "7", 'image=a signer="CN=A B"\nreason=x' + "y" * 2000)
    assert argv[:3] == ["/usr/bin/scontrol", "update", "jobid=7"]
    assert argv[3].startswith('admincomment=image=a signer="CN=A B" reason=x') and len(argv[3]) < 1100


@pytest.mark.parametrize(
    ("nodes", "here", "first"),
    [("n[1-4]", "n1", True), ("n[1-4]", "n2", False), ("alone", "alone", True), ("", "n1", False), ("n[", "n1", False)],
)
def test_one_node_speaks_for_the_job(nodes: str, here: str, first: bool) -> None:
    assert slurm.is_first_node({"SLURM_NODELIST": nodes, "SLURMD_NODENAME": here}) is first
    assert not slurm.is_first_node({"SLURMD_NODENAME": here})
