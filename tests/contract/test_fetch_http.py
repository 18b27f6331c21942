"""The fetching child against a real server on the loopback, and against children that are not ours any more."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lrms_vm.errors import LrmsVmError, NodeError
from lrms_vm.fetch import Fetch, fetch_dropped, unprivileged

BODY = os.urandom(1 << 20) * 3 + b"end"


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.close_connection = True
        path = self.path.rpartition("/")[2] if self.path.startswith("http") else self.path[1:]
        getattr(self, "go_" + path.partition("?")[0].replace("-", "_"), self.go_missing)()

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with contextlib.suppress(OSError):  # the child had enough: that is what is tested
            self.wfile.write(body)

    def go_ok(self) -> None:
        self.answer(200, BODY)

    def go_no_length(self) -> None:
        self.answer(200, BODY, Content_Length="")

    def go_chunked(self) -> None:
        self.answer(200, b"3\r\nabc\r\n0\r\n\r\n", Content_Length="", Transfer_Encoding="chunked")

    def go_chunked_short(self) -> None:
        self.answer(200, b"100\r\nabc", Content_Length="", Transfer_Encoding="chunked")

    def go_missing(self) -> None:
        self.answer(404, b"no")

    def go_gone(self) -> None:
        self.answer(410)

    def go_broken(self) -> None:
        self.answer(503)

    def go_closed(self) -> None:
        self.answer(403)

    def go_part(self) -> None:
        self.answer(206, BODY, Content_Range="bytes 5-9/100")

    def go_gzip(self) -> None:
        self.answer(200, BODY, Content_Encoding="gzip")

    def go_short(self) -> None:
        self.answer(200, BODY, Content_Length=str(len(BODY) + 1))

    def go_negative(self) -> None:
        self.answer(200, BODY, Content_Length="-5")

    def go_overflow(self) -> None:
        self.answer(200, BODY, Content_Length="9" * 40)

    def go_garbage(self) -> None:
        self.wfile.write(b"\xff\x00nonsense\r\n\r\n")

    def go_long_header(self) -> None:
        self.answer(200, BODY, X="a" * 100_000)

    def go_file(self) -> None:
        self.answer(302, Location="file:///etc/passwd")

    def go_loop(self) -> None:
        self.answer(302, Location="/loop")

    def go_moved(self) -> None:
        self.answer(301, Location="/moved2")

    def go_moved2(self) -> None:
        self.answer(307, Location="/ok")

    def go_nowhere(self) -> None:
        self.answer(302)

    def go_endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"x" * 65536)
        except OSError:
            pass

    def go_crawl(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            for _ in range(300):
                self.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            pass

    def go_silent(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"x")
        time.sleep(3)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


FETCH = Fetch(python=sys.executable, stall_s=1.0, window_s=0.5, min_bytes_per_s=1000)


def read(url: str, fetch: Fetch = FETCH, max_bytes: int = 10 << 20, timeout_s: float = 20) -> bytes:
    return b"".join(fetch.fetch(url, max_bytes=max_bytes, deadline=time.monotonic() + timeout_s))


def code_of(url: str, fetch: Fetch = FETCH, **more: float) -> str:
    with pytest.raises(LrmsVmError) as caught:
        read(url, fetch, **more)  # type: ignore[arg-type]
    assert not isinstance(caught.value, NodeError), caught.value
    return caught.value.code


def test_a_body_comes_as_it_was_sent(base: str) -> None:
    assert read(f"{base}/ok") == BODY
    assert read(f"{base}/no-length") == BODY
    assert read(f"{base}/chunked") == b"abc"
    assert read(f"{base}/moved?a=1") == BODY


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("missing", "image-missing"),
        ("gone", "image-missing"),
        ("broken", "image-server-down"),
        ("closed", "image-server-refuses"),
        ("part", "image-server-down"),
        ("gzip", "image-encoded"),
        ("short", "image-short"),
        ("chunked-short", "image-short"),
        ("negative", "image-server-down"),
        ("overflow", "image-server-down"),
        ("garbage", "image-server-down"),
        ("long-header", "image-server-down"),
        ("file", "image-redirect"),
        ("loop", "image-redirect"),
        ("nowhere", "image-redirect"),
        ("endless", "image-too-large"),
        ("crawl", "image-server-slow"),
        ("silent", "image-server-slow"),
    ],
)
def test_a_server_that_does_not_do_its_part(base: str, path: str, code: str) -> None:
    assert code_of(f"{base}/{path}") == code


def test_an_announced_length_over_the_bound_is_refused_at_once(base: str) -> None:
    assert code_of(f"{base}/ok", max_bytes=1000) == "image-too-large"


def test_the_deadline_holds_whatever_the_server_does(base: str) -> None:
    patient = Fetch(min_bytes_per_s=0)
    start = time.monotonic()
    assert code_of(f"{base}/crawl", patient, timeout_s=0.7) == "image-server-slow"
    assert time.monotonic() - start < 2


def test_no_server_is_the_sites_fault() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        assert code_of(f"http://127.0.0.1:{port}/x") == "image-server-down"
    assert code_of("http://no-such-host.invalid/x") == "image-server-down"


def test_a_proxy_is_used_when_it_is_said_and_never_from_the_environment(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert read(f"{base}/ok") == BODY
    assert read("http://images.invalid/ok", Fetch(proxy=base)) == BODY


def test_tls_is_verified(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
            ),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    for path in (tmp_path, *tmp_path.parents):
        if path != Path("/") and path.owner() == Path(tmp_path).owner() and path != Path("/tmp"):
            path.chmod(0o755)  # the child reads the CA file as nobody
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"https://127.0.0.1:{server.server_address[1]}/ok"
        assert code_of(url) == "image-server-tls"
        assert read(url, Fetch(ca_file=str(certificate))) == BODY
        assert code_of(url.replace("127.0.0.1", "localhost"), Fetch(ca_file=str(certificate))) == "image-server-tls"
    finally:
        server.shutdown()
        server.server_close()


# --- a child that an attacker has taken over ----------------------------------------------------------------------------


def taken_over(program: str, **more: float) -> bytes:
    options = {"max_bytes": 1 << 20, "deadline": time.monotonic() + 5, "stall_s": 1.0, **more}
    argv = [sys.executable, "-I", "-S", "-c", program]
    return b"".join(fetch_dropped("http://h/x", argv, identity=unprivileged(), **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("import os\nwhile True: os.write(1, b'x' * 65536)", "image-too-large"),
        ("import os, time\nwhile True: os.write(1, b'x'); time.sleep(0.1)", "image-server-slow"),
        ("import time; time.sleep(60)", "image-server-slow"),
        ("import os, time\nos.close(1)\ntime.sleep(60)", "fetch-failed"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "fetch-failed"),
        ("import sys\nsys.stderr.write('x' * 60000); sys.exit(3)", "fetch-failed"),
        ('import sys\nsys.stderr.write(\'{"code": "accepted", "message": ""}\'); sys.exit(3)', "fetch-failed"),
        ("import os, time\nif os.fork() == 0:\n os.setsid(); time.sleep(8)\nos._exit(1)", "image-server-slow"),
    ],
)
def test_it_can_only_fail_the_fetch(program: str, code: str) -> None:
    start = time.monotonic()
    with pytest.raises(LrmsVmError) as caught:
        taken_over(program, deadline=time.monotonic() + 2)
    assert caught.value.code == code
    assert time.monotonic() - start < 7


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to drop")
def test_it_is_nobody_and_holds_none_of_our_files(tmp_path: Path) -> None:
    secret = (tmp_path / "secret").open("w")
    program = "import os; print(os.getresuid(), os.getgroups(), sorted(os.environ), len(os.listdir('/proc/self/fd')))"
    with secret:
        said = taken_over(program).decode()
    assert said == "(65534, 65534, 65534) [] ['LANG', 'LC_ALL', 'PATH', 'TZ'] 4\n"


def test_the_child_ends_when_nobody_wants_the_rest(base: str) -> None:
    blocks = FETCH.fetch(f"{base}/endless", max_bytes=1 << 40, deadline=time.monotonic() + 20)
    next(blocks)
    blocks.close()  # type: ignore[attr-defined]
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    assert [pid for pid in children if "fetch_http" in Path(f"/proc/{pid}/cmdline").read_text()] == []
