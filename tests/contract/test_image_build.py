"""A real build of the smallest image, looked into without mounting it. Builds once; the second test is the cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lrms_vm import build
from lrms_vm.errors import UsageError

ROOT = Path(__file__).parent.parent.parent
# Kept between runs: the point of the second build is that there is none.
OUTPUT = ROOT / "build" / "test-images"


def lines(image: Path, command: str) -> str:
    """What debugfs(8) says of a file in an image: it reads the file system, nothing is mounted."""
    done = subprocess.run(["debugfs", "-R", command, str(image)], capture_output=True, text=True, timeout=60)
    return done.stdout


@pytest.fixture(scope="module")
def image() -> Path:
    assert os.geteuid() == 0, "image build is for root"
    said: list[str] = []
    made = build.build(ROOT / "images" / "minimal.toml", OUTPUT, force=False, progress=said.append)
    assert said
    return made.outputs[0]


def test_the_image_is_a_whole_disk_ext4_with_our_label(image: Path) -> None:
    head = subprocess.run(["dumpe2fs", "-h", str(image)], capture_output=True, text=True, timeout=60).stdout
    assert "lrms-vm-root" in head
    assert "has_journal" not in head
    assert image.stat().st_size < 600 << 20
    checked = subprocess.run(["e2fsck", "-fn", str(image)], capture_output=True, text=True, timeout=120)
    assert checked.returncode == 0, checked.stdout


def test_the_image_starts_the_guest_and_nothing_else(image: Path) -> None:
    units = "/etc/systemd/system"
    assert "lrms-vm.target" in lines(image, f"stat {units}/default.target")
    assert "guest boot" in lines(image, f"cat {units}/lrms-vm-guest.service")
    assert "/dev/null" in lines(image, f"stat {units}/ssh.service")
    assert "Inode" in lines(image, "stat /usr/bin/sshfs")
    assert "Inode" in lines(image, "stat /usr/sbin/sshd")


def test_the_image_carries_no_kernel_no_keys_and_nothing_of_this_machine(image: Path) -> None:
    assert "vmlinuz" not in lines(image, "ls /boot")
    assert "ssh_host_" not in lines(image, "ls /etc/ssh")
    assert lines(image, "cat /etc/machine-id") == ""
    assert lines(image, "cat /etc/apt/sources.list") == ""
    assert "Packages" not in lines(image, "ls /var/lib/apt/lists")
    assert lines(image, "cat /etc/hostname") == "guest\n"
    password = next(line for line in lines(image, "cat /etc/shadow").splitlines() if line.startswith("root:"))
    assert password.split(":")[1][:1] in ("*", "!")


def test_the_second_build_is_a_hit(image: Path) -> None:
    before = image.stat().st_mtime_ns
    made = build.build(ROOT / "images" / "minimal.toml", OUTPUT, force=False, progress=lambda _line: None)
    assert not made.fresh
    assert image.stat().st_mtime_ns == before


def test_the_record_tells_what_is_in_it(image: Path) -> None:
    facts = json.loads((OUTPUT / "minimal.build.json").read_text())
    assert facts["files"]["minimal.raw"]["size_bytes"] == image.stat().st_size
    assert any(line.startswith("openssh-server ") for line in facts["packages"])


def test_another_recipe_of_the_same_name_is_no_hit(image: Path, tmp_path: Path) -> None:
    text = (ROOT / "images" / "minimal.toml").read_text().replace('version = "1"', 'version = "2"')
    (tmp_path / "minimal.toml").write_text(text)
    shutil.copy(OUTPUT / "minimal.build.json", tmp_path)
    digest = build._digest(build.load(tmp_path / "minimal.toml"), {})
    assert build._made_before(tmp_path / "minimal.build.json", digest) is None


def test_a_missing_file_of_a_recipe_ends_the_build_before_it_starts(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('name = "r"\nversion = "1"\nsuite = "bookworm"\n[files]\n"/etc/motd" = "nosuch"\n')
    with pytest.raises(UsageError, match="nosuch: cannot read"):
        build.build(recipe, tmp_path / "out", force=False, progress=print)
    assert not (tmp_path / "out").exists()
