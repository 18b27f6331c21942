"""Where the signature of an image is looked for, and where else when a server does not answer."""

from __future__ import annotations

import time

import pytest

from lrms_vm import sidefiles
from lrms_vm.errors import RequestError, SiteError
from lrms_vm.image import ImageEntry
from tests.cache_fakes import IMAGE, FakeFetch, sign

FIRST, SECOND = "http://one.example.org/hep.img", "http://two.example.org/atlas/hep.img"
ENTRY = ImageEntry(name="hep", url=FIRST, mirrors=(SECOND,))
DEAD = SiteError(f"{FIRST}: no answer", code="server-down")


def found(fetch: FakeFetch, entry: ImageEntry = ENTRY) -> tuple[str, bytes, bytes | None]:
    files = sidefiles.fetch_files(entry, fetch=fetch, deadline=time.monotonic() + 30)
    return files.kind, files.signature, files.certificate


def dead(*suffixes: str) -> dict[str, bytes | SiteError]:
    return {f"{FIRST}.{suffix}": DEAD for suffix in ("p7s", *suffixes)}


def test_the_first_place_that_has_it_is_the_last_one_asked() -> None:
    fetch = FakeFetch({f"{FIRST}.p7s": b"one", f"{SECOND}.p7s": b"two"})
    assert found(fetch) == ("cms", b"one", None)
    assert fetch.log == [f"{FIRST}.p7s"]


def test_a_mirror_has_the_signature_when_the_first_server_does_not_answer() -> None:
    fetch = FakeFetch({**dead(), f"{SECOND}.p7s": sign(IMAGE)})
    assert found(fetch) == ("cms", sign(IMAGE), None)


def test_a_mirror_has_the_signature_when_the_first_place_has_none() -> None:
    assert found(FakeFetch({f"{SECOND}.p7s": b"two"})) == ("cms", b"two", None)


def test_a_bare_signature_and_its_certificate_come_from_the_same_place() -> None:
    fetch = FakeFetch({**dead(), f"{FIRST}.crt": b"other", f"{SECOND}.sha256": b"two", f"{SECOND}.crt": b"certificate"})
    assert found(fetch) == ("dgst", b"two", b"certificate")


def test_not_signed_is_said_only_where_every_place_has_answered() -> None:
    with pytest.raises(RequestError) as unsigned:
        found(FakeFetch({}))
    assert unsigned.value.code == "not-signed"
    with pytest.raises(SiteError) as silent:
        found(FakeFetch(dead()))
    assert silent.value is DEAD


def test_each_place_has_its_part_of_the_time() -> None:
    deadlines = []

    class Slow:
        def fetch(self, url: str, *, max_bytes: int, deadline: float) -> list[bytes]:
            deadlines.append(deadline - time.monotonic())
            raise DEAD

    with pytest.raises(SiteError):
        sidefiles.fetch_files(ENTRY, fetch=Slow(), deadline=time.monotonic() + 30)
    assert 14 < deadlines[0] < 15.1
    assert 29 < deadlines[-1] < 30.1


def test_a_signature_named_by_the_site_is_looked_for_there_only() -> None:
    entry = ImageEntry(name="hep", url=FIRST, mirrors=(SECOND,), signature_url="http://keys.example.org/hep.p7s")
    fetch = FakeFetch({f"{FIRST}.p7s": b"one", f"{SECOND}.p7s": b"two"})
    with pytest.raises(RequestError) as unsigned:
        found(fetch, entry)
    assert unsigned.value.code == "not-signed"
    assert fetch.log == ["http://keys.example.org/hep.p7s"]
