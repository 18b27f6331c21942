"""What a real prologue and teardown leave to be counted."""

from __future__ import annotations

import json
import os
import time

import pytest

from lrms_vm import counters, teardown
from tests.contract.test_lists_prologue import IMAGE, Listed, site  # noqa: F401 - site is a fixture


def ended(site: Listed) -> dict[str, object]:  # noqa: F811
    assert site.teardown() == []
    words: dict[str, object] = json.loads((site.config.places.history / f"{site.allocation.key}.json").read_text())
    return words


def test_the_first_job_misses_the_cache_and_the_second_hits_it(site: Listed) -> None:  # noqa: F811
    site.publish("7", "atlas/sim")
    site.run("atlas/sim", "1")
    first = ended(site)
    site.run("atlas/sim", "2")
    second = ended(site)
    assert (first["cache"], second["cache"]) == ("miss", "hit")
    assert isinstance(first["fetched_bytes"], int) and first["fetched_bytes"] >= len(IMAGE)
    assert second["fetched_bytes"] == 0
    kept = counters.load(site.config.places)
    assert (kept.cache, kept.jobs) == ({"miss": 1, "hit": 1}, {"complete": 2})
    assert kept.fetched_bytes == first["fetched_bytes"]
    assert {"fetch", "verify", "create", "teardown"} <= set(kept.phases)


def test_an_epilogue_that_dies_before_it_counts_is_counted_once(
    site: Listed,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site.publish("7", "atlas/sim")
    site.run("atlas/sim", "1")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(counters, "job_ended", die)
        with pytest.raises(KeyboardInterrupt):
            teardown.teardown(
                site.allocation.key,
                places=site.config.places,
                hypervisor=site.hypervisor,
                deadline=time.monotonic() + 9,
            )
    assert counters.load(site.config.places).jobs == {}
    assert ended(site)["complete"] is True
    for _ in range(2):
        assert counters.catch_up(site.config.places).jobs == {"complete": 1}


def test_the_newest_history_is_kept_after_the_clock_went_back(
    site: Listed,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(teardown, "KEEP_HISTORY", 3)
    history = site.config.places.history
    history.mkdir(mode=0o700, parents=True, exist_ok=True)
    ahead = time.time() + 172800
    for number in range(4):
        path = history / f"slurm-{number}.old.json"
        path.write_text("{}")
        os.utime(path, (ahead + number, ahead + number))
    site.publish("7", "atlas/sim")
    site.run("atlas/sim", "1")
    ended(site)
    kept = {path.name for path in history.iterdir()}
    assert kept == {f"{site.allocation.key}.json", "slurm-2.old.json", "slurm-3.old.json"}


def test_what_is_kept_of_a_job_says_how_long_it_was_although_the_clock_was_set(
    site: Listed,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site.publish("7", "atlas/sim")
    for set_by_s in (172800, -172800):
        site.run("atlas/sim", "1")
        with monkeypatch.context() as clock:
            set_to = time.time() + set_by_s
            clock.setattr(time, "time", lambda set_to=set_to: set_to)
            words = ended(site)
        assert words["ended_at"] == set_to
        lasted_s = words["lasted_s"]
        assert isinstance(lasted_s, float) and 0 < lasted_s < 60
