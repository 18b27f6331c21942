"""The pure parts of the Xen node: its files' texts, and the guide's commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo import guide, machine_conf
from demo.layout import Layout
from demo.site_conf import SiteKernel
from demo.users import User
from demo.xen_conf import OWN
from demo.xen_image import RECIPE
from demo.xen_layout import XenLayout
from lrms_vm import config
from lrms_vm.trust.policy import parse_policy

LAYOUT = XenLayout(Path("/srv/xen"), site=Layout(Path("/srv/demo")))
KERNEL = SiteKernel("k", Path("/v"), Path("/i"), "a" * 64, "b" * 64, "root=/dev/vda")


def test_the_guide_says_what_the_node_is_installed_by() -> None:
    lines = RECIPE.commands
    assert "/opt/lrms_vm/bin/lrms-vm install --lrms=slurm" in lines
    assert {"xen-system-amd64", "libvirt-daemon-driver-xen", "qemu-system-xen"} <= set(RECIPE.all_packages)


def test_a_heading_that_is_gone_is_said(tmp_path: Path) -> None:
    path = tmp_path / "guide.md"
    path.write_text("# One\n\n    apt install a b\n\n## Two\n\ntext\n")
    assert guide.commands(["One"], path) == ["apt install a b"]
    with pytest.raises(ValueError, match="'Two'"):
        guide.commands(["One", "Two"], path)


def test_the_nodes_configuration_is_one() -> None:
    text = machine_conf.lrms_vm_toml(
        LAYOUT, OWN, kernel=machine_conf.node_kernel(KERNEL, OWN), images={"hep-jets": Path("/srv/x.raw")}
    )
    read = config.parse(text.encode(), source="test")
    assert (read.hypervisor, read.libvirt_uri) == ("xen", "xen:///system")
    assert read.kernels["k"].vmlinuz == "/var/lib/lrms_vm-site/vmlinuz"
    assert "xvda" in read.kernels["k"].cmdline


def test_the_nodes_policy_is_one_and_names_the_certificates_of_the_node() -> None:
    text = machine_conf.policy(LAYOUT)
    assert parse_policy(text.encode(), source="test").ca_dir == "/etc/grid-security/certificates"


def test_controller_and_node_differ_only_in_where_they_find_munge_and_the_plugin() -> None:
    outside, inside = (
        set(machine_conf.slurm_conf(LAYOUT, OWN, host="here", in_node=in_node).splitlines())
        for in_node in (False, True)
    )
    assert {line.partition("=")[0] for line in outside ^ inside} == {"AuthInfo", "PlugStackConfig"}


def test_users_have_the_same_numbers_on_the_node() -> None:
    lines = machine_conf.account_lines({"u": User("u", 995, 994, "/x")}, {"u": (994, []), "g": (9, ["u"])}, Path("/h"))
    assert lines["etc/passwd"] == "u:x:995:994::/h/u:/bin/sh\n"
    assert lines["etc/group"] == "u:x:994:\ng:x:9:u\n"
    assert lines["etc/shadow"].startswith("u:!:")
