"""The texts in tests/data/torque were recorded on a real Torque 6.1.3."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrms_vm.errors import RequestError, SiteError, UsageError
from lrms_vm.lrms import pbs_text

DATA = Path(__file__).parent.parent / "data" / "torque"


@pytest.mark.parametrize(
    ("text", "name", "prefix"),
    [
        ("77.tqa", "77", "77.tqa"),
        ("42[1].tqa", "42-1", "42-1.tqa"),
        ("42[1].head.example.org", "42-1", "42-1.head.example.org"),
        ("7", "7", "7"),
    ],
)
def test_a_job_id_becomes_a_file_name_as_torque_makes_it(text: str, name: str, prefix: str) -> None:
    read = pbs_text.parse_job_id(text)
    assert (read.name, read.file_prefix) == (name, prefix)


@pytest.mark.parametrize(
    "text", ["", "42[].tqa", "../7.tqa", "7.tqa/..", "7[1", "7.t qa", "x", "7.tqa\n", "-7", "٧.tqa"]
)
def test_what_is_no_job_id_is_refused(text: str) -> None:
    with pytest.raises(SiteError):
        pbs_text.parse_job_id(text)


def test_a_resource_list_is_read_by_name() -> None:
    text = "nodes=1:ppn=2,walltime=00:01:40,neednodes=1:ppn=2,other=vm:hep-jets@1.2"
    read = pbs_text.parse_resources(text)
    assert read["nodes"] == "1:ppn=2"
    assert read["other"] == "vm:hep-jets@1.2"
    assert pbs_text.parse_resources("") == {}
    assert pbs_text.parse_resources("feature=a,b,mem=1gb") == {"feature": "a,b", "mem": "1gb"}


def test_a_resource_that_comes_twice_is_believed_in_neither_place() -> None:
    with pytest.raises(RequestError) as caught:
        pbs_text.parse_resources("other=vm:a,nodes=1,other=vm:b")
    assert caught.value.code == "job-text-muddled"


def test_variables_are_cut_at_commas_as_torque_does() -> None:
    read = pbs_text.parse_variables("PBS_O_HOME=/home/alice,Q=a,name=,VM_IMAGE=deb12,rest")
    assert read == {"PBS_O_HOME": "/home/alice", "Q": "a", "name": "", "VM_IMAGE": "deb12"}
    with pytest.raises(UsageError):
        pbs_text.parse_variables("VM_IMAGE=a,X=1,VM_IMAGE=b")


QSTAT = """\
Job Id: 77.tqa
    Job_Name = t1
    Job_Owner = alice@tqa
    job_state = R
    exec_host = tqa/0-1+tqb/3
    Resource_List.walltime = 00:01:40
    Variable_List = PBS_O_HOME=/home/alice,VM_IMAGE=deb12,X=two
lines
    comment = Job started
"""


def test_qstat_is_read_field_by_field() -> None:
    fields = pbs_text.parse_qstat(QSTAT)["77.tqa"]
    assert fields["Resource_List.walltime"] == "00:01:40"
    assert fields["Variable_List"].endswith("X=twolines")
    assert fields["comment"] == "Job started"


@pytest.mark.parametrize("line", ["    job_state = C", "    exec_host = tqa/0-63", "Job Id: 77.tqa"])
def test_a_made_up_field_in_a_value_is_noticed(line: str) -> None:
    with pytest.raises(RequestError):
        pbs_text.parse_qstat(QSTAT.replace("\nlines", f"\n{line}"))


def test_the_recorded_job_file_is_read() -> None:
    fields = pbs_text.parse_job_file((DATA / "job.JB.xml").read_bytes())
    assert (fields["jobid"], fields["exec_host"], fields["euser"]) == ("5.tqa", "tqa/0", "alice")
    assert fields["Resource_List.walltime"] == "00:01:00"
    assert pbs_text.parse_variables(fields["Variable_List"])["PBS_O_HOST"] == "tqa"


BOMB = b'<!DOCTYPE job [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;">]><job><attributes><x>&b;</x></attributes></job>'


@pytest.mark.parametrize(
    "data",
    [
        BOMB,
        BOMB.decode().encode("utf-16"),
        b'<?xml version="1.0" encoding="utf-7"?>+ADwAIQ-DOCTYPE job>',
        b"",
        b"<job>",
        b"<job/>",
        b"<x><attributes/></x>",
        b"<job><attributes/><attributes/></job>",
        b"<job>\xff</job>",
        b" " * (pbs_text.MAX_BYTES + 1),
    ],
    ids=range(10),
)
def test_a_hostile_job_file_is_refused(data: bytes) -> None:
    with pytest.raises(SiteError):
        pbs_text.parse_job_file(data)


def test_a_job_file_with_a_field_twice_is_believed_in_neither_place() -> None:
    with pytest.raises(RequestError):
        pbs_text.parse_job_file(
            b"<job><attributes><exec_host>a/0</exec_host><exec_host>a/1</exec_host></attributes></job>"
        )


@pytest.mark.parametrize(
    ("text", "node", "cpus"),
    [
        ("tqa/0", "tqa", (1, 1)),
        ("tqa/0+tqa/1+tqb/0", "tqa", (2, 3)),
        ("tqa/0-3,7", "tqa.example.org", (5, 5)),
        ("tqa.x.org/0", "tqa", (1, 1)),
        ("tqa.x.org/0", "tqa.y.org", None),
        ("tqb/0", "tqa", None),
        ("tqa/", "tqa", None),
        ("tqa/3-1", "tqa", None),
        ("", "tqa", None),
    ],
)
def test_cpus_are_counted_from_exec_host(text: str, node: str, cpus: tuple[int, int] | None) -> None:
    assert pbs_text.slots_on(text, node) == cpus


def test_cpus_are_counted_from_the_node_file() -> None:
    assert pbs_text.lines_on("tqa\ntqa\ntqb\n", "tqa") == (2, 3)
    assert pbs_text.lines_on("tqb\n", "tqa") is None


@pytest.mark.parametrize(
    ("resources", "cpus", "mib"),
    [
        ({}, (1, 1), None),
        ({"mem": "2gb"}, (1, 2), 1024),
        ({"mem": "2gb"}, (2, 2), 2048),
        ({"pmem": "512mb"}, (4, 8), 2048),
        ({"mem": "2gb", "pmem": "512mb"}, (2, 2), 1024),
        ({"mem": "lots"}, (1, 1), None),
        ({"mem": "1"}, (1, 1), 1),
    ],
)
def test_memory_is_the_nodes_share(resources: dict[str, str], cpus: tuple[int, int], mib: int | None) -> None:
    assert pbs_text.memory_mib(resources, cpus) == mib


@pytest.mark.parametrize(
    ("text", "vnodes", "given"),
    [
        ("(n1:ncpus=2:mem=1048576kb)+(n2:ncpus=4)", ("n1",), (2, 1024)),
        ("(n1:ncpus=1:mem=512mb+n1[1]:ncpus=1:mem=512mb)", ("n1", "n1[1]"), (2, 1024)),
        ("(n1:ncpus=2)", ("n1",), (2, None)),
        ("(n2:ncpus=2)", ("n1",), None),
        ("rubbish!", ("n1",), None),
        ("", ("n1",), None),
    ],
)
def test_openpbs_chunks_are_added_up_for_this_node(text: str, vnodes: tuple[str, ...], given: object) -> None:
    assert pbs_text.chunks_on(text, vnodes) == given


def test_what_goes_to_the_server_is_one_plain_line() -> None:
    assert pbs_text.plain("a=\"b\",\n'c' `d` $(e) é", 100) == "a b c d (e)"
    assert len(pbs_text.plain("x" * 999, 200)) == 200
