"""A job's prologue with an image of a signed list: a real server, real signatures, the real trust core and cache."""

from __future__ import annotations

import functools
import json
import os
import syslog
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lrms_vm import lifecycle, record, teardown
from lrms_vm.cli.status import rows_of
from lrms_vm.config import Subscription
from lrms_vm.decision import Decision
from lrms_vm.errors import LrmsVmError
from lrms_vm.fetch import Fetch
from lrms_vm.image import ImageEntry
from lrms_vm.lifecycle import Actors
from lrms_vm.list_refresh import path_of
from lrms_vm.request import parse_request
from lrms_vm.trust.json_object import show_time
from lrms_vm.trust.verify import TrustAnchors
from lrms_vm.verdict import read_verdict
from tests.certs.make_certs import Authority, name, person
from tests.contract.test_crash_matrix import Site
from tests.lists import ALICE_DN, LIST, image, payload, policy, sign

IMAGE = os.urandom(300_000)
AT = datetime.now(UTC)
CA = Authority.root(name("Test CA"), at=AT)
ALICE = CA.issue(person("Alice Example"))
EVERYBODY = """[[runner]]
name = "everybody"
users = ["*"]
images = ["atlas/*"]
"""


class Listed(Site):
    """A node that subscribes to a list on a server of its own."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.www = root / "www"
        self.www.mkdir()
        (self.www / "a.img").write_bytes(IMAGE)

        class Quiet(SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(self.www)))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        lists = {"atlas": Subscription("atlas", f"{self.url}/atlas.image_list")}
        self.config = replace(self.config, lists=lists)
        self.decision = Decision(policy(more=EVERYBODY), TrustAnchors((CA.pem,), (CA.crl(),)))

    def publish(self, version: str, *names: str) -> None:
        images = [image(one, IMAGE, **{"hv:uri": f"{self.url}/a.img"}) for one in names]
        times = {"dc:date:created": show_time(AT), "dc:date:expires": show_time(AT + timedelta(days=20))}
        text = payload(images, **{"hv:version": version, **times})
        (self.www / "atlas.image_list").write_bytes(sign(text, ALICE, at=AT))

    def age(self) -> None:
        os.utime(path_of(self.config.places, "atlas"), (1, 1))

    def run(self, reference: str, job_id: str) -> dict[str, str]:
        """A prologue; what its verdict says of the image."""
        self.allocation = replace(self.allocation, job_id=job_id)
        actors = Actors(hypervisor=self.hypervisor, fetch=Fetch(), decision=self.decision, python="/bin/true")
        with teardown.locked(self.config.places, self.allocation.key, deadline=time.monotonic() + 5):
            lifecycle.prologue(
                parse_request({"vm-image": reference}, source="test"), self.allocation, config=self.config,
                actors=actors, started_at=time.time(), deadline=time.monotonic() + 60,
            )  # fmt: skip
        path = self.config.places.verdict(self.allocation.key)
        return read_verdict(path.read_bytes(), source=str(path)).image

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listed]:
    root = tmp_path_factory.mktemp("n", numbered=True)
    for parent in [root, *root.parents][:4]:
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    made = Listed(root)
    yield made
    made.close()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(syslog, "syslog", lambda _, line: lines.append(line))
    return lines


def refused(site: Listed, reference: str, job_id: str) -> LrmsVmError:
    with pytest.raises(LrmsVmError) as caught:
        site.run(reference, job_id)
    assert site.teardown() == []
    return caught.value


def test_from_a_list_to_a_guest_and_its_provenance_everywhere(site: Listed, log: list[str]) -> None:
    site.publish("7", "atlas/sim", "atlas/other")
    found = site.run("atlas/sim", "7")
    assert (found["name"], found["version"], found["signer"]) == ("atlas/sim", "1.2.3", ALICE_DN)
    assert (found["rule"], found["runner"], found["list"], found["list_version"]) == ("alice", "everybody", LIST, "7")
    assert record.read(site.config.places.job("slurm-7.n1").record).steps["verified"]["image"] == found
    (row,) = rows_of(site.config.places)
    expected = (
        f'job=slurm-7.n1 user=nobody image=atlas/sim@1.2.3 digest={found["digest"]} signer="{ALICE_DN}" '
        f'issuer="CN=Test CA,DC=TestGrid,DC=org" rule=alice runner=everybody list={LIST} version=7 '
        "verdict=accepted code=accepted"
    )
    assert row["provenance"] == expected
    assert f"level=info event=verdict {expected}" in log
    assert site.teardown() == []
    history = json.loads((site.config.places.history / "slurm-7.n1.json").read_text())
    assert history["image"] == found


def test_a_withdrawn_image_does_not_boot_from_the_warm_cache(site: Listed, log: list[str]) -> None:
    site.publish("7", "atlas/sim")
    found = site.run("atlas/sim", "1")
    assert site.teardown() == []
    site.publish("8", "atlas/other")
    site.age()
    for number, reference in enumerate(("atlas/sim", "atlas/sim@1.2.3")):
        error = refused(site, reference, f"2{number}")
        assert (error.code, error.exit_code) == ("image-withdrawn", 77)
        assert f"job=slurm-2{number}.n1 user=nobody image={reference} verdict=refused code=image-withdrawn" in log[-1]
    assert site.run(found["digest"], "3")["name"] == "atlas/other", "the same bytes under the other name"


def test_with_the_server_away_jobs_go_on_until_the_list_expires(site: Listed) -> None:
    site.publish("7", "atlas/sim")
    site.run("atlas/sim", "1")
    site.teardown()
    site.close()
    site.age()
    assert site.run("atlas/sim", "2")["list_version"] == "7"
    site.teardown()
    site.decision = Decision(policy(more=EVERYBODY, defaults='max_list_age = "1s"'), site.decision.anchors)
    time.sleep(1.1)
    error = refused(site, "atlas/sim", "3")
    assert (error.code, error.exit_code) == ("list-expired", 75)


def test_a_revoked_endorser_stops_what_is_warm(site: Listed) -> None:
    site.publish("7", "atlas/sim")
    site.run("atlas/sim", "1")
    site.teardown()
    site.decision = Decision(site.decision.policy, TrustAnchors((CA.pem,), (CA.crl([ALICE.certificate]),)))
    assert (refused(site, "atlas/sim", "2").code, refused(site, "atlas/sim", "3").exit_code) == ("signer-revoked", 77)


def test_what_is_beside_an_image_goes_on_as_before_and_wins_over_a_list(site: Listed, log: list[str]) -> None:
    from lrms_vm.signing import detached_cms

    site.publish("7", "atlas/sim")
    own = site.www.parent / "own.raw"
    own.write_bytes(b"own" * 1000)
    import hashlib

    signature = detached_cms(ALICE.signer(), hashlib.sha256(own.read_bytes()).digest(), "sha256", AT)
    own.with_name("own.raw.p7s").write_bytes(signature)
    site.config = replace(site.config, images={"atlas/sim": ImageEntry("atlas/sim", str(own))})
    found = site.run("atlas/sim", "1")
    assert "list" not in found and found["digest"].endswith(hashlib.sha256(own.read_bytes()).hexdigest())
    site.teardown()
    by_digest = site.run(found["digest"], "2")
    assert by_digest["name"] == "atlas/sim" and "list" not in by_digest
    site.teardown()
    assert site.run("atlas/sim@1.2.3", "3")["list"] == LIST


@pytest.mark.parametrize("step", ["lease", "verified", "domain"])
def test_a_prologue_killed_with_a_listed_image_leaves_nothing(site: Listed, step: str) -> None:
    site.publish("7", "atlas/sim")
    child = os.fork()
    if child == 0:

        def die(reached: str) -> None:
            if reached == step:
                os.kill(os.getpid(), 9)

        actors: Any = Actors(
            hypervisor=site.hypervisor, fetch=Fetch(), decision=site.decision, python="/bin/true", on_note=die
        )
        try:
            lifecycle.prologue(
                parse_request({"vm-image": "atlas/sim"}, source="test"), site.allocation, config=site.config,
                actors=actors, started_at=time.time(), deadline=time.monotonic() + 60,
            )  # fmt: skip
        finally:
            os._exit(99)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert site.teardown() == [] and site.left() == []
