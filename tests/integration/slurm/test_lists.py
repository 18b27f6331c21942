"""An image of a signed list: fetched by http, qcow2 made raw, run; and no longer run once its endorser withdraws it."""

from __future__ import annotations

import functools
import http.server
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo import site
from demo.ca import BUILDER_DN
from demo.cluster import Cluster
from demo.layout import NODES, Layout
from demo.programs import run, wait_until
from tests.integration.slurm.conftest import Desk

LIST = "atlas.image_list"
TIER = 'tier = "own"\n\n[tiers.own]\nroot = true\n'  # of the last rule, which lets the demo's user run everything
ROOT_INSIDE = "lrms-vm-root id -u; echo mine >by-user; lrms-vm-root cat by-user; lrms-vm-root touch by-root"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Publisher:
    """A builder's web server: a directory with images and the list of them."""

    layout: Layout
    directory: Path
    url: str

    def publish(self, *images: str) -> None:
        """Sign the next version of the list. `images` are NAME@VERSION=FILE."""
        words = [word for image in images for word in ("--image", image)]
        keys = ["--cert", self.layout.ca / "builder.crt", "--key", self.layout.ca / "builder.key"]
        run(
            [self.layout.command, "image", "sign", "--list", self.directory / LIST, *words, "--url", self.url, *keys],
            timeout_s=120,
        )


@pytest.fixture(scope="module")
def publisher(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Publisher]:
    layout, directory = cluster.layout, tmp_path_factory.mktemp("published")
    minimal = site.image_path(layout, "minimal")
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", minimal, directory / "sim.qcow2"], timeout_s=120)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(directory)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made = Publisher(layout, directory, f"http://127.0.0.1:{server.server_address[1]}")
    for node in NODES:
        with layout.config(node).open("a") as file:
            file.write(f'\n[lists.atlas]\nurl = "{made.url}/{LIST}"\nrefresh_s = 1\n')
    policy = layout.etc / "trust.toml"
    text = policy.read_text().replace('"cms", "dgst"]', '"cms", "dgst", "list"]\nformats = ["raw", "qcow2"]')
    text = text.replace("[defaults]", '[defaults]\nformats = ["raw", "qcow2"]')
    policy.write_text(text + TIER)
    yield made
    server.shutdown()
    server.server_close()
    site.configure(layout)


@pytest.mark.guest
def test_a_listed_qcow2_image_runs_until_it_is_withdrawn(desk: Desk, publisher: Publisher) -> None:
    sim = f"atlas/sim@1.0={publisher.directory}/sim.qcow2"
    publisher.publish(sim)
    first = desk.end(desk.sbatch("--mem=700", "--vm-image=atlas/sim@1.0", script=f"cat /proc/1/comm; {ROOT_INSIDE}\n"))
    assert (first.state, first.output().split()) == ("COMPLETED", ["systemd", "0", "mine"]), first.output()
    assert (
        desk.directory / "by-root"
    ).stat().st_uid == desk.directory.stat().st_uid  # root inside is the job's user outside
    wait_until("its provenance is on the job", lambda: "AdminComment=job=" in shown(desk, first.job_id), timeout_s=20)
    said = next(line for line in shown(desk, first.job_id).splitlines() if "AdminComment=" in line)
    assert "image=atlas/sim@1.0" in said and "verdict=accepted" in said and BUILDER_DN in said, said

    publisher.publish(f"atlas/other@1={publisher.directory}/sim.qcow2")
    second = desk.end(desk.sbatch("--mem=700", "--vm-image=atlas/sim@1.0", script="echo RAN\n"))
    assert (second.state, second.exit_code) == ("FAILED", "77:0"), second.output()
    assert "was withdrawn" in second.output() and "RAN" not in second.output()


def shown(desk: Desk, job_id: int) -> str:
    done = subprocess.run(
        ["scontrol", "show", "job", str(job_id)], env=desk.user.environment, capture_output=True, text=True, check=True
    )
    return done.stdout
