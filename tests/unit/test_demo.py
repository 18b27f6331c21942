"""The pure parts of the demo's cluster."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from demo import timeline
from demo.layout import Layout
from demo.leftovers import key_in
from demo.site_conf import Builder, SiteKernel, lrms_vm_toml, trust_toml
from demo.slurm_conf import slurm_conf
from lrms_vm import config
from lrms_vm.trust.policy import parse_policy

LAYOUT = Layout(Path("/srv/demo"))


@pytest.mark.parametrize(
    ("text", "carries"),
    [
        ("slurm-1.n1", True),
        ("lrms_vm-slurm-1.n1", True),
        ("slurm-1.n1.json", True),
        ("guest=lrms_vm-slurm-1.n1,debug-threads=on", True),
        ("slurm-11.n1", False),
        ("slurm-1.n10", False),
        ("slurm-2.n1", False),
    ],
)
def test_a_key_is_not_mistaken_for_one_that_begins_alike(text: str, carries: bool) -> None:
    assert key_in(text, "slurm-1.n1") is carries


def test_phases_are_shown_in_their_order_and_to_scale() -> None:
    lines = timeline.render({"payload": 500.0, "fetch": 500.0, "own": 0.0}, width=10).splitlines()
    assert [line.split()[0] for line in lines] == ["fetch", "payload", "own"]
    assert [line.count("#") for line in lines] == [5, 5, 0]


def test_a_timeline_of_nothing_is_empty() -> None:
    assert timeline.render({}) == ""


def test_each_node_has_its_own_hooks_and_the_rest_in_common() -> None:
    one, two = (slurm_conf(LAYOUT, host="here", node=node).splitlines() for node in ("n1", "n2"))
    different = {a.partition("=")[0] for a, b in zip(one, two, strict=True) if a != b}
    assert different == {"Prolog", "Epilog", "PlugStackConfig"}


def test_the_demos_configuration_is_one() -> None:
    kernel = SiteKernel("k", Path("/v"), Path("/i"), "a" * 64, "b" * 64, "root=/dev/vda")
    text = lrms_vm_toml(LAYOUT, "n1", hypervisor="qemu", kernel=kernel, images={"hep-jets": Path("/srv/x.raw")})
    read = config.parse(text.encode(), source="test")
    assert read.images["hep-jets"].url == "/srv/x.raw"
    assert read.kernels["k"].cmdline == "root=/dev/vda"


def test_the_demos_policy_is_one() -> None:
    text = trust_toml(LAYOUT, [Builder("b", "CN=CA", "CN=Builder")], images=["*"])
    assert tomllib.loads(text)["runner"][0]["builders"] == ["b"]
    parse_policy(text.encode(), source="test")
