"""Refused: the reason is in the job's own output, the exit code says whose fault it is, the node stays in service."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import site
from demo.cluster import Cluster
from demo.layout import NODES, STRANGER
from tests.integration.slurm import authority
from tests.integration.slurm.conftest import Desk

REFUSED, TRY_AGAIN = "77:0", "75:0"


@pytest.fixture(scope="module")
def variants(cluster: Cluster) -> Iterator[dict[str, Path]]:
    """Images beside the good one, each with one thing wrong. They need no room: the blocks are shared or sparse."""
    layout = cluster.layout
    good = site.image_path(layout, "minimal")
    paths = {name: layout.images / f"test-{name}.raw" for name in ("unsigned", "stranger", "flipped", "empty")}
    for path in paths.values():
        path.unlink(missing_ok=True)
    for name in ("unsigned", "stranger"):
        os.link(good, paths[name])
    site.sign(layout, paths["stranger"], who="stranger")
    # Signed, and then changed: an image that no cache has yet, for the cache would give the bytes that were signed.
    site.copy_sparse(good, paths["flipped"])
    _flip(paths["flipped"], 6_000_000)
    site.sign(layout, paths["flipped"], who="builder")
    _flip(paths["flipped"], 5_000_000)
    paths["empty"].touch()
    yield paths
    for path in paths.values():
        path.unlink()
        site.signature_path(path).unlink(missing_ok=True)


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        [byte] = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def refused(desk: Desk, *arguments: str, exit_code: str = REFUSED, user: str = "physicist") -> str:
    """Run a job that must not run; return what it says."""
    output = ["--output=refused-%j.out"] if user == STRANGER else []
    directory = desk.layout.home(user) if user == STRANGER else desk.directory
    client = desk.cluster.client(user)
    job_id = client.sbatch(
        *(output or [f"--output={desk.directory}/%j.out"]),
        "--mem=700",
        *arguments,
        script="#!/bin/sh\necho RAN\n",
        cwd=directory,
    )
    job = desk.end(job_id, timeout_s=60)
    assert (job.state, job.exit_code) == ("FAILED", exit_code), job.output()
    assert "RAN" not in job.output()
    assert all(not json.loads(path.read_text())["complete"] for path in desk.history(job_id))
    for node in NODES:
        assert desk.cluster.node_state(node)[0] == "IDLE"
    return job.output()


def test_an_unknown_name(desk: Desk) -> None:
    said = refused(desk, "--vm-image=no-such-image")
    assert "'no-such-image' is not in the site's image list" in said
    assert "lrms-vm image list" in said


def test_an_unknown_name_by_srun(desk: Desk) -> None:
    done = desk.user.call(["srun", "--mem=700", "--vm-image=no-such-image", "echo", "RAN"], cwd=desk.directory)
    assert done.returncode == 77
    assert b"no-such-image" in done.stderr and b"RAN" not in done.stdout


@pytest.mark.parametrize("text", ["two words", "--", "../../etc/passwd", "a,b", "sha256:12"])
def test_a_name_that_is_none(desk: Desk, text: str) -> None:
    done = desk.user.call(["srun", "--mem=700", f"--vm-image={text}", "echo", "RAN"], cwd=desk.directory)
    assert done.returncode not in (0, 70)
    assert b"RAN" not in done.stdout


def test_an_image_without_a_signature(desk: Desk, variants: dict[str, Path]) -> None:
    assert "sign" in refused(desk, f"--vm-image={variants['unsigned']}")


def test_an_image_signed_by_somebody_who_may_not_build(desk: Desk, variants: dict[str, Path]) -> None:
    assert "Demo Stranger" in refused(desk, f"--vm-image={variants['stranger']}")


def test_one_flipped_byte(desk: Desk, variants: dict[str, Path]) -> None:
    refused(desk, f"--vm-image={variants['flipped']}")


def test_an_image_this_user_may_not_run(desk: Desk) -> None:
    assert STRANGER in refused(desk, "--vm-image=minimal", user=STRANGER)


def test_an_image_outside_the_sites_places(desk: Desk) -> None:
    assert "not below a place" in refused(desk, "--vm-image=/etc/hostname")


def test_a_revoked_builder(desk: Desk) -> None:
    with authority.crl(desk.layout, revoke_builder=True):
        assert "revoked" in refused(desk, "--vm-image=minimal")


def test_an_expired_revocation_list(desk: Desk) -> None:
    with authority.crl(desk.layout, expired=True):
        assert "expired" in refused(desk, "--vm-image=minimal", exit_code=TRY_AGAIN)


def test_a_share_the_site_does_not_allow(desk: Desk) -> None:
    assert "--vm-share" in refused(desk, "--vm-image=minimal", "--vm-share=/etc")
