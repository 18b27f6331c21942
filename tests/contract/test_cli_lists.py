"""`lrms-vm image sign --list` and `image show` as people type them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from lrms_vm.trust import tree
from tests.certs.make_certs import Authority, name, person, rsa_key

NOW = datetime.now(UTC)
CA = Authority.root(name("Test CA"), at=NOW, key=rsa_key(number=7))
ALICE = CA.issue(person("Alice Example"), key=rsa_key())
BOB = CA.issue(person("Bob Example"), key=rsa_key(number=2))
URL = "https://images.example.org/atlas"
RULES = """version = 1
[defaults]
ca_dir = "{ca_dir}"
namespaces = "ignore"
[[builder]]
name = "alice"
issuer = "CN=Test CA,DC=TestGrid,DC=org"
subject = "CN=Alice Example,O=People,DC=TestGrid,DC=org"
images = ["atlas/*"]
vo = ["atlas"]
[[runner]]
name = "production"
users = ["atlas001"]
images = ["atlas/*"]
"""


@dataclass(frozen=True)
class Author:
    """A directory with an author's images and keys, and a site's policy and CA."""

    base: Path

    def lrms_vm(self, *words: str | Path, code: int = 0) -> tuple[str, str]:
        argv = [sys.executable, "-m", "lrms_vm", "image", *map(str, words)]
        done = subprocess.run(argv, cwd=self.base, capture_output=True, timeout=60, stdin=subprocess.DEVNULL, text=True)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stdout, done.stderr

    def sign(self, *words: str, who: str = "alice", code: int = 0) -> tuple[str, str]:
        keys = ("--cert", f"{who}.crt", "--key", f"{who}.key")
        return self.lrms_vm("sign", "--list", *words, *keys, code=code)

    def make(self, *words: str, who: str = "alice", code: int = 0) -> tuple[str, str]:
        images = ("--image", "atlas/sim@1.2=sim.raw", "--image", "atlas/reco@7=reco.raw")
        return self.sign("atlas.image_list", *images, "--url", URL, *words, who=who, code=code)

    def show(self, what: str, *words: str, code: int = 0) -> dict[str, Any]:
        found = json.loads(self.lrms_vm("show", what, "--policy", "trust.toml", "--json", *words, code=code)[0])
        assert found["trusted"] is (code in (0, 77) and found["code"] == "accepted")
        return found  # type: ignore[no-any-return]


@pytest.fixture
def author(tmp_path: Path) -> Author:
    directory = tmp_path / "certificates"
    directory.mkdir()
    (directory / f"{CA.subject_hash}.0").write_bytes(CA.pem)
    (directory / f"{CA.subject_hash}.r0").write_bytes(CA.crl())
    for who, identity in (("alice", ALICE), ("bob", BOB)):
        (tmp_path / f"{who}.crt").write_bytes(identity.pem)
        (tmp_path / f"{who}.key").write_bytes(identity.key_pem)
    (tmp_path / "trust.toml").write_text(RULES.format(ca_dir=directory))
    with open(tmp_path / "sim.raw", "wb") as file:  # a hole, then data, and half a chunk at the end
        file.truncate(3 * tree.CHUNK_BYTES)
        file.seek(3 * tree.CHUNK_BYTES)
        file.write(b"x" * (tree.CHUNK_BYTES // 2))
    (tmp_path / "reco.raw").write_bytes(b"a disk".ljust(1024, b"\0"))
    return Author(tmp_path)


def test_a_list_is_made_signed_and_shown(author: Author) -> None:
    out, err = author.make("--vo", "atlas", "--title", "ATLAS images", "--json", "--leaves")
    made = json.loads(out)
    assert made["images"] == ["atlas/sim@1.2", "atlas/reco@7"]
    assert err.count("\n") == 1
    (shown,) = author.show("atlas.image_list", "--user", "atlas001")["lists"]
    assert (shown["identifier"], shown["version"], shown["form"]) == (made["identifier"], made["version"], "smime")
    assert (shown["signer"], shown["vo"], shown["title"]) == (
        "CN=Alice Example,O=People,DC=TestGrid,DC=org",
        ["atlas"],
        "ATLAS images",
    )
    sim, reco = shown["images"]
    assert (sim["code"], sim["rule"], sim["urls"]) == ("accepted", "alice", [f"{URL}/sim.raw"])
    content = (author.base / "sim.raw").read_bytes()
    leaves = [tree.leaf(content[at : at + tree.CHUNK_BYTES]) for at in range(0, len(content), tree.CHUNK_BYTES)]
    assert sim["tree"] == {"chunk_bytes": tree.CHUNK_BYTES, "root": tree.root_of(leaves).hex()}
    assert (author.base / "sim.raw.leaves").read_bytes() == b"".join(leaves)
    assert (sim["size_bytes"], reco["size_bytes"]) == (len(content), 1024)
    text, _ = author.lrms_vm("show", "atlas.image_list", "--policy", "trust.toml")
    assert "atlas/sim@1.2" in text and "accepted by rule 'alice'" in text and "NOT TRUSTED" not in text


def test_both_forms_say_the_same(author: Author) -> None:
    author.make("--vo", "atlas", "--form", "both")
    one, two = author.show("atlas.image_list")["lists"][0], author.show("atlas.p7m")["lists"][0]
    assert (one.pop("form"), two.pop("form")) == ("smime", "cms")
    assert one == two
    assert (author.base / "atlas.p7m").read_bytes()[:1] == b"\x30"


def test_the_next_version_keeps_what_the_last_one_said(author: Author) -> None:
    author.make("--vo", "atlas", "--version", "1.9", "--title", "ATLAS images")
    first = author.show("atlas.image_list")["lists"][0]
    assert "not higher than 1.9" in author.make("--version", "1.9", code=64)[1]
    author.make("--version", "1.10")
    second = author.show("atlas.image_list")["lists"][0]
    for key in ("identifier", "title", "vo"):
        assert first[key] == second[key]
    assert [one["identifier"] for one in first["images"]] == [one["identifier"] for one in second["images"]]
    assert second["version"] == "1.10"


def test_a_list_that_is_not_believed_is_shown_and_said_not_to_be(author: Author) -> None:
    author.make("--vo", "atlas", who="bob")
    text, err = author.lrms_vm("show", "atlas.image_list", "--policy", "trust.toml", code=77)
    assert "atlas/sim@1.2" in text and "NOT TRUSTED" in text and "accepted" not in text
    assert "not one of the builders" in err
    found = author.show("atlas.image_list", code=77)
    assert (found["code"], found["lists"][0]["signer"], found["lists"][0]["images"][0]["code"]) == (
        "not-a-builder",
        None,
        None,
    )
    (author.base / "garbage").write_bytes(b"MIME-Version: 1.0\n\nnothing")
    assert author.show("garbage", code=77) == {
        "trusted": False,
        "code": "smime-malformed",
        "reason": author.show("garbage", code=77)["reason"],
        "lists": [],
    }


def test_an_image_that_is_not_believed_is_said_to_be_so(author: Author) -> None:
    author.make()
    shown = author.show("atlas.image_list")["lists"][0]
    assert {one["code"] for one in shown["images"]} == {"builder-not-for-vo"}
    author.make("--vo", "atlas", "--version", "99999999999999")
    assert author.show("atlas.image_list", "--user", "mallory", code=77)["code"] == "accepted"


def test_a_list_of_ones_own_is_signed(author: Author) -> None:
    from tests.lists import image, payload

    times = {"dc:date:created": f"{NOW:%Y-%m-%dT00:00:00Z}", "dc:date:expires": "2999-01-01T00:00:00Z"}
    (author.base / "own.json").write_bytes(payload(**times, **{"ad:vo": "atlas"}))
    author.sign("own.json", "--form", "both")
    assert author.show("own.image_list")["lists"][0]["images"][0]["code"] == "accepted"
    assert author.show("own.p7m")["trusted"]
    (author.base / "typo.json").write_bytes(payload([image(**{"lv:chekcsum:sha256": "x"})], **times))
    assert "lv:chekcsum" in author.sign("typo.json", code=64)[1]
    (author.base / "old.json").write_bytes(payload(**{"dc:date:expires": "2020-01-01T00:00:00Z"}))
    assert "has passed" in author.sign("old.json", code=64)[1]
    (author.base / "bad.json").write_bytes(b'{"hv:imagelist": {"a": 1, "a": 2}}')
    assert "twice" in author.sign("bad.json", code=77)[1]
    assert not (author.base / "bad.image_list").exists()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("atlas.image_list", "--image", "atlas/sim=sim.raw", "--url", URL), "NAME@VERSION=FILE"),
        (("atlas.image_list", "--image", "atlas/sim@1=none.raw", "--url", URL), "none.raw"),
        (("atlas.image_list", "--image", "atlas/sim@1=sim.raw"), "--url"),
        (("atlas.image_list", "--image", "../x@1=sim.raw", "--url", URL), "--image"),
        (("atlas.image_list", "--image", "atlas/sim@1=sim.raw", "--url", "not a url"), "hv:uri"),
        (("atlas.image_list", "--image", "atlas/sim@1=sim.raw", "--url", URL, "--lifetime", "soon"), "--lifetime"),
        (("atlas.image_list", "--image", "atlas/sim@1=sim.raw", "--url", URL, "--form", "dgst"), "--form"),
        (("none.json",), "none.json"),
    ],
    ids=range(8),
)
def test_what_cannot_be_signed_is_said_in_one_sentence(author: Author, words: tuple[str, ...], what: str) -> None:
    code = 77 if what == "hv:uri" else 64
    _, err = author.sign(*words, code=code)
    assert what in err and err.count("\n") == 1
    assert not (author.base / "atlas.image_list").exists()


def test_a_disk_that_no_node_would_boot_is_not_listed(author: Author) -> None:
    (author.base / "sim.raw").write_bytes(b"KDMV" + bytes(1020))
    assert "vmdk" in author.make(code=64)[1]


def test_a_name_that_is_nowhere_is_unknown(author: Author) -> None:
    (author.base / "lrms_vm.toml").write_text("version = 1\n")
    words = ("--policy", "trust.toml", "--config", "lrms_vm.toml")
    assert "no such image" in author.lrms_vm("show", "atlas/sim", *words, code=77)[1]
