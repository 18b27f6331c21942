from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrms_vm.errors import NodeError
from lrms_vm.verdict import READY, REFUSED, Verdict, read_verdict, write_verdict


def test_what_is_written_is_read_back() -> None:
    verdict = Verdict(READY, "slurm-7.n1", 1000, shares=("/a", "/b"), env_names=("X",), image={"name": "i"})
    assert read_verdict(write_verdict(verdict), source="f") == verdict


def test_a_refusal_keeps_its_words() -> None:
    verdict = Verdict(REFUSED, "k", 7, exit_code=77, code="not-signed", message="m <&\"'", hint="h")
    assert read_verdict(write_verdict(verdict), source="f") == verdict


@given(st.binary(max_size=300))
def test_anything_else_is_the_nodes_fault_and_never_a_parsers_error(text: bytes) -> None:
    with pytest.raises(NodeError):
        read_verdict(text, source="f")


@pytest.mark.parametrize("change", [{"version": 2}, {"state": "maybe"}, {"extra": 1}, {"shares": 3}])
def test_another_version_or_shape_is_refused(change: dict[str, object]) -> None:
    values = json.loads(write_verdict(Verdict(READY, "k", 7))) | change
    with pytest.raises(NodeError, match="not a verdict"):
        read_verdict(json.dumps(values).encode(), source="f")
