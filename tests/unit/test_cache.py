from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrms_vm import cache, lease, locks, store
from lrms_vm.errors import ConfigError, NodeError, RequestError, SiteError
from lrms_vm.image import ImageEntry
from lrms_vm.paths import Places
from tests.cache_fakes import IMAGE, URL, FakeDecide, FakeFetch, acquire, leftovers, places_at, served, sign

SHA256 = hashlib.sha256(IMAGE).hexdigest()


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return places_at(tmp_path)


def code_of(places: Places, fetch: FakeFetch, **more: object) -> str:
    with pytest.raises((RequestError, SiteError, NodeError)) as caught:
        acquire(places, fetch, **more)  # type: ignore[arg-type]
    return caught.value.code


def age_copies(places: Places) -> None:
    for path in places.signatures.glob("*.json"):
        os.utime(path, (1, 1))


def test_a_cold_image_is_fetched_once_and_is_what_was_served(places: Places) -> None:
    fetch = served()
    image = acquire(places, fetch)
    assert Path(image.path).read_bytes() == IMAGE
    assert (image.sha256, image.size_bytes, image.signer, image.rule) == (SHA256, len(IMAGE), "CN=Alice", "all")
    assert image.path == str(places.store / "sha256" / SHA256[:2] / SHA256 / "image")
    assert Path(image.path).stat().st_mode & 0o777 == 0o444
    assert acquire(places, fetch, lease="local-2.n") == image
    assert fetch.log.count(URL) == 1
    assert leftovers(places) == []


def test_the_hypervisors_user_gets_to_an_image_whatever_the_umask(places: Places) -> None:
    """pbs_mom's prologue has umask 077; what an earlier one made too narrow is widened."""
    before = os.umask(0o077)
    try:
        path = Path(acquire(places, served()).path)
        assert os.stat(path).st_mode & 0o444 == 0o444
        for above in (path.parent, path.parent.parent, places.store / "sha256", places.store, places.state_dir):
            assert os.stat(above).st_mode & 0o777 == 0o755, above
        places.store.chmod(0o700)
        acquire(places, served())
        assert os.stat(places.store).st_mode & 0o777 == 0o755
    finally:
        os.umask(before)


def test_the_claim_is_decided_before_any_byte_of_the_image(places: Places) -> None:
    fetch = served()
    assert code_of(places, fetch, decide=FakeDecide(refuse=RequestError("no", code="not-a-builder"))) == "not-a-builder"
    assert URL not in fetch.log


def test_trust_is_decided_again_for_a_warm_image(places: Places) -> None:
    fetch = served()
    acquire(places, fetch)
    refusal = FakeDecide(refuse=SiteError("the CRL is old", code="crl-expired"))
    assert code_of(places, fetch, decide=refusal, lease="local-2.n") == "crl-expired"
    assert [held.key for held in lease.leases(places)] == ["local-1.n"]


def test_bytes_that_were_not_signed_are_refused_and_removed(places: Places) -> None:
    fetch = served()
    fetch.served[URL] = IMAGE[:-1] + b"X"
    assert code_of(places, fetch) == "bytes-differ"
    assert code_of(places, fetch, decide=FakeDecide(blind=True)) == "bytes-differ"
    assert leftovers(places) == [] and list(store.stored(places)) == []
    assert list(lease.leases(places)) == []


@pytest.mark.parametrize(("size", "code"), [(0, "image-empty"), (101, "image-too-large")])
def test_an_image_is_bounded(places: Places, size: int, code: str) -> None:
    assert code_of(places, served(bytes(size)), max_image_bytes=100) == code
    assert leftovers(places) == []


def test_a_fetcher_that_does_not_keep_to_the_bound_is_stopped(places: Places) -> None:
    class Endless(FakeFetch):
        def fetch(self, url: str, *, max_bytes: int, deadline: float) -> Iterator[bytes]:
            if url != URL:
                yield from super().fetch(url, max_bytes=max_bytes, deadline=deadline)
            while url == URL:
                yield b"x" * 1000

    assert code_of(places, Endless({f"{URL}.p7s": sign(IMAGE)}), max_image_bytes=50_000) == "image-too-large"
    assert leftovers(places) == []


def test_qcow2_is_refused(places: Places) -> None:
    assert code_of(places, served(b"QFI\xfb" + bytes(1000))) == "image-not-raw"


def test_zeros_become_holes(places: Places) -> None:
    image = acquire(places, served(b"a" * 4096 + bytes(8 << 20) + b"b"))
    assert Path(image.path).stat().st_blocks * 512 < 1 << 20
    assert Path(image.path).stat().st_size == image.size_bytes == 4097 + (8 << 20)


@pytest.mark.parametrize("algorithm", ["sha384", "sha512", "sha1"])
def test_an_image_signed_over_another_digest_is_found_again(places: Places, algorithm: str) -> None:
    fetch = served(algorithm=algorithm)
    assert acquire(places, fetch).sha256 == acquire(places, fetch).sha256 == SHA256
    assert fetch.log.count(URL) == 1


def test_an_image_whose_signature_hides_the_digest_is_found_again(places: Places) -> None:
    fetch = served(algorithm="sha512")
    blind = FakeDecide(blind=True)
    assert acquire(places, fetch, decide=blind).sha256 == acquire(places, fetch, decide=blind).sha256 == SHA256
    assert fetch.log.count(URL) == 1


def test_the_same_bytes_from_two_places_are_stored_once(places: Places) -> None:
    acquire(places, served())
    other = ImageEntry(name="copy", url="http://elsewhere/x.img")
    fetch = served(algorithm="sha512", url=other.url)
    assert acquire(places, fetch, entry=other, lease="local-2.n").sha256 == SHA256
    acquire(places, fetch, entry=other, lease="local-3.n")
    assert fetch.log.count(other.url) == 1
    assert list(store.stored(places)) == [SHA256]


def test_a_signature_over_a_digest_not_yet_known_is_checked_on_the_stored_bytes(places: Places) -> None:
    fetch = served()
    acquire(places, fetch)
    (places.signatures / f"sha512-{hashlib.sha512(IMAGE).hexdigest()}.ref").write_text(SHA256)
    fetch.served[f"{URL}.p7s"] = sign(IMAGE, "sha512")
    age_copies(places)
    assert acquire(places, fetch).sha256 == SHA256
    assert fetch.log.count(URL) == 1


def test_a_hint_that_lies_does_not_let_other_bytes_in(places: Places) -> None:
    wrong = acquire(places, served(b"other bytes"))
    fetch = served(algorithm="sha512")
    entry = ImageEntry(name="hep", url="http://elsewhere/y.img")
    fetch.served = {entry.url: IMAGE, f"{entry.url}.p7s": sign(IMAGE, "sha512")}
    (places.signatures / f"sha512-{hashlib.sha512(IMAGE).hexdigest()}.ref").write_text(wrong.sha256)
    with pytest.raises(RequestError):
        acquire(places, fetch, entry=entry)


# --- signature files -------------------------------------------------------------------------------------------------


def test_an_image_without_a_signature_is_refused(places: Places) -> None:
    fetch = FakeFetch({URL: IMAGE})
    assert code_of(places, fetch) == "not-signed"
    assert URL not in fetch.log


def test_a_bare_signature_comes_with_its_certificate(places: Places) -> None:
    fetch = FakeFetch({URL: IMAGE, f"{URL}.sha256": sign(IMAGE), f"{URL}.crt": b"PEM"})
    decide = FakeDecide()
    acquire(places, fetch, decide=decide)
    files = decide.seen[0]
    assert (files.kind, files.digest_algorithm, files.certificate) == ("dgst", "sha256", b"PEM")


@pytest.mark.parametrize("certificate", ["hep.crt", "hep.img.crt"])
def test_the_signature_may_have_the_images_name_without_its_end(places: Places, certificate: str) -> None:
    """As in the talk of 2007: vm_image.sha1 and vm_image.crt beside vm_image.img."""
    base = URL.rpartition("/")[0]
    fetch = FakeFetch({URL: IMAGE, f"{base}/hep.sha256": sign(IMAGE), f"{base}/{certificate}": b"PEM"})
    decide = FakeDecide()
    acquire(places, fetch, decide=decide)
    assert (decide.seen[0].kind, decide.seen[0].certificate) == ("dgst", b"PEM")


def test_a_signature_with_the_whole_name_comes_first(places: Places) -> None:
    fetch = FakeFetch({URL: IMAGE, f"{URL}.sha256": sign(IMAGE), URL.replace(".img", ".sha256"): b"other"})
    assert acquire(places, fetch).sha256 == SHA256


@pytest.mark.parametrize("url", ["http://x/.img", "http://x/image", "http://x/a.qcow2"])
def test_a_name_with_nothing_to_take_away_is_asked_for_as_it_is(places: Places, url: str) -> None:
    fetch = FakeFetch({url: IMAGE})
    assert code_of(places, fetch, entry=ImageEntry("a", url)) == "not-signed"
    assert fetch.log == [f"{url}.{end}" for end in ("p7s", "sha256", "sha384", "sha512", "sha1")]


def test_the_site_may_name_the_signature_and_the_certificate(places: Places) -> None:
    entry = ImageEntry(name="a", url=URL, signature_url="http://s/a.sha512", certificate_url="http://s/c.pem")
    fetch = FakeFetch({URL: IMAGE, "http://s/a.sha512": sign(IMAGE, "sha512"), "http://s/c.pem": b"PEM"})
    decide = FakeDecide()
    acquire(places, fetch, entry=entry, decide=decide)
    assert (decide.seen[0].digest_algorithm, decide.seen[0].certificate) == ("sha512", b"PEM")


def test_a_signature_of_unknown_kind_is_the_sites_fault(places: Places) -> None:
    with pytest.raises(ConfigError):
        acquire(places, served(), entry=ImageEntry(name="a", url=URL, signature_url="http://s/a.asc"))


def test_a_large_signature_file_is_refused(places: Places) -> None:
    assert code_of(places, FakeFetch({f"{URL}.p7s": bytes(70_000)})) == "signature-too-large"


DOWN = SiteError("down", code="image-server-down")


def test_a_warm_image_works_with_the_server_down(places: Places) -> None:
    acquire(places, served())
    age_copies(places)
    fetch = FakeFetch({f"{URL}.p7s": DOWN})
    assert acquire(places, fetch).sha256 == acquire(places, fetch).sha256 == SHA256
    assert len(fetch.log) == 1, "the second job need not wait for it as well"


def test_a_cold_image_with_the_server_down_is_the_sites_fault(places: Places) -> None:
    assert code_of(places, FakeFetch({f"{URL}.p7s": DOWN})) == "image-server-down"


def test_a_withdrawn_signature_is_not_replaced_by_the_copy(places: Places) -> None:
    acquire(places, served())
    age_copies(places)
    assert code_of(places, FakeFetch({})) == "not-signed"


def test_a_refusal_never_rests_on_an_old_copy(places: Places) -> None:
    fetch = served()
    acquire(places, fetch)
    fresh = b"new image"
    fetch.served = {URL: fresh, f"{URL}.p7s": sign(fresh)}

    class Revoked(FakeDecide):
        def claim(self, files: object, name: str) -> object:
            if files.signature == sign(IMAGE):  # type: ignore[attr-defined]
                raise RequestError("revoked", code="revoked")
            return super().claim(files, name)

    assert acquire(places, fetch, decide=Revoked()).sha256 == hashlib.sha256(fresh).hexdigest()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"kind": "cms"}', b"\xff" * 100, b"[" * 60_000])
def test_a_damaged_copy_is_not_there(places: Places, text: bytes) -> None:
    fetch = served()
    acquire(places, fetch)
    for path in places.signatures.glob("*.json"):
        path.write_bytes(text)
    assert acquire(places, fetch).sha256 == SHA256


# --- what lies in the cache is not believed --------------------------------------------------------------------------


def tamper(path: Path, offset: int = 0) -> None:
    """As root would by mistake, or a broken disk: the size and the modification time stay."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x01")
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_stored_image_that_was_changed_is_put_aside_and_fetched_again(places: Places) -> None:
    fetch = served()
    image = acquire(places, fetch)
    tamper(Path(image.path), 5000)
    assert Path(acquire(places, fetch).path).read_bytes() == IMAGE
    assert fetch.log.count(URL) == 2
    assert [p.name for p in places.quarantine.iterdir()] == [SHA256]


def test_a_stored_image_that_was_only_touched_proves_itself_by_its_bytes(places: Places) -> None:
    fetch = served()
    image = acquire(places, fetch)
    os.utime(image.path)
    assert store.healthy(places, SHA256) is None
    assert acquire(places, fetch) == image
    assert store.healthy(places, SHA256) is not None
    assert fetch.log.count(URL) == 1


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def make_writable(path: Path) -> None:
    path.chmod(0o666)


@pytest.mark.parametrize("change", [replace_by_link, make_writable, Path.unlink])
def test_a_stored_image_that_is_no_plain_read_only_file_is_fetched_again(places: Places, change: object) -> None:
    fetch = served()
    image = acquire(places, fetch)
    change(Path(image.path))  # type: ignore[operator]
    assert Path(acquire(places, fetch).path).read_bytes() == IMAGE
    assert fetch.log.count(URL) == 2


def test_a_stored_image_that_somebody_is_writing_to_is_not_served(places: Places) -> None:
    fetch = served()
    image = acquire(places, fetch)
    path = Path(image.path)
    path.chmod(0o644)
    with path.open("r+b"):
        path.chmod(0o444)
        acquire(places, fetch)
    assert fetch.log.count(URL) == 2


@pytest.mark.parametrize(
    "text", [b"", b"{", b"null", b'{"version": 1}', b"[" * 10_000, b'{"version":1,"stamp":[1e999,0,0,0,0]}']
)
def test_an_entry_with_damaged_meta_proves_itself_by_its_bytes(places: Places, text: bytes) -> None:
    fetch = served()
    image = acquire(places, fetch)
    Path(image.path).with_name("meta.json").write_bytes(text)
    assert acquire(places, fetch) == image
    assert fetch.log.count(URL) == 1


def test_meta_of_another_image_is_not_believed(places: Places) -> None:
    fetch = served()
    meta = Path(acquire(places, fetch).path).with_name("meta.json")
    words = json.loads(meta.read_text())
    words["digests"]["sha256"] = "0" * 64
    meta.write_text(json.dumps(words))
    assert store.healthy(places, SHA256) is None
    assert acquire(places, fetch).sha256 == SHA256


@pytest.mark.parametrize("name", ["store", "ingest", "locks", "leases", "signatures"])
def test_a_symbolic_link_in_place_of_one_of_our_directories_is_refused(places: Places, name: str) -> None:
    acquire(places, served())
    where = places.state_dir / name
    where.rename(places.state_dir / "moved")
    where.symlink_to("moved")
    assert code_of(places, served()) == "state-unsafe"


def test_a_directory_others_can_write_is_refused(places: Places) -> None:
    acquire(places, served())
    places.store.chmod(0o777)
    assert code_of(places, served()) == "state-unsafe"


def test_a_full_disk_is_the_nodes_fault(places: Places) -> None:
    def full(_: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert code_of(places, served(), step=lambda name: full(name) if name == "written" else None) == "disk-full"
    assert leftovers(places) == []


def test_a_lock_that_is_not_given_up_is_named(places: Places) -> None:
    store.prepare(places)
    lock = places.cache_locks / f"sha256-{SHA256}.lock"
    with locks.locked(lock, deadline=0), pytest.raises(SiteError, match=str(os.getpid())) as caught:
        acquire(places, served(), deadline=time.monotonic() + 0.1)
    assert caught.value.code == "cache-busy"
    assert lock.exists()


# --- leases, cleaning, making room -----------------------------------------------------------------------------------


def test_release_is_idempotent(places: Places) -> None:
    acquire(places, served())
    cache.release(places, "local-1.n")
    cache.release(places, "local-1.n")
    assert list(lease.leases(places)) == []


@pytest.mark.parametrize("key", ["", "../x", "a/b", ".hidden", "x" * 300, "a\n"])
def test_a_lease_name_cannot_lead_elsewhere(places: Places, key: str) -> None:
    assert code_of(places, served(), lease=key) == "lease-name"


def test_the_least_recently_used_image_goes_first_and_never_a_held_one(places: Places) -> None:
    made = []
    for number in range(3):
        entry = ImageEntry(name=f"i{number}", url=f"http://x/{number}.img")
        body = bytes([number + 1]) * 100_000
        made.append(acquire(places, served(body, url=entry.url), entry=entry, lease=f"local-{number}.n"))
        os.utime(Path(made[-1].path).with_name("meta.json"), (number + 1, number + 1))
    cache.release(places, "local-1.n")
    cache.release(places, "local-2.n")
    assert cache.evict(places, 250_000) == [made[1].sha256]
    assert cache.evict(places, 0) == [made[2].sha256]
    assert [(e.sha256, e.held_by, e.sound) for e in cache.entries(places)] == [(made[0].sha256, ("local-0.n",), True)]
    assert leftovers(places) == []


def test_an_eviction_cut_short_leaves_the_image_usable(places: Places) -> None:
    fetch = served()
    image = acquire(places, fetch)
    meta = Path(image.path).with_name("meta.json")
    meta.rename(meta.with_name(store.HIDDEN))
    assert acquire(places, fetch) == image
    assert fetch.log.count(URL) == 1


def test_clean_removes_what_crashes_left_and_nothing_else(places: Places) -> None:
    image = acquire(places, served())
    (places.ingest / "0011.part").mkdir()
    (places.ingest / "0011.part" / "image").write_bytes(b"half")
    path = places.leases / "local-9.n"
    path.write_text(json.dumps({"sha256": SHA256, "boot_id": "another boot", "pid": 1, "started": "1"}))
    assert sorted(cache.clean(places)) == ["lease local-9.n", "partial 0011.part"]
    assert cache.clean(places) == []
    assert store.healthy(places, image.sha256) is not None
    assert [held.key for held in lease.leases(places)] == ["local-1.n"]


def test_a_lease_lives_as_long_as_its_job_has_a_run_directory(places: Places) -> None:
    store.prepare(places)
    for key in ("gone-1.n", "alive-1.n", "known-1.n"):
        words = {"sha256": SHA256, "boot_id": lease.boot_id(), "pid": 1 << 30, "started": "5"}
        (places.leases / key).write_text(json.dumps(words))
    places.job("alive-1.n").run.mkdir(parents=True)
    assert cache.clean(places, live={"known-1.n"}) == ["lease gone-1.n"]


def test_a_part_being_received_is_not_cleaned_away(places: Places) -> None:
    seen: list[list[str]] = []
    acquire(places, served(), step=lambda name: seen.append(cache.clean(places)) if name == "written" else None)
    assert seen == [[]]


def test_verify_reads_everything_again(places: Places) -> None:
    image = acquire(places, served())
    assert cache.verify(places, SHA256)
    tamper(Path(image.path))
    assert not cache.verify(places, SHA256)
    assert cache.entries(places) == []


def test_progress_tells_the_bytes_so_far(places: Places) -> None:
    told: list[int] = []
    acquire(places, served(), progress=told.append)
    assert told == sorted(told) and told[-1] == len(IMAGE)


def test_an_image_on_this_node_is_copied_in_with_its_holes(places: Places, tmp_path: Path) -> None:
    from lrms_vm.fetch import Fetch

    path = tmp_path / "local.img"
    with path.open("wb") as file:
        file.write(b"boot")
        file.truncate(64 << 20)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    Path(f"{path}.p7s").write_text(f"sha256 {digest}")
    entry = ImageEntry(name="local", url=str(path))
    image = acquire(places, Fetch(), entry=entry)
    assert image.sha256 == digest and image.path != str(path)
    assert Path(image.path).stat().st_blocks * 512 < 1 << 20
    path.unlink()
    assert acquire(places, Fetch(), entry=entry, lease="local-2.n") == image
