"""The trust decision for the cache: binds the pure core to this site's policy, anchors and the moment."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from lrms_vm.trust import forms, verify
from lrms_vm.trust.policy import Policy
from lrms_vm.trust.verify import Claim, Endorsement, SignatureFiles, TrustAnchors


@dataclass(frozen=True)
class Decision:
    """What stays the same for every job of a node: whom the site trusts."""

    policy: Policy
    anchors: TrustAnchors

    @property
    def max_image_bytes(self) -> int:
        return self.policy.max_image_bytes

    def for_job(self, *, user: str | None, groups: Sequence[str] = (), partition: str = "") -> JobDecision:
        """The decision for one job, at this moment."""
        return JobDecision(self, user, tuple(groups), partition, datetime.now(UTC))


@dataclass
class JobDecision:
    """Implements cache.Decide for one job; `spent_ms` is the time the trust core took."""

    _site: Decision
    _user: str | None
    _groups: tuple[str, ...]
    _partition: str
    _at: datetime
    spent_ms: float = field(default=0.0)
    limits: Claim | None = field(default=None)  # once claimed: also what the runner's rule lets the guest have

    def claim(self, files: SignatureFiles, name: str) -> Claim:
        start = time.monotonic()
        try:
            self.limits = verify.check_claim(
                files,
                anchors=self._site.anchors,
                policy=self._site.policy,
                image_name=name,
                user=self._user,
                groups=self._groups,
                partition=self._partition,
                at=self._at,
            )
            return self.limits
        finally:
            self.spent_ms += (time.monotonic() - start) * 1e3

    def bytes(self, claim: Claim, digests: Mapping[str, bytes], size_bytes: int) -> Endorsement:
        start = time.monotonic()
        try:
            return verify.check_bytes(claim, digests=digests, size_bytes=size_bytes)
        finally:
            self.spent_ms += (time.monotonic() - start) * 1e3

    def form(self, claim: Claim, format: str, sha256: str, *, size_bytes: int, raw_size_bytes: int) -> None:
        forms.check_form(claim, format, sha256, size_bytes=size_bytes, raw_size_bytes=raw_size_bytes)
