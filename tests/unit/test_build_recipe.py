"""A recipe is read whole or refused whole, with every problem named; what is made of it needs no machine to check."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrms_vm import apt_sources, build, guest_system, initrd, recipe
from lrms_vm.errors import NodeError, UsageError

ROOT = Path(__file__).parent.parent.parent
GOOD = b'name = "x"\nversion = "1"\nsuite = "bookworm"\n'


def parse(more: bytes = b"", base: bytes = GOOD) -> recipe.Recipe:
    return recipe.parse(base + more, source="r.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "images").glob("*.toml")), ids=lambda p: p.stem)
def test_our_own_recipes_are_read_and_their_files_exist(path: Path) -> None:
    what = build.load(path)
    assert what.name == path.stem
    if what.pip:
        listed = path.parent / what.pip.requirements
        assert recipe.parse_requirements(listed.read_bytes(), source=str(listed))


def test_the_shortest_recipe_takes_defaults() -> None:
    what = parse()
    assert (what.packages, what.pip, what.kernel, what.commands) == ((), None, None, ())


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (b"package = []", "package: unknown key"),
        (b'packages = "procps"', "packages: expected a list"),
        (b'packages = ["procps --force"]', "packages: expected a list"),
        (b'packages = ["a,b"]', "packages: expected a list"),
        (b'packages = ["-o=Dir::Etc=/tmp"]', "packages: expected a list"),
        (b"free_mib = 1.5", "free_mib: expected a number"),
        (b"free_mib = true", "free_mib: expected a number"),
        (b"free_mib = -1", "free_mib: expected a number"),
        (b'commands = ["ldconfig"]', "commands: expected a list of argument vectors"),
        (b"commands = [[]]", "commands: expected a list of argument vectors"),
        (b'commands = [["a\\u0000b"]]', "commands: expected a list of argument vectors"),
        (b'remove = ["/usr/../../etc"]', "remove: expected a list"),
        (b'remove = ["etc"]', "remove: expected a list"),
        (b'[files]\n"/../etc/passwd" = "x"', "absolute path of the image"),
        (b'[files]\n"etc/passwd" = "x"', "absolute path of the image"),
        (b'[files]\n"/etc/motd" = "/etc/shadow"', "relative to the recipe"),
        (b'[files]\n"/etc/motd" = 3', "relative to the recipe"),
        (b"pip = 3", "pip: expected a table"),
        (b"[pip]\n", "pip.requirements: missing"),
        (b'[pip]\nrequirements="r"\nprefix="/usr/local"\npython="2.7"', "pip.python"),
        (b'[pip]\nrequirements="r"\nprefix="/usr/local"\npython="3.11"\nindex="x"', "pip.index: unknown key"),
        (b'[kernel]\npackage="linux image"\ncmdline="x"', "kernel.package"),
        (b'[kernel]\npackage="linux"\ncmdline="a\\nb"', "kernel.cmdline"),
        (b'[kernel]\npackage="linux"\ncmdline="x"\nmodules=["../x"]', "kernel.modules"),
        (b'packages=["procps"]\n[kernel]\npackage="linux"\ncmdline="x"', "not both"),
    ],
)
def test_a_bad_key_is_refused_by_name(more: bytes, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(more)
    assert says in caught.value.message
    assert caught.value.message.startswith("r.toml: ")
    assert caught.value.exit_code == 64


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../x", "a b", "a\\n", "x" * 101, "ä"])
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        parse(base=f'name = "{name}"\nversion = "1"\nsuite = "bookworm"\n'.encode())


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        parse(b"free_mib = 0\ncolour = 1", base=b'name = "x"\n')
    for key in ("version", "suite", "free_mib", "colour"):
        assert f"{key}: " in caught.value.message


@given(st.binary(max_size=300))
def test_any_bytes_end_in_a_recipe_or_a_usage_error(text: bytes) -> None:
    with contextlib.suppress(UsageError):
        recipe.parse(text, source="r")


@pytest.mark.parametrize("line", ["numpy", "numpy>=1", "numpy==1.*", "-r other.txt", "--index-url=x", "x @ file:///x"])
def test_a_requirement_that_is_not_pinned_is_refused(line: str) -> None:
    with pytest.raises(UsageError, match=r"r\.txt:2"):
        recipe.parse_requirements(f"# wheels\n{line}\n".encode(), source="r.txt")


def test_an_image_that_cannot_be_read_says_which() -> None:
    with pytest.raises(UsageError, match="cannot read"):
        build.load(Path("/nonexistent/recipe.toml"))


def test_only_sources_of_the_suite_are_used() -> None:
    text = "# deb uri:x bookworm main\ndeb [arch=amd64 signed-by=/k] uri:a bookworm main contrib\ndeb-src uri:b bookworm main\n"
    assert (
        apt_sources.lines_for_suite(text, "bookworm") == "deb [arch=amd64 signed-by=/k] uri:a bookworm main contrib\n"
    )


def test_a_stanza_keeps_its_key_and_loses_other_suites() -> None:
    text = (
        "Types: deb deb-src\nURIs: uri:a\nSuites: bookworm trixie bookworm-updates\nComponents: main\nSigned-By: /k.gpg\n\n"
        "Types: deb\nURIs: uri:b\nSuites: nodistro\nComponents: main\n\n"
        "Enabled: no\nTypes: deb\nURIs: uri:c\nSuites: bookworm\nComponents: main\n"
    )
    assert apt_sources.stanzas_for_suite(text, "bookworm") == (
        "Types: deb\nURIs: uri:a\nSuites: bookworm bookworm-updates\nComponents: main\nSigned-By: /k.gpg\n"
    )


def module(*depends: str) -> bytes:
    return b"\x7fELF\0name=x\0depends=" + ",".join(depends).encode() + b"\0"


def test_modules_are_loaded_after_what_they_need() -> None:
    modules = {"virtio_blk": module("virtio", "virtio_ring"), "virtio": module(), "virtio_ring": module("virtio")}
    assert initrd.load_order(["virtio-blk"], modules) == ["virtio", "virtio_ring", "virtio_blk"]


def test_a_module_the_kernel_lacks_is_told() -> None:
    with pytest.raises(NodeError, match="no module nosuch"):
        initrd.load_order(["nosuch"], {})


def test_equal_input_makes_an_equal_initrd_with_its_script_filled_in() -> None:
    def made() -> bytes:
        return initrd.make(b"\x7fELFbusybox", {"fuse": module()}, common=["fuse"], xen=[])

    assert made() == made()
    assert b'*) modules="fuse" ;;' in made()
    assert b"@MODULES@" not in made()
    assert made().startswith(b"070701")
    assert b"TRAILER!!!" in made()
    assert len(made()) % 4 == 0


def bzimage(payload: bytes) -> bytes:
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 0, len(payload))
    return bytes(head) + payload + b"tail"


def test_the_kernel_inside_a_bzimage_is_found() -> None:
    packed = b"\x02\x21\x4c\x18data" + struct.pack("<I", 53)
    argv, stream, size_bytes = initrd.payload_of(bzimage(packed))
    assert (argv, stream, size_bytes) == (("lz4", "-dc"), b"\x02\x21\x4c\x18data", 53)


@pytest.mark.parametrize("image", [b"", b"\x7fELF" * 300, bzimage(b"????????")])
def test_what_is_no_kernel_is_refused(image: bytes) -> None:
    with pytest.raises(NodeError):
        initrd.payload_of(image)


def test_the_guest_unit_starts_the_seeds_program() -> None:
    unit = guest_system.GUEST_UNIT
    assert "ExecStart=/run/lrms_vm/seed/lrms_vm/guest boot /run/lrms_vm/seed/lrms_vm\n" in unit
    assert "LABEL=cidata" in unit
    assert "mode=0500,dmode=0500,uid=0" in unit


def test_a_file_never_leaves_the_image_through_a_link(tmp_path: Path) -> None:
    root = tmp_path / "root"
    outside = tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "relative").symlink_to("../outside")
    (root / "absolute").symlink_to(outside)
    with pytest.raises(UsageError, match="leads out of the image"):
        build._place(root, "/relative/file", b"x")
    build._place(root, "/absolute/file", b"x")  # absolute links of an image mean the image's own directories
    assert list(outside.iterdir()) == []
    (outside / "kept").write_text("x")
    build._remove(root, ("/relative/*",))
    assert (outside / "kept").exists()
