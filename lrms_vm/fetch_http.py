"""The child that speaks HTTP: `python -I fetch_http.py URL --max-bytes N ...`, as a user who may do nothing.

It imports nothing of ours and writes no file: the body goes to stdout, and on failure one line of JSON
{"code", "message"} to stderr with exit code 3. Its parent (fetch.py) believes neither: it counts the bytes
again, watches the clock, and reads the JSON strictly.
HTTP as in RFC 9110 and 9112; no content coding (RFC 9110 8.4), because the signature is over the plain bytes.
A connection that breaks is taken up again where it stopped (RFC 9110 13.1.5, 14.2), where the server says that it is
still the same file.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import ipaddress
import json
import os
import re
import socket
import ssl
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from urllib.parse import SplitResult, urljoin, urlsplit

MAX_REDIRECTS = 3
MAX_URL_LENGTH = 2048
READ_BYTES = 1 << 20
EXIT_TOLD = 3  # the reason is on stderr
REDIRECTS = (301, 302, 303, 307, 308)
MAX_RESUMES = 8  # in a row, with less than RESUME_BYTES between
RESUME_BYTES = 16 << 20
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", re.ASCII)


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


@dataclass(frozen=True)
class Wanted:
    """Bytes from `start` to before `end` (None: to the end) of a file of `size_bytes` (None: not known)."""

    start: int = 0
    end: int | None = None
    size_bytes: int | None = None
    validator: str = ""  # a strong entity tag: of this version only

    @property
    def is_whole(self) -> bool:
        return self.start == 0 and self.end in (None, self.size_bytes)


@dataclass(frozen=True)
class Answer:
    """What a server said of the body that follows; lengths in bytes."""

    length: int | None  # of the body
    size_bytes: int | None  # of the whole file
    validator: str


class Rate:
    """Counts what comes, over connections. Raises `Failure` when a window brings too little."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.total = self._in_window = 0
        self._start = time.monotonic()

    def count(self, size: int) -> None:
        self.total += size
        self._in_window += size
        if self.total > self._limits.max_bytes:
            raise Failure("image-too-large", f"more than {self._limits.max_bytes} bytes")

    def check(self) -> None:
        elapsed = time.monotonic() - self._start
        if elapsed > self._limits.window_s:
            if self._in_window < self._limits.min_bytes_per_s * elapsed:
                rate, expected = self._in_window / elapsed, self._limits.min_bytes_per_s
                raise Failure("image-server-slow", f"{rate:.0f} bytes/s, expected {expected}")
            self._in_window, self._start = 0, time.monotonic()


def body(url: str, limits: Limits) -> Iterator[bytes]:
    """Yield the body of `url`. Raises `Failure`."""
    yield from resumed(url, Wanted(), limits, Rate(limits))


def parts(url: str, ranges: Sequence[tuple[int, int]], size_bytes: int, limits: Limits) -> Iterator[bytes]:
    """Yield the bytes of each range (start, end) in turn, of a file that has `size_bytes`. Raises `Failure`."""
    rate = Rate(limits)
    for start, end in ranges:
        yield from resumed(url, Wanted(start, end, size_bytes), limits, rate)


def resumed(url: str, wanted: Wanted, limits: Limits, rate: Rate) -> Iterator[bytes]:
    """Yield what is wanted, over as many connections as it takes. Raises `Failure`."""
    broken: Failure | None = None
    tries = 0
    while True:
        before = rate.total
        try:
            connection, response, answer = _answered(url, wanted, limits)
        except Failure as failure:
            raise broken if broken and failure.code == "image-no-ranges" else failure from failure
        try:
            for block in _read(response, answer, limits, rate):
                yield block
                rate.check()
            return
        except Failure as failure:
            broken = failure
            size_bytes = wanted.size_bytes or answer.size_bytes
            start = wanted.start + rate.total - before
            tries = 0 if rate.total - before >= RESUME_BYTES else tries
            if failure.code != "image-short" or size_bytes is None or start >= size_bytes or tries == MAX_RESUMES:
                raise
            wanted = replace(wanted, start=start, size_bytes=size_bytes, validator=answer.validator)
        finally:
            connection.close()
        time.sleep(min(0.1 * 2**tries, limits.stall_s / 4))
        tries += 1


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
    address = _address(host)
    return address is not None and (
        address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast
    )


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def check_peer(first: str, peer: str) -> None:
    """Whom a redirect to another host led to, whatever its name said (127.1, or any that resolves to it).

    Not into this machine, and not from the world into the site's own network. Addresses are as the kernel writes
    them. Raises `Failure`.
    """
    before, now = _address(first), _address(peer)
    if before is None or now is None or _is_inward(peer) or (before.is_global and not now.is_global):
        raise Failure("image-redirect", f"redirect to {peer} refused: an address inside this machine or site")


def _answered(
    url: str, wanted: Wanted, limits: Limits
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse, Answer]:
    """The answer that has the body, after redirects. Raises `Failure`."""
    where, first = check_url(url), ""
    origin = where.hostname
    for _ in range(MAX_REDIRECTS + 1):
        connection = _connected(where, limits)
        try:
            peer = str(connection.sock.getpeername()[0])
            first = first or peer
            if where.hostname != origin and not limits.proxy:
                check_peer(first, peer)
            response = _asked(connection, where, wanted, limits)
            if response.status not in REDIRECTS:
                return connection, response, _check_answer(response, wanted, limits)
            where = redirected(where, response.getheader("Location"))
        except BaseException:
            connection.close()
            raise
        connection.close()
    raise Failure("image-redirect", f"more than {MAX_REDIRECTS} redirects")


def _connected(where: SplitResult, limits: Limits) -> http.client.HTTPConnection:
    with _told_as_failures(limits):
        connection = _connection(where, limits)
        connection.connect()
        return connection


def _asked(
    connection: http.client.HTTPConnection, where: SplitResult, wanted: Wanted, limits: Limits
) -> http.client.HTTPResponse:
    target = (where.path or "/") + (f"?{where.query}" if where.query else "")
    if limits.proxy and where.scheme == "http":
        target = f"http://{where.netloc}{target}"
    headers = {"Host": where.netloc, "Accept-Encoding": "identity", "User-Agent": "lrms_vm", "Connection": "close"}
    if not wanted.is_whole:
        headers["Range"] = f"bytes={wanted.start}-" + (str(wanted.end - 1) if wanted.end else "")
        if wanted.validator:
            headers["If-Range"] = wanted.validator
    with _told_as_failures(limits):
        connection.request("GET", target, headers=headers)
        return connection.getresponse()


@contextlib.contextmanager
def _told_as_failures(limits: Limits) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise Failure("image-server-slow", f"no answer within {limits.stall_s:g} s") from error
    except ssl.SSLError as error:
        raise Failure("image-server-tls", f"TLS: {error.reason or error}") from error
    except (OSError, http.client.HTTPException, UnicodeError, ValueError) as error:
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


def _read(response: http.client.HTTPResponse, answer: Answer, limits: Limits, rate: Rate) -> Iterator[bytes]:
    """Raises `Failure`; "image-short" is what another connection may go on with."""
    total = 0
    while answer.length is None or total < answer.length:
        try:
            left = READ_BYTES if answer.length is None else answer.length - total
            block = response.read1(min(READ_BYTES, left))
        except TimeoutError as error:
            raise Failure("image-server-slow", f"silent for {limits.stall_s:g} s after {total} bytes") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Failure("image-short", f"ended after {total} bytes: {type(error).__name__}") from error
        if not block:
            break
        total += len(block)
        rate.count(len(block))
        yield block
    if answer.length is not None and total != answer.length:
        raise Failure("image-short", f"{total} bytes came of {answer.length}")


def _check_answer(response: http.client.HTTPResponse, wanted: Wanted, limits: Limits) -> Answer:
    """Refuse every answer that is not the plain bytes that were asked for."""
    if response.status in (404, 410):
        raise Failure("image-missing", f"the server says {response.status}")
    if response.status in (401, 403, 407):
        raise Failure("image-server-refuses", f"the server says {response.status}")
    if response.status == 200 and not wanted.is_whole:
        raise Failure("image-no-ranges", "the server sends all of a file, or has another one now")
    expected = 200 if wanted.is_whole else 206
    if response.status != expected:
        raise Failure("image-server-down", f"the server says {response.status}, expected {expected}")
    for name, plain in (("Content-Encoding", ("", "identity")), ("Transfer-Encoding", ("", "chunked"))):
        coding = response.getheader(name, "").strip().lower()
        if coding not in plain:
            raise Failure("image-encoded", f"{name} {coding[:40]!r}, expected none")
    length = None if response.chunked else _length(response)
    tag = response.getheader("ETag", "").strip()
    validator = tag if tag.startswith('"') and len(tag) < 200 and tag.isascii() and tag.isprintable() else ""
    if wanted.validator and validator not in ("", wanted.validator):
        raise Failure("image-no-ranges", "the file has changed since its first part came")
    if response.status == 206:
        return _check_part(response, wanted, length, validator)
    if wanted.size_bytes is not None and length not in (None, wanted.size_bytes):
        raise Failure("bytes-differ", f"the server has {length} bytes, signed were {wanted.size_bytes}")
    if length is not None and length > limits.max_bytes:
        raise Failure("image-too-large", f"{length} bytes, at most {limits.max_bytes}")
    return Answer(length, length, validator)


def _check_part(response: http.client.HTTPResponse, wanted: Wanted, length: int | None, validator: str) -> Answer:
    """A part is exactly the one that was asked for, of a file of the right size, or none."""
    said = response.getheader("Content-Range", "")
    found = _CONTENT_RANGE.fullmatch(said.strip())
    if found is None:
        raise Failure("image-server-down", f"Content-Range {said[:60]!r} cannot be read")
    first, last, size_bytes = (int(word) for word in found.groups())
    if wanted.size_bytes is not None and size_bytes != wanted.size_bytes:
        raise Failure("bytes-differ", f"the server has {size_bytes} bytes, expected {wanted.size_bytes}")
    end = wanted.end or size_bytes
    if (first, last) != (wanted.start, end - 1) or length not in (None, end - wanted.start):
        raise Failure("image-server-down", f"asked for bytes {wanted.start}-{end - 1}, the server sends {said[:60]!r}")
    return Answer(end - wanted.start, size_bytes, validator)


def _length(response: http.client.HTTPResponse) -> int | None:
    lengths = response.headers.get_all("Content-Length", [])
    if not lengths:
        return None
    if len(set(lengths)) != 1 or not (lengths[0].isascii() and lengths[0].isdigit() and len(lengths[0]) < 19):
        raise Failure("image-server-down", f"Content-Length {', '.join(lengths)[:60]!r}")
    return int(lengths[0])


def _ranges(text: str) -> list[tuple[int, int]]:
    """ "0-10,20-30": from the first byte to before the second."""
    pairs = [word.partition("-") for word in text.split(",")]
    return [(int(start), int(end)) for start, _, end in pairs]


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
    parser.add_argument("--ranges", type=_ranges)
    parser.add_argument("--size-bytes", type=int)
    args = vars(parser.parse_args(argv))
    url, ranges, size_bytes = args.pop("url"), args.pop("ranges"), args.pop("size_bytes")
    limits = Limits(**args)
    try:
        for block in body(url, limits) if ranges is None else parts(url, ranges, size_bytes, limits):
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
