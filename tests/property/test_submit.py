"""Whatever the arguments, the script is one printable line that no carrier reads; whatever a system prints, the answer
is ours."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from lrms_vm.errors import LrmsVmError, SiteError
from lrms_vm.lrms import slurm as slurm_hook
from lrms_vm.submit import gridengine, pbs, slurm
from lrms_vm.submit.carry import comment
from lrms_vm.submit.job_script import program, script

# What a program can be given: no NUL, and no half of a surrogate pair but for a byte that is no UTF-8 (PEP 383).
argument = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20) | st.binary(
    max_size=12
).map(lambda data: data.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
word = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,20}", fullmatch=True)


@given(st.lists(argument, min_size=1), st.dictionaries(st.sampled_from(["A", "PATH", "v"]), argument), argument)
def test_a_script_is_one_printable_line_without_a_single_quote(
    argv: list[str], environment: dict[str, str], directory: str
) -> None:
    line = program(argv, environment=environment, directory=directory, stdin=directory, bulk=True, in_guest=True)
    assert line.isprintable() and line.isascii()
    assert "'" not in line
    assert script(line).count(b"\n") == 2
    assert not line.startswith("#")


@given(st.text(max_size=60), word, st.lists(word.map("/".__add__), max_size=3), st.none() | word)
def test_the_hook_reads_what_the_comment_carries(own: str, image: str, shares: list[str], kernel: str | None) -> None:
    request = {"vm-image": image, "vm-share": ",".join(dict.fromkeys(shares)), "vm-kernel": kernel or ""}
    request = {name: text for name, text in request.items() if text}
    with contextlib.suppress(LrmsVmError):
        carried = comment(own, request)
        assert carried.startswith(own)
        options, source = slurm_hook.parse_options({"SLURM_JOB_COMMENT": carried})
        if "lrms_" not in own:
            assert (options, source) == (request, "job comment")
        assert options["vm-image"] == image


@given(st.text() | st.from_regex(r"([0-9]{1,4} +([0-9]|N/A) +[A-Z]+ +[0-9:]+ +\w*\n){0,3}", fullmatch=True))
def test_what_squeue_prints(text: str) -> None:
    with contextlib.suppress(SiteError):
        slurm.parse_look(text)
    with contextlib.suppress(SiteError):
        slurm.parse_submitted(text, 2)


@given(st.text() | st.text(alphabet="<>/?='\" abjoblist_numberstatetasks01", max_size=80))
def test_what_grid_engine_prints(text: str) -> None:
    with contextlib.suppress(SiteError):
        gridengine.parse_list(text)
    gridengine.parse_reason(text, "7")
    gridengine.parse_ended(text, "7")
    with contextlib.suppress(SiteError):
        gridengine.parse_submitted(text, None)


@given(
    st.text()
    | st.from_regex(r"(Job Id: \w\n(    (job_state|exit_status) = [-0-9A-Z]{0,4}\n){0,4}\n?){0,3}", fullmatch=True)
)
def test_what_pbs_prints(text: str) -> None:
    with contextlib.suppress(SiteError):
        for look, _ in pbs.parse_look(text).values():
            assert look.state.ended == (look.result is not None)
    with contextlib.suppress(SiteError):
        pbs.parse_submitted(text, None)
