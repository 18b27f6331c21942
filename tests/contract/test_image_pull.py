"""`lrms-vm image pull` and `image verify --list` as they are typed: real server, real signatures, real processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lrms_vm import cache, lease
from lrms_vm.paths import Places
from lrms_vm.trust import tree
from tests.certs.make_certs import Authority, name, person, rsa_key

NOW = datetime.now(UTC)
CA = Authority.root(name("Test CA"), at=NOW, key=rsa_key(number=7))
ALICE = CA.issue(person("Alice Example"), key=rsa_key())
RULES = """version = 1
[defaults]
ca_dir = "{ca_dir}"
namespaces = "ignore"
[[builder]]
name = "alice"
issuer = "CN=Test CA,DC=TestGrid,DC=org"
subject = "CN=Alice Example,O=People,DC=TestGrid,DC=org"
images = ["atlas/*"]
"""
CHUNK = tree.CHUNK_BYTES
IMAGE = os.urandom(3 * CHUNK) + bytes(12 * CHUNK) + os.urandom(2 * CHUNK + 5)  # zeros worth a range of their own
SHA256 = hashlib.sha256(IMAGE).hexdigest()


@dataclass
class Web:
    """A server with ranges. `spoil` changes what is sent of a body; `stop_after`: bytes after which it only waits."""

    files: dict[str, bytes] = field(default_factory=dict)
    spoil: Callable[[str, bytes], bytes] = lambda path, body: body
    stop_after: int | None = None
    log: list[tuple[str, str]] = field(default_factory=list)
    sent_bytes: int = 0
    url: str = ""

    def ranges(self, path: str) -> list[str]:
        return [wanted for asked, wanted in self.log if asked == path]


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            web.log.append((self.path, wanted))
            body = web.files.get(self.path)
            if body is None:
                return self.send_error(404)
            start, end = 0, len(body)
            if wanted:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, end = int(first), int(last) + 1 if last else end
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(end - start))
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(body)}")
            self.end_headers()
            left = web.spoil(self.path, body)[start:end]
            with contextlib.suppress(OSError):
                while left:
                    if web.stop_after is not None and web.sent_bytes >= web.stop_after and ".leaves" not in self.path:
                        time.sleep(0.1)
                        self.wfile.write(b"")
                        self.connection.settimeout(0.01)
                        try:
                            if not self.connection.recv(1):
                                return None
                        except TimeoutError:
                            continue
                    web.sent_bytes += self.wfile.write(left[: 256 << 10])
                    left = left[256 << 10 :]
            return None

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    web.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield web
    server.shutdown()
    server.server_close()


@dataclass(frozen=True)
class Node:
    base: Path
    site: Path
    web: Web

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "lrms_vm", "--config", str(self.base / "lrms_vm.toml"), "image", *words]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(argv, cwd=self.site, env={**os.environ, "http_proxy": "http://127.0.0.1:9"}, **pipes)  # type: ignore[call-overload,no-any-return]

    def run(self, *words: str, code: int = 0) -> str:
        process = self.start(*words)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code, (process.returncode, out, err)
        assert b"Traceback" not in err, err
        return (out if "--json" in words else err).decode()

    def pull(self, *words: str) -> dict[str, Any]:
        return json.loads(self.run("pull", "atlas/sim", "--json", *words))  # type: ignore[no-any-return]

    @property
    def places(self) -> Places:
        return Places(self.base / "state", self.base / "run")

    def partial(self) -> Path:
        return self.places.ingest / f"sha256-{SHA256}.kept.part" / "image"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, web: Web) -> Path:
    """One list of one image, its leaves beside it, and whom to trust."""
    base = tmp_path_factory.mktemp("site")
    directory = base / "certificates"
    directory.mkdir()
    (directory / f"{CA.subject_hash}.0").write_bytes(CA.pem)
    (directory / f"{CA.subject_hash}.r0").write_bytes(CA.crl())
    (base / "alice.crt").write_bytes(ALICE.pem)
    (base / "alice.key").write_bytes(ALICE.key_pem)
    (base / "trust.toml").write_text(RULES.format(ca_dir=directory))
    (base / "sim.raw").write_bytes(IMAGE)
    keys = ("--cert", "alice.crt", "--key", "alice.key", "--leaves")
    node = Node(base, base, web)
    node.run("sign", "--list", "atlas.image_list", "--image", "atlas/sim@1=sim.raw", "--url", web.url, *keys)
    for one in ("atlas.image_list", "sim.raw", "sim.raw.leaves"):
        web.files[f"/{one}"] = (base / one).read_bytes()
    return base


@pytest.fixture
def node(tmp_path: Path, site: Path, web: Web) -> Node:
    """A node with an empty cache; the server is as it should be."""
    web.spoil, web.stop_after, web.sent_bytes, web.log = (lambda path, body: body), None, 0, []
    (tmp_path / "lrms_vm.toml").write_text(
        f"""version = 1
        state_dir = "{tmp_path}/state"
        run_dir = "{tmp_path}/run"
        policy = "{site}/trust.toml"
        [lists.atlas]
        url = "{web.url}/atlas.image_list"
        """
    )
    return Node(tmp_path, site, web)


def test_an_image_is_pulled_once_without_its_zeros(node: Node, web: Web) -> None:
    pulled = node.pull()
    assert (pulled["sha256"], pulled["size_bytes"], pulled["was_here"]) == (SHA256, len(IMAGE), False)
    assert Path(pulled["path"]).read_bytes() == IMAGE
    assert Path(pulled["path"]).stat().st_blocks * 512 < 6 * CHUNK
    assert web.ranges("/sim.raw") == [f"bytes=0-{3 * CHUNK - 1}", f"bytes={15 * CHUNK}-{len(IMAGE) - 1}"]
    assert node.pull()["was_here"]
    assert "it was here already" in node.run("pull", "atlas/sim@1")
    assert list(lease.leases(node.places)) == []
    assert cache.verify(node.places, SHA256)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_pull_that_was_ended_is_gone_on_with(node: Node, web: Web, number: int) -> None:
    web.stop_after = 3 * CHUNK - 1000
    process = node.start("pull", "atlas/sim")
    deadline = time.monotonic() + 30
    while web.sent_bytes < web.stop_after and time.monotonic() < deadline:
        time.sleep(0.02)
    while not (node.partial().exists() and node.partial().stat().st_blocks * 512 >= CHUNK):
        assert time.monotonic() < deadline, "the first chunks are kept as they come"
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130), err
    held = [one.key for one in lease.leases(node.places)]
    assert held == [] or number == signal.SIGKILL
    assert node.partial().exists()
    web.stop_after, before = None, len(web.log)
    assert Path(node.pull()["path"]).read_bytes() == IMAGE
    asked = [wanted for path, wanted in web.log[before:] if path == "/sim.raw"]
    starts = [int(wanted.removeprefix("bytes=").partition("-")[0]) for wanted in asked]
    assert starts and min(starts) >= CHUNK, asked  # at least the first chunk was not asked for again
    assert list(node.places.ingest.iterdir()) == []


def test_a_server_that_stalls_is_left_with_what_it_sent_kept(node: Node, web: Web) -> None:
    web.stop_after = CHUNK + 1000
    assert "deadline" in node.run("pull", "atlas/sim", "--timeout", "3s", code=75)
    web.stop_after, before = None, len(web.log)
    assert node.pull()["sha256"] == SHA256
    assert web.log[before:][-2:][0][1] == f"bytes={CHUNK}-{3 * CHUNK - 1}"


def test_the_first_chunk_that_is_not_the_signed_one_ends_the_fetch(node: Node, web: Web) -> None:
    web.spoil = lambda path, body: body[:CHUNK] + b"X" + body[CHUNK + 1 :] if path == "/sim.raw" else body
    said = node.run("pull", "atlas/sim", code=77)
    assert f"bytes {CHUNK} to {2 * CHUNK - 1} are not those that were signed" in said
    assert list(node.places.ingest.iterdir()) == [], "nobody has the right bytes: nothing to go on with"


def test_lines_say_how_far_it_is_and_the_rest_is_one_sentence(node: Node) -> None:
    (line,) = node.run("pull", "atlas/sim").splitlines()
    assert line.startswith(f"lrms-vm: atlas/sim: sha256:{SHA256}, 34 MiB in ")


def test_a_file_is_verified_by_the_tree_of_a_list(node: Node) -> None:
    image = node.base / "sim.raw"
    image.write_bytes(IMAGE)
    words = ("verify", str(image), "--list", "atlas.image_list", "--policy", "trust.toml", "--json")
    found = json.loads(node.run(*words))
    assert (found["code"], found["digest"], found["rule"]) == ("accepted", f"sha256:{SHA256}", "alice")
    assert json.loads(node.run(*words, "--name", "atlas/other", code=77))["code"] == "image-not-listed"
    with image.open("r+b") as file:
        os.pwrite(file.fileno(), b"X", 9 * CHUNK)  # where the signed image has zeros
    assert json.loads(node.run(*words, "--name", "atlas/sim@1", code=77))["code"] == "bytes-differ"
    image.write_bytes(IMAGE[:-1])
    assert json.loads(node.run(*words, code=77))["code"] == "image-not-listed"


def test_what_cannot_be_pulled(node: Node, web: Web) -> None:
    assert "is not in the site's image list" in node.run("pull", "atlas/none", code=77)
    assert "not below a place" in node.run("pull", f"{web.url}/sim.raw", code=77)
    node.run("pull", "a b", code=64)
