"""The image cache, the only maker of `VerifiedImage`: bytes are hashed once, when they come in; trust each time.

Warm: signature files, claim, lease, stamp, decision. No lock, nothing read of the image: as fast at 20 GiB as at 1.
Cold: one flock per image, so that a hundred jobs make one download; look again; stream into ingest/ hashing on
arrival; decide; make it read-only; prove that nobody can still write to it; name it. See docs/cache.md.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from lrms_vm import lease as leasing
from lrms_vm import locks, sidefiles, store, trust_state
from lrms_vm.admission import NO_ROOM, Admission, disk_full, vo_of
from lrms_vm.errors import LrmsVmError, NodeError, RequestError
from lrms_vm.fetch import Fetcher
from lrms_vm.image import ImageEntry, Listed, VerifiedImage
from lrms_vm.ingest import Received, part_directory
from lrms_vm.paths import Places
from lrms_vm.upkeep import Entry, clean, entries, evict, rehash, verify
from lrms_vm.values import dataclass

if TYPE_CHECKING:
    from lrms_vm.trust.verify import Claim, Endorsement, SignatureFiles

__all__ = ["Decide", "Entry", "acquire", "clean", "entries", "evict", "release", "verify"]

Digests = Mapping[str, bytes]


class Decide(Protocol):
    """The trust core, bound to this site's policy, this job and this moment."""

    @property
    def at(self) -> datetime:
        """The moment, which knows its zone."""
        ...

    @property
    def bare_max_age_s(self) -> int:
        """How long a bare signature counts once this node has seen it."""
        ...

    def claim(self, files: SignatureFiles, name: str) -> Claim:
        """Everything but the bytes. Raises `RequestError` or `SiteError`."""
        ...

    def listed(self, listed: Listed) -> Claim:
        """Everything but the bytes, of an image of a signed list. Raises `RequestError` or `SiteError`."""
        ...

    def bytes(self, claim: Claim, digests: Digests, size_bytes: int) -> Endorsement:
        """The bytes. Raises `RequestError`."""
        ...

    def form(self, claim: Claim, format: str, sha256: str, *, size_bytes: int, raw_size_bytes: int) -> None:
        """The format of the bytes, and the raw disk (sha256, hex) that they are or were made into. `RequestError`."""
        ...


@dataclass(frozen=True)
class _Job:
    """One acquire: what it wants, and with what."""

    entry: ImageEntry
    places: Places
    lease: str
    decide: Decide
    fetch: Fetcher
    max_image_bytes: int
    deadline: float
    progress: Callable[[int], None] | None
    step: Callable[[str], None]
    admission: Admission


def acquire(
    entry: ImageEntry,
    *,
    places: Places,
    lease: str,
    decide: Decide,
    fetch: Fetcher,
    max_image_bytes: int,
    deadline: float,
    progress: Callable[[int], None] | None = None,
    step: Callable[[str], None] | None = None,
    admission: Admission | None = None,
) -> VerifiedImage:
    """Return the image, in the cache, held for the job `lease` until `release`.

    `deadline` is a `time.monotonic()` value; `progress` is told the bytes received so far; `step` is told each step's
    name as it is reached (the crash tests end the process there); `admission` is for this acquire alone, and sees to it
    that there is room, by default within the default limits. Safe to call twice for one job.
    Raises `RequestError` (not signed, refused, bytes differ), `SiteError` (server), `NodeError` (this disk).
    """
    admission = admission or Admission()
    progress, step = admission.watching(progress), step or (lambda _: None)
    job = _Job(entry, places, lease, decide, fetch, max_image_bytes, deadline, progress, step, admission)
    try:
        store.prepare(places)
        mark = trust_state.check_clock(places, decide.at)
        key, claim = _claimed(job)
        image = _warm(job, key, claim) or _cold(job, key, claim)
        trust_state.keep_clock(places, mark)
        return image
    except OSError as error:
        raise _disk_error(places, error) from error


def release(places: Places, lease: str) -> None:
    """The job no longer needs its image, and used it until now. Safe to call twice. Raises `NodeError`."""
    sha256 = leasing.held_by(places, lease)
    if sha256:
        store.used(places, sha256)
    leasing.release(places, lease)


def _claimed(job: _Job) -> tuple[str, Claim]:
    """By which key the image is looked up, and what is claimed of it: by a signed list, or by what lies beside it."""
    if job.entry.listed is not None:
        claim = job.decide.listed(job.entry.listed)
        return sidefiles.image_key(None, claim), claim
    files, claim = sidefiles.claimed(
        job.entry, places=job.places, decide=job.decide, fetch=job.fetch, deadline=job.deadline
    )
    return sidefiles.image_key(files, claim), claim


def _warm(job: _Job, key: str, claim: Claim) -> VerifiedImage | None:
    """The image as it lies there; None when it does not, or not as it was left. Lease first: it keeps eviction away."""
    found = sidefiles.reference(job.places, key)
    if found is None or not os.path.exists(store.entry_dir(job.places, found.stored) / "meta.json"):
        return None
    leasing.take(job.places, job.lease, found.stored)
    meta = store.healthy(job.places, found.stored)
    vouched = meta.vouched(found.signed) if meta is not None else None
    if meta is None or vouched is None or not _has_digest(vouched, claim):
        leasing.release(job.places, job.lease)
        return None
    try:
        image = _decided(job, claim, vouched, found.stored, meta.size_bytes)
    except LrmsVmError:
        leasing.release(job.places, job.lease)
        raise
    store.used(job.places, found.stored)
    return image


def _cold(job: _Job, key: str, claim: Claim) -> VerifiedImage:
    ready: list[VerifiedImage] = []
    signs = [str(path) for path in sidefiles.led_to(job.places, key)]

    def there() -> bool:
        """While another fetches: what it has published needs no lock to be used."""
        if any(map(os.path.exists, signs)) and (image := _warm(job, key, claim)) is not None:
            ready.append(image)
        return bool(ready)

    with locks.locked(job.places.cache_locks / f"{key}.lock", deadline=job.deadline, instead=there) as held:
        if not held:
            return ready[0]
        job.step("locked")
        found = sidefiles.reference(job.places, key)
        if found is not None:
            _prove(job, found, claim)
        image = _warm(job, key, claim)
        if image is not None:
            return image
        job.admission.admit(job.places, job.entry, at_most_bytes=claim.size_bytes)
        return job.admission.twice(lambda: _received(job, key, claim))


def _received(job: _Job, key: str, claim: Claim) -> VerifiedImage:
    """Fetch, hash, decide, publish. A partial that can be taken up again stays when the mirrors failed."""
    from lrms_vm import download  # a warm image needs none of this
    from lrms_vm.convert import as_raw

    order = download.Order(
        urls=job.entry.urls,
        fetch=job.fetch,
        algorithms=frozenset(_needed(claim)),
        max_bytes=job.max_image_bytes,
        deadline=job.deadline,
        size_bytes=claim.size_bytes,
        tree=claim.tree,
        progress=job.progress,
    )

    def accept(received: Received) -> None:
        _compare(job.entry, claim, received.digests)
        job.decide.bytes(claim, received.digests, received.size_bytes)

    with part_directory(job.places, deadline=job.deadline, key=key if order.can_resume else "") as part:
        job.step("part")
        received = download.get(order, part, accept=accept)
        job.step("written")
        vouched, raw = as_raw(part, received, claim, source=job.entry.url, deadline=job.deadline)
        image = _decided(job, claim, vouched, raw.digests["sha256"].hex(), raw.size_bytes)
        if vouched.sha256 != image.sha256:
            job.step("converted")
        store.refuse_writers(part / "image")
        job.step("synced")
        meta = store.Meta(
            raw.digests, raw.stamp, time.time(), job.entry.url, names=(job.entry.name,), vo=vo_of(job.entry)
        )
        if vouched.sha256 != image.sha256:
            meta = meta.with_origins([vouched])
        if raw.leaves is not None:  # else the first scrub finds them, when nobody waits
            store.write_leaves(part, raw.leaves)
        (part / download.SIGNED_LEAVES).unlink(missing_ok=True)
        store.write_meta(part, meta)
        job.step("described")
        with store.changing(job.places, deadline=job.deadline):
            leasing.take(job.places, job.lease, image.sha256)
            job.step("leased")
            if not _merged(job.places, image.sha256, meta):
                store.publish(job.places, part, image.sha256)
        job.step("published")
    sidefiles.keep_ref(job.places, key, image.sha256, vouched.sha256)
    job.step("referred")
    return image


def _merged(places: Places, sha256: str, new: store.Meta) -> bool:
    """True when the same bytes are there already under another key; adds what this key needs to know of them."""
    meta = store.healthy(places, sha256)
    if meta is None:
        store.quarantine(places, sha256)
        return False
    meta = replace(meta, digests={**meta.digests, **new.digests}).with_origins(new.origins).with_names(new.names)
    store.write_meta(store.entry_dir(places, sha256), meta)
    return True


def _prove(job: _Job, found: sidefiles.Reference, claim: Claim) -> None:
    """Let an entry whose stamp is not as it was left prove itself by its bytes; else put it aside.

    A stamp also changes when a disk gets another device number or the store is restored from a backup.
    """
    sha256 = found.stored
    directory = store.entry_dir(job.places, sha256)
    with store.changing(job.places, deadline=job.deadline):
        store.show(directory)  # an eviction that a crash cut short
    meta = store.healthy(job.places, sha256)
    converted = found.signed != sha256
    if not os.path.lexists(directory) or (meta is not None and (converted or _needed(claim) <= set(meta.digests))):
        return
    known = {"sha256", *(meta.digests if meta else ())}
    proven = rehash(directory, known if converted else known | _needed(claim))
    with store.changing(job.places, deadline=job.deadline):
        if not os.path.lexists(directory):
            return  # evicted meanwhile
        if proven is not None and proven.digests["sha256"].hex() == sha256:
            store.write_meta(directory, proven)
        else:
            store.quarantine(job.places, sha256)


def _needed(claim: Claim) -> set[str]:
    """The digests that the decision compares: the one that was signed, or all that a list gives."""
    return {"sha256", claim.digest_algorithm, *claim.signed_digests}


def _has_digest(vouched: store.Vouched, claim: Claim) -> bool:
    return _needed(claim) <= set(vouched.digests)


def _compare(entry: ImageEntry, claim: Claim, digests: Digests) -> None:
    found = digests[claim.digest_algorithm]
    if claim.signed_digest is not None and found != claim.signed_digest:
        raise RequestError(
            f"{entry.url}: the bytes are not those that were signed: {claim.digest_algorithm} is "
            f"{found.hex()[:16]}..., the signature is over {claim.signed_digest.hex()[:16]}...",
            hint="the image was changed after it was signed, or damaged on its way; sign it again or restore it",
            code="bytes-differ",
        )


def _decided(job: _Job, claim: Claim, vouched: store.Vouched, sha256: str, size_bytes: int) -> VerifiedImage:
    """Decide about the bytes that were signed; what boots is the raw disk `sha256` that they are, or became here."""
    endorsement = job.decide.bytes(claim, vouched.digests, vouched.size_bytes)
    if claim.kind == "dgst":
        digest = vouched.digests[claim.digest_algorithm]
        trust_state.check_bare(
            job.places, claim, vouched.sha256, digest, at=job.decide.at, max_age_s=job.decide.bare_max_age_s
        )
    job.decide.form(claim, vouched.format, sha256, size_bytes=vouched.size_bytes, raw_size_bytes=size_bytes)
    return VerifiedImage(
        name=job.entry.name,
        path=str(store.entry_dir(job.places, sha256) / "image"),
        sha256=sha256,
        size_bytes=size_bytes,
        signer=endorsement.signer,
        issuer=endorsement.issuer,
        rule=endorsement.rule,
    )


def _disk_error(places: Places, error: OSError) -> NodeError:
    if error.errno in NO_ROOM:
        return disk_full(places)
    return NodeError(f"{error.filename or places.state_dir}: {error.strerror}", code="cache-unwritable")
