"""The demo's own way through: the HEP payload in its guest, validated bit for bit."""

from __future__ import annotations

import json

import pytest

from demo import run
from demo.cluster import Cluster


@pytest.mark.guest
def test_the_demo_holds_and_reports(cluster: Cluster) -> None:
    assert run.demonstrate(cluster) == []
    report = json.loads(run.REPORT.read_text())
    assert report["job"]["state"] == "COMPLETED" and report["job"]["exit_code"] == "0:0"
    assert report["validation"]["identical"] is True
    assert report["validation"]["jets"] > report["validation"]["events"] > 0
    assert report["image"]["name"] == "hep-jets" and report["image"]["rule"] == "demo-builder"
    assert {"fetch", "verify", "overlay", "render", "create", "guest_up", "payload", "teardown"} <= set(
        report["phases_ms"]
    )
