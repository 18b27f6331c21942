"""What a user and root see of a real job: status while it runs, report, metrics and history once it is over."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from demo import users
from demo.layout import USER
from lrms_vm import cgroups
from tests.integration.slurm.conftest import Desk

pytestmark = pytest.mark.guest


def told(desk: Desk, node: str, *words: str, user: str = "root") -> subprocess.CompletedProcess[str]:
    argv = [str(desk.layout.command), "--config", str(desk.layout.config(node)), *words]
    if user != "root":
        whose = users.find(user)
        argv = ["setpriv", f"--reuid={whose.uid}", f"--regid={whose.gid}", "--clear-groups", *argv]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def counted(desk: Desk, node: str, name: str) -> float:
    families = text_string_to_metric_families(told(desk, node, "metrics").stdout)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def test_a_job_is_seen_while_it_runs_and_afterwards(desk: Desk, tmp_path: Path) -> None:
    hold = "echo up > up\nwhile ! test -e go; do sleep 0.2; done\n"
    job_id = desk.sbatch("--mem=700", "--time=10", "--vm-image=minimal", script=hold)
    node = desk.started(job_id)
    before = counted(desk, node, "lrms_vm_jobs_total")
    desk.written("up")
    for user in ("root", USER):
        (row,) = json.loads(told(desk, node, "status", str(job_id), "--json", user=user).stdout)
        assert (row["phase"], row["user"], row["image"]) == ("guest up", USER, "minimal")
        assert row["signer"] and row["console"]
    stranger = told(desk, node, "status", str(job_id), user="nobody")
    assert (stranger.returncode, stranger.stdout) == (77, "")
    assert counted(desk, node, "lrms_vm_guests") >= 1
    assert told(desk, node, "metrics", user=USER).returncode == 64

    (desk.directory / "go").touch()
    desk.end(job_id)
    (kept,) = desk.history(job_id)
    history = json.loads(kept.read_text())
    assert history["cache"] in ("hit", "miss") and 0 < history["prologue_s"] < 600
    assert counted(desk, node, "lrms_vm_jobs_total") == before + 1
    picture = tmp_path / "job.svg"
    assert told(desk, node, "report", str(job_id), "--output", str(picture)).returncode == 0
    assert f"slurm-{job_id}.{node}" in picture.read_text()
    over = told(desk, node, "status", str(job_id)).stdout
    assert " ended " in over and f"job=slurm-{job_id}.{node} user={USER} image=minimal" in over
    bounded = {name for one in cgroups.hierarchies() if os.access(one.mount, os.W_OK) for name in one.controllers}
    if {"memory", "cpu"} <= bounded:
        assert {"memory_peak_mib", "memory_limit_mib", "cpu_s"} <= set(history["used"])
    for word, value in history["used"].items():
        assert f" {word}={value}" in over
