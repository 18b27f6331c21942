"""The child that speaks HTTP: `python -I fetch_http.py URL --max-bytes N ...`, as a user who may do nothing.

It imports nothing of ours and writes no file: the body goes to stdout, and on failure one line of JSON
{"code", "message"} to stderr with exit code 3. Its parent (fetch.py) believes neither: it counts the bytes
again, watches the clock, and reads the JSON strictly.
HTTP as in RFC 9110 and 9112; no content coding (RFC 9110 8.4), because the signature is over the plain bytes.
"""

from __future__ import annotations

import argparse
import http.client
import ipaddress
import json
import os
import socket
import ssl
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

MAX_REDIRECTS = 3
MAX_URL_LENGTH = 2048
READ_BYTES = 1 << 20
EXIT_TOLD = 3  # the reason is on stderr
REDIRECTS = (301, 302, 303, 307, 308)


class Failure(Exception):
    """Ends the child; `code` is one of fetch.CHILD_CODES."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Limits:
    """What a body may be and how long it may take."""

    max_bytes: int
    stall_s: float  # longest silence
    min_bytes_per_s: int  # over each window
    window_s: float
    proxy: str | None = None  # http://host:port, for http and (by CONNECT) https
    ca_file: str | None = None  # PEM; None: the system's


def body(url: str, limits: Limits) -> Iterator[bytes]:
    """Yield the body of `url`. Raises `Failure`."""
    where = check_url(url)
    for _ in range(MAX_REDIRECTS + 1):
        connection, response = _get(where, limits)
        try:
            if response.status not in REDIRECTS:
                yield from _read(url, response, limits)
                return
            where = redirected(where, response.getheader("Location"))
        finally:
            connection.close()
    raise Failure("image-redirect", f"more than {MAX_REDIRECTS} redirects")


def check_url(url: str) -> SplitResult:
    """Take a URL apart; refuse what http.client would misread. Raises `Failure`."""
    if len(url) > MAX_URL_LENGTH or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise Failure("image-url", "not a plain ASCII URL of at most 2048 characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Failure("image-url", f"cannot be read as a URL: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise Failure("image-url", f"scheme {parts.scheme!r}, expected http or https")
    if "@" in parts.netloc or not parts.hostname or port == 0:
        raise Failure("image-url", "expected a host name and no user name")
    return parts


def redirected(before: SplitResult, location: str | None) -> SplitResult:
    """Where a redirect may lead: never away from TLS, never into this machine. Raises `Failure`."""
    try:
        if not location or not location.isprintable():  # urljoin would drop tabs and newlines
            raise Failure("image-redirect", "no place that can be read")
        parts = check_url(urljoin(before.geturl(), location))
    except (Failure, ValueError) as error:
        raise Failure("image-redirect", f"redirect to {str(location)[:80]!r} refused: {error}") from error
    if before.scheme == "https" and parts.scheme != "https":
        raise Failure("image-redirect", f"redirect from https to {parts.scheme} refused")
    if parts.hostname != before.hostname and _is_inward(parts.hostname or ""):
        raise Failure("image-redirect", f"redirect to {parts.hostname} refused: an address inside this machine")
    return parts


def _is_inward(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast


def _get(where: SplitResult, limits: Limits) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    target = (where.path or "/") + (f"?{where.query}" if where.query else "")
    try:
        connection = _connection(where, limits)
        if limits.proxy and where.scheme == "http":
            target = f"http://{where.netloc}{target}"
        headers = {"Host": where.netloc, "Accept-Encoding": "identity", "User-Agent": "lrms_vm", "Connection": "close"}
        connection.request("GET", target, headers=headers)
        return connection, connection.getresponse()
    except TimeoutError as error:
        raise Failure("image-server-slow", f"no answer within {limits.stall_s:g} s") from error
    except ssl.SSLError as error:
        raise Failure("image-server-tls", f"TLS: {error.reason or error}") from error
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise Failure("image-server-down", f"{type(error).__name__}: {error}") from error


def _connection(where: SplitResult, limits: Limits) -> http.client.HTTPConnection:
    host, port = where.hostname or "", where.port
    tls = ssl.create_default_context(cafile=limits.ca_file) if where.scheme == "https" else None
    proxy = check_url(limits.proxy) if limits.proxy else None
    near = (proxy.hostname or "", proxy.port or 3128) if proxy else (host, port)
    if tls is None:
        return http.client.HTTPConnection(*near, timeout=limits.stall_s)
    connection = http.client.HTTPSConnection(*near, timeout=limits.stall_s, context=tls)
    if proxy:
        connection.set_tunnel(host, port or 443)
    return connection


def _read(url: str, response: http.client.HTTPResponse, limits: Limits) -> Iterator[bytes]:
    announced = _check_answer(response, limits)
    total = in_window = 0
    window_start = time.monotonic()
    while True:
        try:
            block = response.read1(READ_BYTES)
        except TimeoutError as error:
            raise Failure("image-server-slow", f"silent for {limits.stall_s:g} s after {total} bytes") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Failure("image-short", f"ended after {total} bytes: {type(error).__name__}") from error
        if not block:
            break
        total += len(block)
        in_window += len(block)
        if total > limits.max_bytes:
            raise Failure("image-too-large", f"more than {limits.max_bytes} bytes")
        yield block
        elapsed = time.monotonic() - window_start
        if elapsed > limits.window_s:
            if in_window < limits.min_bytes_per_s * elapsed:
                rate = in_window / elapsed
                raise Failure("image-server-slow", f"{rate:.0f} bytes/s, expected {limits.min_bytes_per_s}")
            in_window, window_start = 0, time.monotonic()
    if announced is not None and total != announced:
        raise Failure("image-short", f"ended after {total} of {announced} bytes")


def _check_answer(response: http.client.HTTPResponse, limits: Limits) -> int | None:
    """Refuse every answer that is not the plain bytes; return the announced length."""
    if response.status in (404, 410):
        raise Failure("image-missing", f"the server says {response.status}")
    if response.status in (401, 403, 407):
        raise Failure("image-server-refuses", f"the server says {response.status}")
    if response.status != 200:
        raise Failure("image-server-down", f"the server says {response.status}, expected 200")
    coding = response.getheader("Content-Encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise Failure("image-encoded", f"Content-Encoding {coding[:40]!r}, expected none")
    lengths = response.headers.get_all("Content-Length", [])
    if not lengths:
        return None
    if len(set(lengths)) != 1 or not (lengths[0].isascii() and lengths[0].isdigit() and len(lengths[0]) < 19):
        raise Failure("image-server-down", f"Content-Length {', '.join(lengths)[:60]!r}")
    if int(lengths[0]) > limits.max_bytes:
        raise Failure("image-too-large", f"{lengths[0]} bytes, at most {limits.max_bytes}")
    return None if response.chunked else int(lengths[0])


def main(argv: Sequence[str]) -> int:
    """The child's whole life."""
    parser = argparse.ArgumentParser(prog="fetch_http", allow_abbrev=False)
    parser.add_argument("url")
    parser.add_argument("--max-bytes", type=int, required=True)
    parser.add_argument("--stall-s", type=float, required=True)
    parser.add_argument("--min-bytes-per-s", type=int, required=True)
    parser.add_argument("--window-s", type=float, required=True)
    parser.add_argument("--proxy")
    parser.add_argument("--ca-file")
    args = vars(parser.parse_args(argv))
    url = args.pop("url")
    try:
        for block in body(url, Limits(**args)):
            view = memoryview(block)
            while view:
                view = view[os.write(1, view) :]
    except Failure as error:
        os.write(2, json.dumps({"code": error.code, "message": error.message[:300]}).encode() + b"\n")
        return EXIT_TOLD
    return 0


if __name__ == "__main__":
    socket.setdefaulttimeout(60)
    sys.exit(main(sys.argv[1:]))
