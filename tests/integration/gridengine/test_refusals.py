"""Refused: the job waits in Eqw, the reason is in its own stderr, the queue stays in service."""

from __future__ import annotations

import pytest

from demo.gridengine import NODE
from tests.integration.gridengine.conftest import Desk
from tests.integration.slurm import authority

RAN = "echo RAN\n"


@pytest.fixture(autouse=True)
def in_service(desk: Desk):
    yield
    assert desk.engine.queue_state() == ""


def test_an_unknown_image(desk: Desk) -> None:
    said = desk.refused(desk.qsub(script=RAN, image="no-such-image"))
    assert "'no-such-image' is not in the site's image list" in said
    assert "lrms-vm image list" in said


@pytest.mark.parametrize("image", ["", "two words", "../../etc/passwd", "/etc/hostname"])
def test_a_name_that_is_none(desk: Desk, image: str) -> None:
    assert desk.refused(desk.qsub("-v", f"VM_IMAGE={image}", script=RAN, image=None))


def test_a_revoked_builder(desk: Desk) -> None:
    with authority.crl(desk.layout, revoke_builder=True):
        assert "revoked" in desk.refused(desk.qsub(script=RAN))


def test_what_the_site_lacks_for_now_is_tried_again_but_not_for_ever(desk: Desk) -> None:
    """Grid Engine takes up to 20 s between two tries, so this job has had two of its three."""
    retries = desk.layout.places(NODE).retries
    with authority.crl(desk.layout, expired=True):
        job_id = desk.qsub("-h", script=RAN)
        retries.mkdir(mode=0o700, exist_ok=True)
        counter = retries / f"gridengine-{job_id}.{desk.engine.host}"
        counter.write_text("2")
        desk.engine.ask("qrls", str(job_id))
        said = desk.refused(job_id)
    assert said.count("expired") == 2, said
    assert not counter.exists()


def test_an_argument_that_poses_as_grid_engines_own_setting(desk: Desk) -> None:
    job_id = desk.qsub(script=RAN, script_arguments=["x\nqueue=other.q"])
    assert "looks like Grid Engine's own setting queue=" in desk.refused(job_id)
