from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lrms_vm.cli import main
from tests.cache_fakes import acquire, places_at, served


def config_at(root: Path) -> str:
    path = root / "lrms_vm.toml"
    path.write_text(f'version = 1\nstate_dir = "{root}/state"\nrun_dir = "{root}/run"\n')
    return str(path)


def test_list_verify_prune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_at(tmp_path)
    assert main(["--config", config, "cache", "list"]) == 0
    assert "no images" in capsys.readouterr().out
    image = acquire(places_at(tmp_path), served())
    assert main(["--config", config, "cache", "list", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert (row["sha256"], row["held_by"], row["sound"]) == (image.sha256, ["local-1.n"], True)
    assert main(["--config", config, "cache", "list"]) == 0
    assert "held by local-1.n" in capsys.readouterr().out
    assert main(["--config", config, "cache", "prune", "--max-size", "0"]) == 0
    assert main(["--config", config, "cache", "verify"]) == 0
    assert "good" in capsys.readouterr().out
    Path(image.path).chmod(0o644)
    assert main(["--config", config, "cache", "verify", "--json"]) == 69
    assert json.loads(capsys.readouterr().out) == [{"sha256": image.sha256, "good": False}]
    assert main(["--config", config, "cache", "clean"]) == 0


def test_pin_scrub_and_quarantine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("lrms_vm.journal.say", lambda level, key, text: said.append(text))

    def run(*words: str) -> int:
        return main(["--config", config_at(tmp_path), "cache", *words])

    assert run("pin", "hep") == 77
    assert run("list", "--quarantine") == 0 and "nothing was put aside" in capsys.readouterr().out
    image = acquire(places_at(tmp_path), served())
    assert run("pin", "hep", "--reason", "until June") == 0
    assert capsys.readouterr().out == f"pinned sha256:{image.sha256}\n"
    assert run("list") == 0 and "pinned: until June" in capsys.readouterr().out
    assert run("unpin", f"sha256:{image.sha256[:12]}") == 0 and "unpinned" in capsys.readouterr().out
    assert run("unpin", "hep") == 0 and "was not pinned" in capsys.readouterr().out
    assert run("pin", image.sha256[:8], "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"pinned": [f"sha256:{image.sha256}"]}
    assert run("pin", image.sha256[:7]) == 77, "too few digits are a name"
    assert run("scrub", "--rate", "500", "--max-seconds", "60") == 0 and "good" in capsys.readouterr().out
    path = Path(image.path)
    path.chmod(0o644)
    path.write_bytes(b"rot")
    path.chmod(0o444)
    assert run("scrub", "--json") == 69
    assert json.loads(capsys.readouterr().out)[0]["state"] == "damaged"
    assert run("list", "--quarantine", "--json") == 0
    assert [one["sha256"] for one in json.loads(capsys.readouterr().out)] == [image.sha256]
    assert any(image.sha256 in text for text in said)
    assert run("unpin", image.sha256[:8]) == 0, "a pin outlives its image"


@pytest.mark.parametrize("words", [["--rate", "0"], ["--rate", "-1"], ["--max-seconds", "nan"], ["--rate", "inf"]])
def test_numbers_of_a_scrub_are_checked(tmp_path: Path, words: list[str]) -> None:
    assert main(["--config", config_at(tmp_path), "cache", "scrub", *words]) == 64


def test_bad_usage_is_64(tmp_path: Path) -> None:
    for words in (["cache"], ["cache", "prune"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 64
    assert main(["--config", config_at(tmp_path), "cache", "prune", "--max-size", "a lot"]) == 64


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a directory of somebody else")
def test_somebody_elses_cache_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state").mkdir()
    os.chown(tmp_path / "state", 65534, 65534)
    assert main(["--config", config_at(tmp_path), "cache", "list"]) == 77
    assert "run it as root" in capsys.readouterr().err
