from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrms_vm import fetch, fetch_http
from lrms_vm.errors import LrmsVmError, NodeError, RequestError, SiteError
from lrms_vm.fetch import Fetch
from lrms_vm.fetch_http import Failure, check_url, redirected


def read(url: str, max_bytes: int = 1 << 30, timeout_s: float = 10) -> bytes:
    return b"".join(Fetch().fetch(url, max_bytes=max_bytes, deadline=time.monotonic() + timeout_s))


def code_of(url: str, **more: float) -> str:
    with pytest.raises((RequestError, SiteError)) as caught:
        read(url, **more)  # type: ignore[arg-type]
    return caught.value.code


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(os.urandom(3_000_001))
    assert read(str(path)) == path.read_bytes()


@pytest.mark.parametrize("layout", ["Dh", "hD", "DhD", "h", "D", "hDhDh", ""])
def test_holes_come_as_zeros(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "a.img"
    with path.open("wb") as file:
        for part in layout:
            if part == "D":
                file.write(os.urandom(70_001))
            else:
                file.seek(3_000_003, os.SEEK_CUR)
        file.truncate()
    assert read(str(path)) == path.read_bytes()


def test_a_hole_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    with path.open("wb") as file:
        file.truncate(8 << 20)
    blocks = list(Fetch().fetch(str(path), max_bytes=1 << 30, deadline=time.monotonic() + 10))
    assert all(block is fetch.ZERO_BLOCK for block in blocks)


def test_files_that_are_not_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"x" * 100)
    (tmp_path / "link").symlink_to("image")
    os.mkfifo(tmp_path / "fifo")
    assert code_of(str(tmp_path / "absent")) == "image-missing"
    assert code_of(str(tmp_path / "image" / "below")) == "image-missing"
    assert code_of(str(tmp_path / "link")) == "image-unreadable"
    assert code_of(str(tmp_path / "fifo")) == "image-not-a-file"
    assert code_of(str(tmp_path)) == "image-not-a-file"
    assert code_of("/dev/zero") == "image-not-a-file"
    assert code_of("/nul\0byte") == "image-url"
    assert code_of(str(tmp_path / "image"), max_bytes=99) == "image-too-large"
    assert code_of(str(tmp_path / "image"), timeout_s=-1) == "image-server-slow"


def test_a_file_that_shrinks_meanwhile_is_short(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(bytes(range(256)) * 16384)
    blocks = Fetch().fetch(str(path), max_bytes=1 << 30, deadline=time.monotonic() + 10)
    next(blocks)
    os.truncate(path, 1 << 20)
    with pytest.raises(SiteError) as caught:
        path.open("r+b").write(b"")
        for _ in blocks:
            os.truncate(path, 0)
    assert caught.value.code == "image-short"


@pytest.mark.parametrize("url", ["ftp://h/x", "file:///etc/passwd", "relative", "", "HTTP://h/x", "-o/etc/passwd"])
def test_other_places_are_refused(url: str) -> None:
    assert code_of(url) == "image-url"


def test_the_network_is_never_spoken_to_as_root() -> None:
    if os.geteuid() == 0:
        with pytest.raises(NodeError):
            list(Fetch(identity=None).fetch("http://h/", max_bytes=1, deadline=time.monotonic() + 5))
        assert Fetch().identity is not None and Fetch().identity.uid != 0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/shadow",
        "http://",
        "http:///x",
        "http://user@host/",
        "http://user:pw@host/",
        "http://host:0/",
        "http://host:99999/",
        "http://host:x/",
        "http://[::1/",
        "http://h/a b",
        "http://h/a\r\nX: y",
        "http://h/\0",
        "http://h\\@evil/",
        "http://ex\u00e4mple/",
        "http://h/" + "a" * 100_000,
    ],
)
def test_urls_that_could_be_misread_are_refused(url: str) -> None:
    with pytest.raises(Failure) as caught:
        check_url(url)
    assert caught.value.code == "image-url"


@given(st.text())
def test_any_text_as_a_url_is_taken_apart_or_refused(text: str) -> None:
    for url in (text, "http://" + text):
        try:
            parts = check_url(url)
        except Failure as failure:
            assert failure.code in fetch.CHILD_CODES
        else:
            assert parts.scheme in ("http", "https") and parts.hostname


@pytest.mark.parametrize(
    ("before", "location"),
    [
        ("http://h/x", "file:///etc/shadow"),
        ("http://h/x", "ftp://h/x"),
        ("https://h/x", "http://h/x"),
        ("http://h/x", "http://127.0.0.1/"),
        ("http://h/x", "http://[::1]/"),
        ("http://h/x", "http://localhost:22/"),
        ("http://h/x", "http://169.254.169.254/latest"),
        ("http://h/x", "http://0.0.0.0/"),
        ("http://h/x", "http://[::ffff:127.0.0.1]/"),
        ("http://h/x", "//user@h2/"),
        ("http://h/x", "http://[::1/"),
        ("http://h/x", "/a\nb"),
    ],
)
def test_a_redirect_may_not_lead_there(before: str, location: str) -> None:
    with pytest.raises(Failure) as caught:
        redirected(check_url(before), location)
    assert caught.value.code == "image-redirect"


@pytest.mark.parametrize(
    ("first", "peer", "allowed"),
    [
        ("192.0.43.8", "192.0.43.9", True),
        ("192.0.43.8", "2001:4860:4860::8888", True),
        ("10.0.0.1", "10.0.0.2", True),
        ("10.0.0.1", "192.0.43.8", True),
        ("127.0.0.1", "10.0.0.2", True),
        ("192.0.43.8", "10.0.0.1", False),
        ("192.0.43.8", "100.64.0.1", False),
        ("192.0.43.8", "fd00::1", False),
        ("10.0.0.1", "127.0.0.1", False),
        ("10.0.0.1", "::1", False),
        ("10.0.0.1", "::ffff:127.0.0.1", False),
        ("10.0.0.1", "169.254.169.254", False),
        ("10.0.0.1", "fe80::1%eth0", False),
        ("192.0.43.8", "::ffff:10.0.0.1", False),
        ("10.0.0.1", "a name", False),
    ],
)
def test_whom_a_redirect_reached_counts_not_its_name(first: str, peer: str, allowed: bool) -> None:
    if allowed:
        fetch_http.check_peer(first, peer)
    else:
        with pytest.raises(Failure) as caught:
            fetch_http.check_peer(first, peer)
        assert caught.value.code == "image-redirect"


@pytest.mark.parametrize("location", ["/y", "http://h2/y", "https://h/y", "y?z=1"])
def test_a_redirect_may_lead_to_another_server(location: str) -> None:
    assert redirected(check_url("http://h/x"), location).scheme in ("http", "https")


@given(st.binary())
@pytest.mark.parametrize("returncode", [1, fetch.EXIT_TOLD, -9])
def test_whatever_the_child_says_becomes_one_of_our_errors(returncode: int, told: bytes) -> None:
    error = fetch._translated("http://h/", returncode, told)
    assert isinstance(error, LrmsVmError) and error.code and str(error).isprintable()


@pytest.mark.parametrize("told", [b'{"code":"root","message":"x"}', b'{"code":["x"],"message":"x"}', b"[]", b"3"])
def test_a_child_cannot_make_up_codes(told: bytes) -> None:
    assert fetch._translated("http://h/", fetch.EXIT_TOLD, told).code == "fetch-failed"


def test_the_two_halves_agree() -> None:
    assert fetch.EXIT_TOLD == fetch_http.EXIT_TOLD
    assert fetch.CHILD.is_file()
