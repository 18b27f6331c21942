"""Torque's and OpenPBS's texts with anything in them: a parser returns, or raises what it promises, and nothing else."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lrms_vm.errors import RequestError, SiteError, UsageError
from lrms_vm.lrms import openpbs, pbs_text, torque, torque_filter
from lrms_vm.lrms.base import Call

DATA = Path(__file__).parent.parent / "data" / "torque"
JOB_FILE = (DATA / "job.JB.xml").read_bytes()
QSTAT = (DATA / "qstat.txt").read_text()

names = st.text("abcdefgh_", min_size=1, max_size=8)
values = st.text(st.characters(codec="utf-8", exclude_characters=",\n"), max_size=20)
nearly = st.tuples(st.integers(0, 2000), st.integers(0, 40), st.binary(max_size=12))


def bent(data: bytes, change: tuple[int, int, bytes]) -> bytes:
    at, cut, new = change
    at %= len(data)
    return data[:at] + new + data[at + cut :]


@given(st.text(max_size=60) | st.from_regex(r"[0-9]{1,6}(\[[0-9]{0,4}\])?(\.[a-z.]{1,20})?", fullmatch=True))
def test_a_job_id_makes_a_plain_name_or_none(text: str) -> None:
    with contextlib.suppress(SiteError):
        found = pbs_text.parse_job_id(text)
        assert "." not in found.name
        assert not {"/", "[", "]", "\0", "\n"} & set(found.file_prefix)


@given(st.dictionaries(names, values.filter(lambda text: "=" not in text)))
def test_a_resource_list_is_read_back(resources: dict[str, str]) -> None:
    text = ",".join(f"{name}={value}" for name, value in resources.items())
    assert pbs_text.parse_resources(text) == resources


@given(st.text(max_size=200))
def test_any_text_is_a_resource_list_or_refused(text: str) -> None:
    with contextlib.suppress(RequestError):
        found = pbs_text.parse_resources(text)
        pbs_text.ppn(found.get("nodes", ""))
        memory = pbs_text.memory_mib(found, (1, 2))
        assert memory is None or memory > 0


@given(st.dictionaries(names, values))
def test_variables_are_read_back(variables: dict[str, str]) -> None:
    text = ",".join(f"{name}={value}" for name, value in variables.items())
    assert pbs_text.parse_variables(text) == variables


@given(st.text(max_size=200))
def test_any_text_is_a_list_of_variables_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert all(isinstance(value, str) for value in pbs_text.vm_variables(pbs_text.parse_variables(text)).values())


@given(st.dictionaries(names, values.filter(lambda text: text == text.strip() and text.isprintable()), min_size=1))
def test_qstat_is_read_back(fields: dict[str, str]) -> None:
    text = "Job Id: 7.t\n" + "".join(f"    {name} = {value}\n" for name, value in fields.items()) + "\n"
    assert pbs_text.parse_qstat(text) == {"7.t": fields}


@given(nearly)
def test_a_bent_qstat_is_read_or_refused(change: tuple[int, int, bytes]) -> None:
    text = bent(QSTAT.encode(), change).decode("utf-8", "replace")
    with contextlib.suppress(RequestError):
        pbs_text.parse_qstat(text)
    with contextlib.suppress(SiteError):
        torque.parse_active(text)


@given(st.sampled_from(["exec_host", "job_state", "Variable_List", "euser"]), values)
def test_no_value_of_the_users_changes_another_field(name: str, value: str) -> None:
    """A newline and a made-up field in a variable: noticed, or the field is what it was."""
    before = pbs_text.parse_qstat(QSTAT)["12.tqa"]
    text = QSTAT.replace("X=y", f"X=y\n    {name} = {value}")
    with contextlib.suppress(RequestError):
        after = pbs_text.parse_qstat(text)["12.tqa"]
        assert name not in before or after[name] == before[name]


@given(nearly)
def test_a_bent_job_file_is_read_or_refused(change: tuple[int, int, bytes]) -> None:
    with contextlib.suppress(SiteError, RequestError):
        pbs_text.parse_job_file(bent(JOB_FILE, change))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_job_file_or_refused(data: bytes) -> None:
    with contextlib.suppress(SiteError, RequestError):
        pbs_text.parse_job_file(data)


@given(st.lists(st.tuples(st.sampled_from(["tqa", "tqb", "n1.x.org"]), st.integers(0, 30)), min_size=1))
def test_slots_are_counted(slots: list[tuple[str, int]]) -> None:
    text = "+".join(f"{host}/{slot}" for host, slot in slots)
    here = sum(1 for host, _ in slots if host == "tqa")
    assert pbs_text.slots_on(text, "tqa") == ((here, len(slots)) if here else None)


@given(st.text(max_size=100), st.text(max_size=20))
def test_any_text_has_slots_or_none(text: str, node: str) -> None:
    found = pbs_text.slots_on(text, node)
    assert found is None or 0 < found[0] <= found[1]
    chunks = pbs_text.chunks_on(text, (node,))
    assert chunks is None or (chunks[0] > 0 and (chunks[1] is None or chunks[1] > 0))


@given(st.text(max_size=300), st.integers(0, 300))
def test_what_the_server_is_told_is_plain(text: str, most: int) -> None:
    told = pbs_text.plain(text, most)
    assert len(told) <= most
    assert told.isascii()
    assert not set(told) & set(",=\"'\\`$\n\0")


@given(st.lists(st.text(max_size=20), max_size=3), st.none() | st.binary(max_size=60))
def test_any_start_is_a_command_or_refused(argv: list[str], line: bytes | None) -> None:
    with contextlib.suppress(UsageError):
        found = torque.command(argv, {}, line)
        assert found.words
        assert found.script_at is None or found.words[found.script_at].startswith("/")


@given(st.lists(st.text(max_size=30), min_size=8, max_size=8))
def test_any_arguments_are_a_job_or_refused(words: list[str]) -> None:
    call = Call(tuple(words), {}, {torque.HOST: b"n1"})
    with contextlib.suppress(SiteError, RequestError):
        assert torque.identify(call, uid=1, gid=1).key.endswith(".n1")
    with contextlib.suppress(SiteError, RequestError):
        torque.parse_options(call)


directives = st.lists(
    st.sampled_from(
        ["#!/bin/sh", "#VM --vm-image=a", "#PBS -N x", "#PBS -v A=1", "#VM --vm-cpus=1", "", "hostname", "# x"]
    )
    | st.text(max_size=20).map(lambda text: text.replace("\n", " ")),
    max_size=8,
)


@given(directives)
def test_the_filter_changes_only_the_header(lines: list[str]) -> None:
    script = "\n".join(lines).encode()
    with contextlib.suppress(UsageError):
        after = torque_filter.filtered(script, [])
        body = script.partition(b"\nhostname")[2] if script.startswith((b"#", b"\n")) else script
        assert after.endswith(body)
        assert torque_filter.filtered(after, []) == after


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_json_is_the_hooks_facts_or_refused(value: object) -> None:
    call = Call(("300",), {}, {openpbs.FACTS: json.dumps(value).encode()})
    with contextlib.suppress(SiteError):
        openpbs.identify(call, uid=1, gid=1)


@given(st.binary(max_size=200))
def test_any_bytes_are_the_hooks_facts_or_refused(data: bytes) -> None:
    with contextlib.suppress(SiteError):
        openpbs.facts(Call(("300",), {}, {openpbs.FACTS: data}))
