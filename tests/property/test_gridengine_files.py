"""The files that sge_execd spools, with anything in them: what is written is read back, and nothing poses as a setting."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from lrms_vm.errors import RequestError, SiteError, UsageError
from lrms_vm.lrms import gridengine
from lrms_vm.lrms.base import Call

SETTINGS = {
    "h_vmem": "1G", "h_vmem_is_consumable_job": "0", "h_rss": "INFINITY", "job_owner": "alice", "host": "n1",
    "cwd": "/home/alice", "host_slots": "2", "queue": "vm.q", "job_id": "42", "ja_task_id": "0",
}  # fmt: skip
names = st.text("ABCDEFGH_abc", min_size=1, max_size=8)
values = st.text(st.characters(codec="utf-8", exclude_characters="\n\0"), max_size=20)


def call(config: str, environment: str = "") -> Call:
    return Call(
        files={
            "config": config.encode(),
            "environment": environment.encode("utf-8", "surrogateescape"),
            "directory": b"42.1",
        }
    )


def lines(pairs: dict[str, str]) -> str:
    return "".join(f"{name}={value}\n" for name, value in pairs.items())


@given(st.dictionaries(names, values))
def test_an_environment_is_read_back(variables: dict[str, str]) -> None:
    assert gridengine.parse_environment(lines(variables).encode()) == variables


@given(st.dictionaries(names, values), values)
def test_the_request_is_what_the_file_says(variables: dict[str, str], image: str) -> None:
    spooled = call("", lines({**variables, "VM_IMAGE": image}))
    assert gridengine.parse_options(spooled)[0] == {"vm-image": image}


@given(st.dictionaries(names, values), values, values)
def test_a_variable_of_ours_that_comes_twice_is_believed_in_neither_place(
    variables: dict[str, str], one: str, other: str
) -> None:
    text = f"VM_IMAGE={one}\n{lines(variables)}VM_IMAGE={other}\n"
    with contextlib.suppress(UsageError):
        gridengine.parse_options(call("", text))
        raise AssertionError("it was believed")


@given(st.sampled_from(sorted(SETTINGS)), values, st.integers(0, len(SETTINGS)))
def test_no_line_of_an_argument_changes_a_setting(name: str, value: str, at: int) -> None:
    """A newline in an argument makes a line of its own, wherever in the file the argument stands."""
    rows = lines(SETTINGS).splitlines(keepends=True)
    rows.insert(at, f"{name}={value}\n")
    with contextlib.suppress(RequestError, SiteError):
        gridengine.identify(call("".join(rows)), uid=1001, gid=1001)
        raise AssertionError("it was believed")


@given(st.text("abc/ =\n", max_size=60))
def test_lines_of_other_names_change_nothing(text: str) -> None:
    before = gridengine.identify(call(lines(SETTINGS)), uid=1001, gid=1001)
    assert gridengine.identify(call(f"{lines(SETTINGS)}{text}"), uid=1001, gid=1001) == before
