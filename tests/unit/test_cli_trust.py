"""`image list` with subscribed lists, and `trust show|reset`, as they are typed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from lrms_vm.cli import main
from lrms_vm.config import Subscription
from lrms_vm.decision import Decision, JobDecision
from lrms_vm.list_refresh import Refresher
from lrms_vm.paths import Places
from tests.cache_fakes import FakeFetch, acquire, places_at, served
from tests.lists import ALICE, ALICE_DN, ANCHORS, LIST, NOW, image, payload, policy, sign

URL = "https://images.example.org/atlas.image_list"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "lrms_vm.toml"
    path.write_text(
        f"""version = 1
        state_dir = "{tmp_path}/state"
        run_dir = "{tmp_path}/run"
        [images."atlas/own"]
        url = "/srv/own.raw"
        version = "3"
        [lists.atlas]
        url = "{URL}"
        """
    )
    return path


def accept(places: Places, *images: dict[str, Any]) -> None:
    decide = JobDecision(Decision(policy(), ANCHORS), "atlas001", (), "", NOW)
    fetch = FakeFetch({URL: sign(payload(list(images)), ALICE)})
    Refresher({"atlas": Subscription("atlas", URL)}, places, decide, fetch, time.monotonic() + 9).refresh("atlas")


def run(config: Path, *words: str) -> int:
    return main(["--config", str(config), *words])


def test_a_list_not_yet_seen_is_said_to_be(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(config, "image", "list") == 0
    out = capsys.readouterr().out
    assert "atlas/own  3           /srv/own.raw" in out
    assert f"list atlas: not seen on this node yet: {URL}" in out


def test_listed_images_are_shown_with_their_list_their_end_and_whether_they_are_here(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = places_at(tmp_path)
    stored = acquire(places, served())
    accept(
        places,
        image(),
        image("atlas/here", **{"lv:checksum:sha256": stored.sha256}),
        image("atlas/own"),
        image("atlas/soon", **{"dc:date:expires": "2026-11-25T00:00:00Z"}),
    )
    assert run(config, "image", "list", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    rows = {(row["name"], row["list"]): row for row in found["images"]}
    assert set(rows) == {(f"atlas/{name}", "atlas") for name in ("sim", "here", "own", "soon")} | {("atlas/own", None)}
    assert [rows[f"atlas/{name}", "atlas"]["cached"] for name in ("sim", "here")] == [False, True]
    assert rows["atlas/soon", "atlas"]["expires"] == "2026-11-25T00:00:00Z"
    assert rows["atlas/sim", "atlas"]["version"] == "1.2.3"
    assert not rows["atlas/own", "atlas"]["hidden"], "its version is another than the site's own"
    (head,) = found["lists"]
    assert (head["version"], head["signer"], head["identifier"]) == ("7", ALICE_DN, LIST)
    assert run(config, "image", "list") == 0
    assert "atlas/here  1.2.3       list atlas, until " in capsys.readouterr().out


def test_recovery_is_typed_with_a_reason_and_shown_afterwards(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = places_at(tmp_path)
    accept(places, image())
    with pytest.raises(SystemExit) as caught:
        run(config, "trust", "reset", "ratchet", "atlas")
    assert caught.value.code == 64
    assert run(config, "trust", "reset", "ratchet", "nosuch", "--reason", "x") == 64
    assert run(config, "trust", "reset", "ratchet", "atlas", "--reason", "restored (4711)") == 0
    assert run(config, "trust", "reset", "clock", "--reason", "booted in 2038") == 0
    assert run(config, "trust", "reset", "pin", "sha1:" + "0" * 40, "--reason", "x") == 64
    capsys.readouterr()
    assert run(config, "trust", "show", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["lists"] == [] and found["bare_signatures"] == []
    assert [(one["what"], one["reason"]) for one in found["history"]] == [
        (f"ratchet {LIST}", "restored (4711)"), ("clock", "booted in 2038"),
    ]  # fmt: skip
    assert run(config, "trust", "show") == 0
    assert "restored (4711)" in capsys.readouterr().out


def test_damage_is_shown_and_does_not_stop_show(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = places_at(tmp_path)
    accept(places, image())
    (places.trust / "ratchet.json").write_text("x")
    assert run(config, "trust", "show") == 0
    out = capsys.readouterr().out
    assert "lists: DAMAGED" in out and "lrms-vm trust reset ratchet LIST --reason" in out
    assert f"clock: not before {NOW:%Y-%m-%dT%H:%M:%SZ}" in out
