from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lrms_vm.config import Config, load, parse, read_trusted
from lrms_vm.errors import ConfigError

KERNEL = f"""
[kernels.site]
vmlinuz = "/k/vmlinuz"
initrd = "/k/initrd"
vmlinuz_sha256 = "{"a" * 64}"
initrd_sha256 = "{"b" * 64}"
"""


def test_a_file_that_says_nothing_gets_the_strict_defaults() -> None:
    config = parse(b"version = 1\n", source="f")
    assert config.hypervisor == "kvm"
    assert config.networks_allowed == ("none",)
    assert config.image_places == ()
    assert config.share_roots == ()


def test_tables_become_kernels_and_images() -> None:
    config = parse(
        f'version = 1\nkernel = "site"\n{KERNEL}\n[images.atlas]\nurl = "/i/atlas.raw"\n'.encode(), source="f"
    )
    assert config.kernels["site"].vmlinuz == "/k/vmlinuz"
    assert config.images["atlas"].url == "/i/atlas.raw"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "version: expected 1"),
        ("version = 1\nverify_image_lists = true", "verify_image_lists: unknown key"),
        ("version = 1\nboot_timeout_s = '5'", "boot_timeout_s: expected int"),
        ("version = 1\nboot_timeout_s = true", "boot_timeout_s: expected int"),
        ("version = 1\nboot_timeout_s = 0", "boot_timeout_s: 0 is too small"),
        ("version = 1\nhypervisor = 'bochs'", "hypervisor: expected one of"),
        ("version = 1\nstate_dir = 'x'", "state_dir: expected an absolute path"),
        ("version = 1\nkernel = 'x'", "there is no"),
        ("version = 1\n[images.a]\nurl = 'file:///etc/shadow'", "images.a.url"),
        ("version = 1\n[images.a]\nuri = '/x'", "images.a.uri: unknown key"),
        ("version = 1\n[images.a]", "images.a: missing"),
        ("version = 1\nimages = 3", "images: expected tables"),
        ("version = 1\nshare_roots = '/x'", "share_roots: expected a list"),
        ("version = 1\nversion = 1", "not TOML"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_the_key(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match="f: ") as caught:
        parse(text.encode(), source="f")
    assert said in str(caught.value)
    assert caught.value.exit_code == 78


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(b"version = 1\na = 1\nb = 2\nhypervisor = 'x'", source="f")
    assert all(word in str(caught.value) for word in ("a: unknown", "b: unknown", "hypervisor"))


def test_bytes_that_are_no_text_are_a_config_error() -> None:
    with pytest.raises(ConfigError, match="not TOML"):
        parse(b"\xff\xfe", source="f")


def test_root_believes_no_file_that_others_can_write(tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    path.write_text("version = 1\n")
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="not only root can write it"):
        read_trusted(path)


def test_root_believes_no_file_in_a_directory_that_others_can_write(tmp_path: Path) -> None:
    path = tmp_path / "open" / "f.toml"
    path.parent.mkdir()
    path.write_text("version = 1\n")
    path.parent.chmod(0o777)
    with pytest.raises(ConfigError, match="not only root can write it"):
        read_trusted(path)


def test_a_link_or_a_pipe_is_not_read(tmp_path: Path) -> None:
    import os

    (tmp_path / "link").symlink_to("/etc/hostname")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "absent"):
        with pytest.raises(ConfigError):
            load(tmp_path / name)


def test_the_example_names_every_key_with_its_default() -> None:
    import tomllib

    text = (Path(__file__).parents[2] / "examples" / "lrms_vm.toml").read_bytes()
    assert parse(text, source="example") == dataclasses.replace(Config(), source="example")
    assert set(tomllib.loads(text.decode())) - {"version"} == {
        field.name
        for field in dataclasses.fields(Config)
        if field.name not in ("kernels", "images", "lists", "cache_quota", "source")
    }


def test_lists_and_mirrors_are_read() -> None:
    config = parse(
        b"""version = 1
        [lists.atlas]
        url = "https://images.example.org/atlas.image_list"
        refresh_s = 60
        identifier = "c5ee4f5a-8a4c-4c3d-9b6a-0d5c4a1f7d10"
        [lists.local]
        url = "/srv/lists/local.image_list"
        [images.x]
        url = "https://a.example.org/x.raw"
        mirrors = ["https://b.example.org/x.raw"]
        """,
        source="test",
    )
    assert config.lists["atlas"].refresh_s == 60
    assert (config.lists["local"].refresh_s, config.lists["local"].identifier) == (300, "")
    assert config.images["x"].urls == ("https://a.example.org/x.raw", "https://b.example.org/x.raw")


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("[lists.a]\nurl = 'ftp://x/y'", "lists.a.url"),
        ("[lists.a]\nurl = '/x'\nrefresh_s = 0", "lists.a.refresh_s: 0"),
        ("[lists.a]\nurl = '/x'\nrefresh_s = '300'", "lists.a.refresh_s: expected int"),
        ("[lists.a]\nurl = '/x'\nrefresh_s = true", "lists.a.refresh_s: expected int"),
        ("[lists.'../a']\nurl = '/x'", "expected letters, digits and"),
        ("[lists.a]\nuri = '/x'", "lists.a.uri: unknown key"),
        ("[images.a]\nurl = '/x'\nmirrors = ['file:///x']", "images.a.url"),
        ("[images.a]\nurl = '/x'\nmirrors = '/y'", "images.a.mirrors: expected a list of texts"),
        ("[images.a]\nurl = '/x'\nlisted = 'x'", "images.a.listed: unknown key"),
    ],
)
def test_a_wrong_list_or_mirror_is_an_error_that_names_the_key(table: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse(f"version = 1\n{table}".encode(), source="test")


def test_the_limits_of_the_cache_are_read() -> None:
    from lrms_vm.water_marks import Limits

    config = parse(
        b"""version = 1
        cache_max = "200G"
        cache_high_water = 95
        cache_reserve = "512M"
        state_dir_on_network = true
        [cache_quota]
        atlas = "1.5T"
        """,
        source="test",
    )
    assert config.limits == Limits(200 << 30, 95, 70, 512 << 20, {"atlas": 3 << 39})
    assert config.state_dir_on_network
    assert Config().limits == Limits()


@pytest.mark.parametrize(
    "line",
    [
        'cache_max = "a lot"',
        "cache_max = 5",
        'cache_reserve = "-1"',
        "cache_high_water = 101",
        "cache_low_water = 91",
        "cache_low_water = -1",
        "cache_quota = 5",
        "cache_quota.atlas = 5",
        'cache_quota.atlas = "x"',
        'state_dir_on_network = "yes"',
    ],
)
def test_limits_that_make_no_sense_are_named(line: str) -> None:
    with pytest.raises(ConfigError, match=line.partition(" ")[0].partition(".")[0]):
        parse(f"version = 1\n{line}\n".encode(), source="test")
