"""What the node counts: each job once, and a page that Prometheus' own parser reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from lrms_vm import counters, metrics
from lrms_vm.cli import main
from lrms_vm.metrics import BUCKETS_S, Counters, Gauge
from lrms_vm.paths import Places

HISTORY: dict[str, Any] = {
    "key": "slurm-7.n1",
    "started_at": 1000.0,
    "ended_at": 1060.0,
    "complete": True,
    "phases_ms": {"fetch": 20.0, "hand over": 4.0, "payload": 50_000.0, "something new": 1.0},
    "prologue_s": 0.25,
    "cache": "miss",
    "fetched_bytes": 4096,
}


@pytest.fixture
def places(tmp_path: Path) -> Places:
    made = Places(tmp_path / "state", tmp_path / "run")
    made.history.mkdir(parents=True)
    return made


def read(page: str) -> dict[tuple[str, str], float]:
    """By name and labels, as Prometheus sees it."""
    return {
        (sample.name, ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_a_job_is_counted_by_its_history() -> None:
    kept = Counters()
    assert kept.ended(HISTORY)
    kept.refused("request", "image-unknown")
    kept.retries, kept.leftovers = 1, 2
    found = read(metrics.text(kept))
    assert found["lrms_vm_jobs_total", "prologue=complete"] == 1
    assert found["lrms_vm_cache_total", "found=miss"] == 1
    assert found["lrms_vm_fetched_bytes_total", ""] == 4096
    assert found["lrms_vm_prologue_seconds_sum", ""] == 0.25
    assert found["lrms_vm_prologue_seconds_bucket", "le=0.1"] == 0
    assert found["lrms_vm_prologue_seconds_bucket", "le=0.3"] == 1
    assert found["lrms_vm_phase_seconds_bucket", "le=+Inf,phase=payload"] == 1
    assert found["lrms_vm_phase_seconds_sum", "phase=hand_over"] == 0.004
    assert found["lrms_vm_phase_seconds_count", "phase=other"] == 1
    assert found["lrms_vm_refusals_total", "blame=request,code=image-unknown"] == 1
    assert (found["lrms_vm_retries_total", ""], found["lrms_vm_leftovers_total", ""]) == (1, 2)


def test_every_family_says_what_it_is() -> None:
    page = metrics.text(Counters(), [Gauge("guests", "Now.", {"up": 1}, "state")])
    families = list(text_string_to_metric_families(page))
    assert all(family.documentation and family.type != "unknown" for family in families)
    assert {family.name for family in families} >= {"lrms_vm_jobs", "lrms_vm_phase_seconds", "lrms_vm_guests"}
    assert "lrms_vm_fetched_bytes_total 0\n" in page, "a counter without labels is there from the start"


@given(st.text(), st.text(), st.dictionaries(st.text(), st.floats()))
def test_no_word_breaks_the_page(blame: str, code: str, phases: dict[str, float]) -> None:
    kept = Counters()
    kept.refused(blame, code)
    kept.ended({**HISTORY, "phases_ms": phases})
    found = read(metrics.text(kept))
    refusals = [labels for name, labels in found if name == "lrms_vm_refusals_total"]
    assert refusals == [f"blame={blame},code={code}"]
    assert {labels.rpartition("phase=")[2] for name, labels in found if "_phase_" in name} <= {*metrics.PHASES, "other"}


@given(st.lists(st.floats(min_value=0, max_value=1e4), max_size=20))
def test_buckets_are_cumulative_and_end_with_all(seconds: list[float]) -> None:
    times = metrics.Times()
    for one in seconds:
        times.add(one)
    assert times.buckets == [sum(one <= limit for one in seconds) for limit in BUCKETS_S]
    assert times.count == len(seconds)


def test_what_is_kept_is_read_back() -> None:
    kept = Counters()
    kept.ended(HISTORY)
    kept.refused("node", "disk-full")
    assert metrics.read(metrics.write(kept)) == kept


@pytest.mark.parametrize("text", [b"", b"[", b"[]", b"{}", b'{"version": 2}', b'{"version": 1, "jobs": 7}', b"\0" * 99])
def test_a_damaged_file_counts_as_nothing(text: bytes) -> None:
    assert metrics.read(text) == Counters()


def test_a_teardown_that_is_done_twice_counts_once(places: Places) -> None:
    counters.job_ended(places, HISTORY)
    counters.job_ended(places, {**HISTORY, "ended_at": 2000.0})
    assert counters.load(places).jobs == {"complete": 1}


def test_a_job_that_runs_here_again_counts_again(places: Places) -> None:
    counters.job_ended(places, HISTORY)
    counters.job_ended(places, {**HISTORY, "started_at": 3000.0})
    assert counters.load(places).jobs == {"complete": 2}


def test_what_a_crash_kept_from_being_counted_is_counted_later_and_once(places: Places) -> None:
    (places.history / "slurm-7.n1.json").write_text(json.dumps(HISTORY))
    (places.history / "slurm-8.n1.json").write_text(json.dumps({**HISTORY, "key": "slurm-8.n1"}))
    (places.history / "slurm-9.n1.json").write_text("{")
    counters.job_ended(places, HISTORY)
    for _ in range(2):
        assert counters.catch_up(places).jobs == {"complete": 2}


def test_what_was_counted_before_the_oldest_history_went_is_not_counted_again(places: Places) -> None:
    kept = Counters()
    for number in range(2 * metrics.MAX_SEEN):
        kept.ended({**HISTORY, "key": f"slurm-{number}.n1"})
    assert len(kept.seen) == metrics.MAX_SEEN
    assert not kept.ended({**HISTORY, "key": f"slurm-{2 * metrics.MAX_SEEN - 1000}.n1"})


def test_codes_that_somebody_invents_do_not_grow_the_file() -> None:
    kept = Counters()
    for number in range(2 * metrics.MAX_CODES):
        kept.refused("guest", f"c{number}")
    assert len(kept.refusals["guest"]) == metrics.MAX_CODES + 1
    assert sum(kept.refusals["guest"].values()) == 2 * metrics.MAX_CODES


def test_what_is_left_is_left_until_it_is_gone(places: Places) -> None:
    counters.left(places, "slurm-7.n1", 2)
    counters.left(places, "slurm-8.n1", 1)
    assert counters.left_now(places) == 3
    counters.left(places, "slurm-7.n1", 0)
    assert (counters.left_now(places), counters.load(places).leftovers) == (1, 3)


def test_where_nothing_can_be_written_nothing_fails(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file, where a directory should be")
    places = Places(tmp_path / "state", tmp_path / "run")
    counters.job_ended(places, HISTORY)
    counters.refused(places, "node", "x", sent_back=True)
    counters.left(places, "slurm-7.n1", 1)
    counters.left(places, "slurm-7.n1", 0)
    assert counters.load(places) == Counters()


def test_the_verb_replaces_its_file_at_once(places: Places, tmp_path: Path) -> None:
    config, target = tmp_path / "c.toml", tmp_path / "lrms_vm.prom"
    config.write_text(f'version = 1\nstate_dir = "{places.state_dir}"\nrun_dir = "{places.run_dir}"\n')
    (places.history / "slurm-7.n1.json").write_text(json.dumps(HISTORY))
    places.store.mkdir()
    target.write_text("old")
    assert main(["--config", str(config), "metrics", "--write", str(target)]) == 0
    found = read(target.read_text())
    assert found["lrms_vm_jobs_total", "prologue=complete"] == 1
    assert found["lrms_vm_guests", "state=up"] == 0
    assert found["lrms_vm_written_seconds", ""] > 1e9
    assert target.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.glob("*prom*")] == ["lrms_vm.prom"]


def test_where_it_cannot_be_written_the_verb_says_so(
    places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'version = 1\nstate_dir = "{places.state_dir}"\nrun_dir = "{places.run_dir}"\n')
    places.store.mkdir()
    assert main(["--config", str(config), "metrics", "--write", str(tmp_path / "none" / "x.prom")]) == 69
    assert "textfile" in capsys.readouterr().err
