"""Pictures: well-formed whatever the texts are, and to scale."""

from __future__ import annotations

import itertools
import json
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrms_vm.cli import main
from lrms_vm.cli.report import jobs_of
from lrms_vm.paths import Places
from lrms_vm.record import Record
from lrms_vm.report import LEFT, RIGHT, WIDTH, Job, duration, of_job, of_node

SVG = "{http://www.w3.org/2000/svg}"
PHASES = {"fetch": 100.0, "create": 300.0, "guest_up": 2000.0, "payload": 6000.0, "teardown": 1600.0}
JOB = Job("slurm-7.n1", "alice", "atlas/sim", 1000.0, 1010.0, PHASES)


def bars(picture: str, colour: str = "") -> list[tuple[float, float]]:
    """(left, width) of each bar of that colour; all have a colour of their own, the page is white."""
    found = ElementTree.fromstring(picture).iter(f"{SVG}rect")
    wanted = [one for one in found if one.get("fill") not in ("#fff", None) and one.get("fill", "").startswith(colour)]
    return [(float(one.get("x", "nan")), float(one.get("width", "nan"))) for one in wanted]


def texts(picture: str) -> list[str]:
    return ["".join(one.itertext()) for one in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def test_a_job_is_drawn_to_scale_one_phase_behind_the_other() -> None:
    drawn = bars(of_job(JOB))
    whole, prologue = drawn[:4], drawn[4:]
    scale = (WIDTH - LEFT - RIGHT) / 10_000
    assert [width for _, width in whole] == pytest.approx(
        [400 * scale, 2000 * scale, 6000 * scale, 1600 * scale], abs=0.1
    )
    for (left, width), (following, _) in itertools.pairwise(whole):
        assert left + width == pytest.approx(following, abs=0.2)
    assert [width for _, width in prologue] == pytest.approx(
        [(WIDTH - LEFT - RIGHT) / 4, (WIDTH - LEFT - RIGHT) * 3 / 4], abs=0.1
    )
    assert {"fetch", "create", "boot", "payload", "teardown", "2 s", "6 s"} <= set(texts(of_job(JOB)))


def test_a_node_s_jobs_share_one_axis_of_time() -> None:
    other = Job("slurm-8.n1", "bob", "cms", 1010.0, 1020.0, PHASES)
    picture = of_node("n1", [other, JOB])
    first, second = bars(picture, "#DDD")[1:]
    half = (WIDTH - LEFT - RIGHT) / 2
    assert first == pytest.approx((LEFT, half), abs=0.1)
    assert second == pytest.approx((LEFT + half, half), abs=0.1)


def test_a_node_without_jobs_says_so() -> None:
    assert "none so far" in texts(of_node("n1", []))


@given(
    st.dictionaries(st.text(max_size=20), st.floats(0, 1e12), max_size=12),
    st.text(max_size=40),
    st.floats(0, 1e12),
    st.floats(0, 1e12),
)
def test_nothing_that_a_user_says_breaks_the_picture_or_leaves_its_frame(
    phases: dict[str, float], text: str, started_at: float, ended_at: float
) -> None:
    job = Job(text, text, text, started_at, ended_at, {**PHASES, **phases, "payload": 1e11})
    for picture in (of_job(job), of_node(text, [job, JOB])):
        for left, width in bars(picture):
            assert LEFT - 0.1 <= left <= WIDTH and left + width <= WIDTH + 2


def test_text_stays_text() -> None:
    job = Job("<script>alert(1)</script>", "&", '"', 0.0, 1.0, {"</svg>": 1.0})
    assert "<script>alert(1)</script>" in texts(of_job(job))
    assert "<script" not in of_job(job) and "<script" not in of_node("<script>", [job])


@pytest.mark.parametrize(
    ("ms", "said"), [(0, "0.0 ms"), (9.96, "10 ms"), (999, "999 ms"), (59_999, "60 s"), (3_600_000, "1 h 00 min")]
)
def test_times_for_people(ms: float, said: str) -> None:
    assert duration(ms) == said


def test_the_verb_draws_what_was_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, picture = tmp_path / "c.toml", tmp_path / "job.svg"
    config.write_text(f'version = 1\nstate_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\n')
    (tmp_path / "state/history").mkdir(parents=True)
    history = {"key": "slurm-7.n1", "user": "alice", "started_at": 1000.0, "ended_at": 1010.0, "phases_ms": PHASES}
    (tmp_path / "state/history/slurm-7.n1.json").write_text(json.dumps({**history, "image": {"name": "atlas/sim"}}))
    (tmp_path / "state/history/slurm-8.n1.json").write_text("{")
    for words in (["7"], ["slurm-7.n1"], ["--node"]):
        assert main(["--config", str(config), "report", *words, "--output", str(picture)]) == 0
        assert any("slurm-7.n1" in text or "n1: 1 jobs" in text for text in texts(picture.read_text()))
    assert main(["--config", str(config), "report", "9", "--output", str(picture)]) == 77
    assert main(["--config", str(config), "report", "--output", str(picture)]) == 64
    assert main(["--config", str(config), "report", "7", "--output", str(tmp_path / "none/x.svg")]) == 69
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize("set_by_s", [-172800, 172800])
def test_a_job_is_as_long_as_it_was_when_the_clock_was_set_under_it(tmp_path: Path, set_by_s: int) -> None:
    places = Places(state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    then = time.time() - set_by_s
    history = {"key": "slurm-7.n1", "started_at": then, "ended_at": then + 60 + set_by_s, "lasted_s": 60.0}
    places.history.mkdir(parents=True)
    (places.history / "slurm-7.n1.json").write_text(json.dumps(history))
    (places.history / "slurm-6.n1.json").write_text(json.dumps({**history, "ended_at": then + 30, "lasted_s": None}))
    job = places.job("slurm-8.n1")
    job.run.mkdir(parents=True)
    Record(job.record).begin(started_at=then, began=time.monotonic() - 50)
    lasted_s = {job.key: job.ended_at - job.started_at for job in jobs_of(places)}
    assert lasted_s == pytest.approx({"slurm-7.n1": 60, "slurm-6.n1": 30, "slurm-8.n1": 50}, abs=5)
