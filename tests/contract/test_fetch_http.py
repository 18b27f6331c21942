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
from lrms_vm.fetch import Fetch, Part, fetch_dropped, unprivileged

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

    def go_coded(self) -> None:
        self.answer(200, BODY, Content_Length="", Transfer_Encoding="gzip, chunked")

    def go_chunked_negative(self) -> None:
        self.answer(200, b"-5\r\nabc\r\n0\r\n\r\n", Content_Length="", Transfer_Encoding="chunked")

    def go_inward_short(self) -> None:
        self.answer(302, Location=f"http://127.1:{self.server.server_address[1]}/ok")  # type: ignore[attr-defined]

    def go_inward_number(self) -> None:
        self.answer(302, Location=f"http://2130706433:{self.server.server_address[1]}/ok")  # type: ignore[attr-defined]

    def go_inward_mapped(self) -> None:
        self.answer(302, Location=f"http://[::ffff:127.0.0.1]:{self.server.server_address[1]}/ok")  # type: ignore[attr-defined]

    def go_continue(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def go_drip(self) -> None:
        self.send_response(200)
        self.flush_headers()
        with contextlib.suppress(OSError):
            for _ in range(100):
                self.wfile.write(b"X")
                time.sleep(0.1)

    # parts of a file, and connections that break

    def part(self, *, cut: int | None = None, tag: str = '"v1"', total: int | None = None, **headers: str) -> None:
        """Answer a Range as RFC 9110 says, ending the body after `cut` bytes."""
        wanted = self.headers.get("Range", "")
        if wanted and self.headers.get("If-Range", tag) == tag:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) + 1 if last else len(BODY)
            headers.setdefault("Content_Range", f"bytes {start}-{end - 1}/{total or len(BODY)}")
            body, status = BODY[start:end], 206
        else:
            body, status = BODY, 200
        self.answer(status, body[:cut], Content_Length=str(len(body)), ETag=tag, **headers)

    def go_ranges(self) -> None:
        self.part()

    def go_cuts(self) -> None:
        self.part(cut=len(BODY) // 5)

    def go_crumbs(self) -> None:
        self.part(cut=10)

    def go_changes(self) -> None:
        self.part(cut=len(BODY) // 5, tag=f'"{time.monotonic()}"')

    def go_changes_silently(self) -> None:
        self.part(cut=len(BODY) // 5, tag="", total=len(BODY) if "Range" not in self.headers else 5 + len(BODY))

    def go_cuts_whole(self) -> None:
        self.answer(200, BODY[:100], Content_Length=str(len(BODY)), ETag='"v1"')

    def go_elsewhere(self) -> None:
        self.part(Content_Range=f"bytes 0-4/{len(BODY)}")

    def go_longer(self) -> None:
        self.part(total=len(BODY) + 1)

    def go_unsaid(self) -> None:
        self.part(Content_Range="")

    def go_unknown(self) -> None:
        self.part(Content_Range="bytes 5-9/*")

    def go_several(self) -> None:
        self.part(Content_Range="", Content_Type="multipart/byteranges; boundary=x")

    def go_endless_part(self) -> None:
        self.send_response(206)
        self.send_header("Content-Range", f"bytes 5-9/{len(BODY)}")
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(BODY[5:10] + b"x" * 65536)

    def go_unsatisfiable(self) -> None:
        self.answer(416)

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
        ("coded", "image-encoded"),
        ("chunked-negative", "image-short"),
        ("inward-short", "image-redirect"),
        ("inward-number", "image-redirect"),
        ("inward-mapped", "image-redirect"),
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


@pytest.mark.parametrize("path", ["continue", "drip"])
def test_a_server_that_never_gets_to_the_body_is_given_up_by_the_deadline(base: str, path: str) -> None:
    start = time.monotonic()
    assert code_of(f"{base}/{path}", timeout_s=1.0) == "image-server-slow"
    assert time.monotonic() - start < 4


def test_a_connection_that_breaks_is_taken_up_where_it_stopped(base: str) -> None:
    assert read(f"{base}/cuts") == BODY


@pytest.mark.parametrize(
    ("path", "code"), [("crumbs", "image-server-slow"), ("changes", "image-short"), ("cuts-whole", "image-short")]
)
def test_a_body_in_too_many_pieces_or_of_two_versions_is_not_taken(base: str, path: str, code: str) -> None:
    assert code_of(f"{base}/{path}") == code


def test_a_file_of_another_size_is_not_gone_on_with(base: str) -> None:
    assert code_of(f"{base}/changes-silently") == "bytes-differ"


def part_of(url: str, *ranges: tuple[int, int], size_bytes: int = len(BODY)) -> bytes:
    part = Part(ranges, size_bytes)
    return b"".join(FETCH.fetch(url, max_bytes=part.wanted_bytes, deadline=time.monotonic() + 20, part=part))


def test_parts_of_a_file_come_in_turn(base: str) -> None:
    assert part_of(f"{base}/ranges", (5, 10)) == BODY[5:10]
    middle = (1 << 20, (1 << 20) + 70_000)
    assert (
        part_of(f"{base}/ranges", (0, 3), middle, (len(BODY) - 1, len(BODY))) == BODY[:3] + BODY[slice(*middle)] + b"d"
    )
    assert part_of(f"{base}/ranges", (0, len(BODY))) == BODY == part_of(f"{base}/ok", (0, len(BODY)))
    assert part_of(f"{base}/cuts", (7, len(BODY))) == BODY[7:]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("ok", "image-no-ranges"),
        ("elsewhere", "image-server-down"),
        ("longer", "bytes-differ"),
        ("unsaid", "image-server-down"),
        ("unknown", "image-server-down"),
        ("several", "image-server-down"),
        ("unsatisfiable", "image-server-down"),
        ("missing", "image-missing"),
        ("gzip", "image-no-ranges"),
        ("part", "bytes-differ"),
    ],
)
def test_another_part_than_the_one_that_was_asked_for(base: str, path: str, code: str) -> None:
    with pytest.raises(LrmsVmError) as caught:
        part_of(f"{base}/{path}", (5, 11))
    assert caught.value.code == code


def test_a_part_ends_where_it_was_to_end(base: str) -> None:
    assert part_of(f"{base}/endless-part", (5, 10)) == BODY[5:10]


@pytest.mark.parametrize("size_bytes", [len(BODY) - 1, len(BODY) + 1])
def test_a_file_of_another_size_than_was_signed_is_refused_before_its_bytes(base: str, size_bytes: int) -> None:
    with pytest.raises(LrmsVmError) as caught:
        part_of(f"{base}/ok", (0, size_bytes), size_bytes=size_bytes)
    assert caught.value.code == "bytes-differ"


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
