"""`lrms-vm status`: whose, which image, how far; root sees all, others their own."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from lrms_vm.cli import main, status
from lrms_vm.paths import JobPlaces, Places
from lrms_vm.record import Record
from lrms_vm.verdict import READY, REFUSED, Verdict, write_verdict

KEY = "slurm-7.n1"
IMAGE = {"name": "atlas/sim", "digest": "sha256:00", "signer": "CN=Alice", "rule": "alice"}


@pytest.fixture
def places(tmp_path: Path) -> Places:
    made = Places(tmp_path / "state", tmp_path / "run")
    for directory in (made.verdicts, made.jobs, made.history):
        directory.mkdir(parents=True)
    return made


def started(places: Places, key: str = KEY, **verdict: Any) -> JobPlaces:
    """A job whose prologue is done."""
    job = places.job(key)
    job.user.root.mkdir(parents=True)
    words = {"state": READY, "uid": os.geteuid(), "user_name": "alice", "image": IMAGE, "started_at": time.time() - 84}
    places.verdict(key).write_bytes(write_verdict(Verdict(key=key, **{**words, **verdict})))
    return job


def told(places: Places, tmp_path: Path, *words: str) -> int:
    config = tmp_path / "c.toml"
    config.write_text(f'version = 1\nstate_dir = "{places.state_dir}"\nrun_dir = "{places.run_dir}"\n')
    return main(["--config", str(config), "status", *words])


def test_phase_image_signer_time_and_console(
    places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = started(places)
    job.console.write_bytes(b"early\n" * 500 + b"\x1b[2Jlogin: \xff\n")
    assert told(places, tmp_path, "7", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["phase"], row["image"], row["signer"], row["user"]) == ("booting", "atlas/sim", "CN=Alice", "alice")
    assert 80 < row["seconds"] < 100
    job.user.ready.write_text("{}")
    assert told(places, tmp_path, "7") == 0
    said = capsys.readouterr().out
    assert "guest up" in said and 'signer="CN=Alice"' in said and "| [2Jlogin: " in said
    assert said.replace("\n", "").isprintable() and len(said) < 1000


def test_before_the_verdict_root_sees_how_far_the_prologue_is(places: Places) -> None:
    job = places.job(KEY)
    job.run.mkdir()
    record = Record(job.record)
    record.begin(uid=7, user="alice", started_at=time.time())
    record.note("lease", image="atlas/sim")
    (row,) = status.rows_of(places)
    assert (row["phase"], row["user"], row["uid"]) == ("prologue: lease", "alice", 7)


def test_a_refusal_says_why_and_moves_no_cursor(
    places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started(places, state=REFUSED, exit_code=77, code="image-unknown", message="no \x1b[31m'x'\n| forged", image={})
    assert told(places, tmp_path) == 0
    said = capsys.readouterr().out
    assert "refused" in said and "no ?[31m'x'?| forged" in said and len(said.splitlines()) == 2


def test_a_lost_guest_says_why(places: Places) -> None:
    started(places).user.failed.write_text(json.dumps({"message": "the guest is silent\n", "code": "guest-silent"}))
    (row,) = status.rows_of(places)
    assert (row["phase"], row["message"]) == ("guest lost", "the guest is silent?")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"message": {}}', "[" * 100_000])
def test_what_the_user_writes_there_is_at_most_odd(places: Places, content: str) -> None:
    started(places).user.failed.write_text(content)
    assert status.rows_of(places)[0]["phase"] == "guest lost"


def test_root_follows_no_link_and_waits_for_no_pipe_of_a_user(places: Places, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"message": "secret"}')
    started(places, "slurm-8.n1").user.failed.symlink_to(secret)
    os.mkfifo(started(places, "slurm-9.n1").user.failed)
    assert [row["message"] for row in status.rows_of(places)] == ["", ""]


def test_another_user_of_the_group_sees_nothing(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started(places, uid=4711)
    started(places, "slurm-8.n1", uid=4712)
    monkeypatch.setattr(os, "geteuid", lambda: 4712)
    assert [row["key"] for row in status.rows_of(places)] == ["slurm-8.n1"]
    assert told(places, tmp_path, "7") == 77
    assert "that you may see" in capsys.readouterr().err


@pytest.mark.parametrize("set_by_s", [-172800, -7200, 7200, 172800])
def test_how_long_a_job_lasts_is_told_right_after_the_clock_was_set(places: Places, set_by_s: int) -> None:
    now, then = time.monotonic(), time.time() - set_by_s
    started(places, started_at=then, handed_over=now - 80, handed_over_after_s=4.0)
    other = places.job("slurm-8.n1")
    other.run.mkdir()
    Record(other.record).begin(uid=7, user="alice", started_at=then, began=now - 50)
    history = {"key": "slurm-9.n1", "uid": 7, "started_at": then, "ended_at": then + 60 + set_by_s, "lasted_s": 60.2}
    (places.history / "slurm-9.n1.json").write_text(json.dumps(history))
    up, prologue = (row["seconds"] for row in status.rows_of(places))
    (ended,) = (row["seconds"] for row in status._wanted(places, "9"))
    assert 84 <= up < 90 and 50 <= prologue < 56 and ended == 60.2


def test_an_ended_job_is_told_from_its_history(
    places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = {"key": KEY, "user": "alice", "uid": 7, "started_at": 1000.0, "ended_at": 1060.0, "image": IMAGE}
    (places.history / f"{KEY}.json").write_text(json.dumps({**history, "phases_ms": {"fetch": 20.0}}))
    assert told(places, tmp_path, "7") == 0
    said = capsys.readouterr().out
    assert "ended" in said and "60 s" in said and "fetch: 20 ms" in said and "atlas/sim" in said


def test_watching_a_job_ends_when_it_is_gone(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started(places)
    monkeypatch.setattr(time, "sleep", lambda _: places.verdict(KEY).unlink())
    assert told(places, tmp_path, "7", "--watch") == 0
    assert capsys.readouterr().out.count("booting") == 1
