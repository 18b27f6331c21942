"""The trust decision for the cache: binds the pure core to this site's policy, anchors and the moment."""

from __future__ import annotations

import builtins
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from lrms_vm.image import Listed
from lrms_vm.trust import forms, verify
from lrms_vm.trust.policy import Policy
from lrms_vm.trust.verify import Claim, Endorsement, SignatureFiles, TrustAnchors
from lrms_vm.values import dataclass

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from lrms_vm.trust.verify_list import SignedList


class Anchors(Protocol):
    """The site's CAs: a `TrustAnchors`, or an anchors.CaDirectory that reads them when it is asked."""

    def above(self, certificates: Iterable[Certificate]) -> TrustAnchors:
        """What is needed to decide about a signer with these certificates."""
        ...

    def everything(self) -> TrustAnchors: ...


@dataclass(frozen=True)
class Decision:
    """What stays the same for every job of a node: whom the site trusts."""

    policy: Policy
    anchors: Anchors

    @property
    def max_image_bytes(self) -> int:
        return self.policy.max_image_bytes

    def for_job(
        self, *, user: str | None, groups: Sequence[str] = (), partition: str = "", account: str = ""
    ) -> JobDecision:
        """The decision for one job, at this moment."""
        return JobDecision(self, user, tuple(groups), partition, datetime.now(UTC), account)


@dataclass
class JobDecision:
    """Implements cache.Decide for one job; `spent_ms` is the time the trust core took."""

    _site: Decision
    _user: str | None
    _groups: tuple[str, ...]
    _partition: str
    _at: datetime
    _account: str = ""
    spent_ms: float = field(default=0.0)
    limits: Claim | None = field(default=None)  # once claimed: also what the runner's rule lets the guest have
    _listed: dict[int, tuple[Listed, Claim]] = field(default_factory=dict)  # asked before, by id; all at one moment

    @property
    def at(self) -> datetime:
        """The moment that this job's decision is about."""
        return self._at

    @property
    def bare_max_age_s(self) -> int:
        """How long a bare signature counts once it was seen."""
        return self._site.policy.s0_max_age_s

    def claim(self, files: SignatureFiles, name: str) -> Claim:
        start = time.monotonic()
        try:
            self.limits = verify.check_claim(
                files,
                anchors=self._site.anchors.above(verify.certificates_of(files)),
                policy=self._site.policy,
                image_name=name,
                user=self._user,
                groups=self._groups,
                partition=self._partition,
                account=self._account,
                at=self._at,
            )
            return self.limits
        finally:
            self.spent_ms += (time.monotonic() - start) * 1e3

    def listed(self, listed: Listed) -> Claim:
        """What a signed list claims of one of its images, for this job."""
        start = time.monotonic()
        try:
            known = self._listed.get(id(listed))
            self.limits = known[1] if known else self._asked(listed)
            self._listed[id(listed)] = (listed, self.limits)
            return self.limits
        finally:
            self.spent_ms += (time.monotonic() - start) * 1e3

    def _asked(self, listed: Listed) -> Claim:
        from lrms_vm.trust import verify_list

        return verify_list.claim_listed(
            listed.signed,
            listed.image,
            anchors=self._site.anchors.above((listed.signed.signer, *listed.signed.others)),
            policy=self._site.policy,
            user=self._user,
            groups=self._groups,
            partition=self._partition,
            account=self._account,
            at=self._at,
        )

    def open_list(self, signed: builtins.bytes) -> SignedList:
        """A list as it came from its server, believed by this site at this moment."""
        from lrms_vm.trust import verify_list

        return verify_list.open_list(
            signed, anchors=self._site.anchors.everything(), policy=self._site.policy, at=self._at
        )

    def bytes(self, claim: Claim, digests: Mapping[str, builtins.bytes], size_bytes: int) -> Endorsement:
        start = time.monotonic()
        try:
            return verify.check_bytes(claim, digests=digests, size_bytes=size_bytes)
        finally:
            self.spent_ms += (time.monotonic() - start) * 1e3

    def form(self, claim: Claim, format: str, sha256: str, *, size_bytes: int, raw_size_bytes: int) -> None:
        forms.check_form(claim, format, sha256, size_bytes=size_bytes, raw_size_bytes=raw_size_bytes)
