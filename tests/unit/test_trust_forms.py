"""qcow2 counts only where policy and builder both say so, and only up to the limits: asked of each job anew."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lrms_vm.errors import RequestError
from lrms_vm.trust.forms import check_form
from lrms_vm.trust.policy import Block
from lrms_vm.trust.verify import Claim
from tests.unit.test_trust_verify import ALICE, claim, cms_by, policy

BUILDER = 'signatures = ["cms"]\n'
QCOW2 = 'formats = ["raw", "qcow2"]\n'
SHA256 = "ab" * 32


@pytest.mark.parametrize(
    ("builder", "defaults", "formats"),
    [
        ("", "", ("raw",)),
        (QCOW2, "", ("raw",)),
        ("", QCOW2, ("raw",)),
        (QCOW2, QCOW2, ("raw", "qcow2")),
        ('formats = ["qcow2"]\n', QCOW2, ("qcow2",)),
        ('formats = ["qcow2"]\n', "", ()),
    ],
)
def test_both_the_policy_and_the_builder_must_name_a_format(
    builder: str, defaults: str, formats: tuple[str, ...]
) -> None:
    assert claim(cms_by(ALICE), policy=policy(BUILDER + builder, defaults=defaults)).formats == formats


@pytest.fixture
def both() -> Claim:
    return claim(cms_by(ALICE), policy=policy(BUILDER + QCOW2, defaults=QCOW2 + 'max_virtual = "1GiB"\nmax_ratio = 10'))


def code_of(asked: Claim, format: str, *, size_bytes: int = 1 << 20, raw_size_bytes: int = 1 << 20) -> str:
    try:
        check_form(asked, format, SHA256, size_bytes=size_bytes, raw_size_bytes=raw_size_bytes)
    except RequestError as error:
        assert error.hint
        return error.code
    return ""


def test_what_is_allowed_passes(both: Claim) -> None:
    assert code_of(both, "raw") == code_of(both, "qcow2") == ""
    assert code_of(both, "qcow2", raw_size_bytes=10 << 20) == ""


@pytest.mark.parametrize("format", ["qcow2", "vmdk", ""])
def test_what_is_not_allowed_is_refused(format: str) -> None:
    assert code_of(claim(cms_by(ALICE)), format) == "format-not-allowed"


def test_a_raw_disk_is_refused_where_only_qcow2_is_allowed(both: Claim) -> None:
    assert code_of(replace(both, formats=("qcow2",)), "raw") == "format-not-allowed"


def test_limits_that_became_narrower_hold_for_what_was_converted_before(both: Claim) -> None:
    assert code_of(both, "qcow2", raw_size_bytes=(10 << 20) + 1) == "image-ratio"
    assert code_of(both, "qcow2", size_bytes=1 << 30, raw_size_bytes=(1 << 30) + 512) == "image-virtual-too-large"


def test_a_block_of_the_disk_holds_whatever_it_was_converted_from(both: Claim) -> None:
    blocked = replace(both, blocked={SHA256: Block(reason="a bad kernel", digest=SHA256, where="trust.toml:9")})
    assert code_of(blocked, "qcow2") == "image-blocked"
