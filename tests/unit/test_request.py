from __future__ import annotations

import pytest

from lrms_vm.errors import UsageError
from lrms_vm.image import parse_reference
from lrms_vm.request import Allocation, parse_request


def allocation(**changes: object) -> Allocation:
    values: dict[str, object] = {
        "lrms": "slurm", "job_id": "7", "node": "n1", "uid": 1000, "gid": 1000, "user": "alice",
        "work_dir": "/home/alice", "cpus": 2, "memory_mib": 2000,
    }  # fmt: skip
    return Allocation(**(values | changes))  # type: ignore[arg-type]


def test_every_option_is_read_into_its_type() -> None:
    request = parse_request(
        {
            "vm-image": "atlas/sim@13.0.10", "vm-memory": "2G", "vm-cpus": "4", "vm-network": "bridge:br0",
            "vm-share": "/data,/cvmfs/atlas", "vm-kernel": "debian-12", "vm-env": "OMP_NUM_THREADS,PATH",
        },
        source="--vm-image",
    )  # fmt: skip
    assert request.image.name == "atlas/sim"
    assert request.image.version == "13.0.10"
    assert (request.memory_mib, request.cpus, request.network) == (2048, 4, "bridge:br0")
    assert request.shares == ("/data", "/cvmfs/atlas")
    assert request.env_names == ("OMP_NUM_THREADS", "PATH")


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("vm-memory", "0"), ("vm-cpus", "0"), ("vm-cpus", "-1"), ("vm-cpus", "1.5"), ("vm-cpus", "٣"),
        ("vm-network", "host"), ("vm-network", "bridge:"), ("vm-network", "bridge:a b"), ("vm-network", "bridge:" + "x" * 16),
        ("vm-share", "data"), ("vm-share", "/a/../etc"), ("vm-share", "/a,"), ("vm-share", "//etc"),
        ("vm-kernel", "../x"), ("vm-kernel", "-x"), ("vm-env", "A=B"), ("vm-env", "A,,B"), ("vm-env", "LD PRELOAD"),
        ("vm-image", "a" * 5000), ("vm-network", "none\n"), ("vm-extra", "x"),
    ],
)  # fmt: skip
def test_hostile_option_texts_are_refused_as_the_requests_fault(word: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_request({"vm-image": "atlas", word: text}, source="job comment")
    assert caught.value.exit_code == 64
    assert caught.value.code


def test_options_without_an_image_are_refused() -> None:
    with pytest.raises(UsageError, match="no --vm-image"):
        parse_request({"vm-cpus": "1"}, source="--vm-image")


@pytest.mark.parametrize(
    "text",
    ["", "-x", "a b", "a;rm -rf /", "$(id)", "a\nb", "a,b", "a=b", "'a'", "../etc", "/a/../b", "a//b", "atl\u0430s", "a\x00",
     "\u202eatlas", "x" * 2000, "file:///etc/passwd", "@1"],
)  # fmt: skip
def test_hostile_image_references_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_reference(text, source="--vm-image")
    assert caught.value.code == "reference-unreadable"


def test_a_reference_is_exactly_one_of_name_digest_and_place() -> None:
    assert parse_reference("sha256:" + "a" * 64, source="x").sha256 == "a" * 64
    assert parse_reference("/images/a.raw", source="x").url == "/images/a.raw"
    assert parse_reference("https://images.example/a.raw", source="x").url == "https://images.example/a.raw"
    assert parse_reference("atlas", source="x").name == "atlas"


@pytest.mark.parametrize(
    ("field", "value"), [("job_id", "../1"), ("job_id", ""), ("node", "n/1"), ("node", "-n"), ("node", "a..b")]
)
def test_a_key_can_never_leave_its_directory(field: str, value: str) -> None:
    with pytest.raises(UsageError):
        allocation(**{field: value})


def test_the_key_names_batch_system_job_and_node() -> None:
    assert allocation().key == "slurm-7.n1"
