"""A site's trust policy as values: who may build, who may run, what a tier gives, what is blocked. See docs/trust.md.

Read from trust.toml by trust/policy.py; asked by trust/rules.py.
"""

from __future__ import annotations

from datetime import date
from fnmatch import fnmatchcase

from lrms_vm.trust import dn
from lrms_vm.trust.digests import STRONG
from lrms_vm.trust.voms import Mapped
from lrms_vm.values import dataclass

DAY_S = 86400


@dataclass(frozen=True)
class Builder:
    """One who may sign images whose names match."""

    name: str
    issuer: dn.Dn
    subject: dn.Dn
    images: tuple[str, ...]
    signatures: tuple[str, ...] = ("list", "cms")
    spki_sha256: tuple[str, ...] = ()  # hex; empty: any key that the CA certifies
    vo: tuple[str, ...] = ()  # of a signed list's images: these VOs' only. Other signatures name none
    formats: tuple[str, ...] = ("raw",)
    allow_sha1_until: date | None = None  # the last day, UTC
    audit: bool = False  # true: says what it would do, and lets nothing pass
    where: str = ""  # file:line

    def may_name(self, image_name: str) -> bool:
        return matches(self.images, image_name)


@dataclass(frozen=True)
class Tier:
    """What an image may have in its guest. What a tier does not say, it does not give."""

    name: str
    network: str | None = "none"  # the most a job may have; None: whatever the site offers
    max_memory_mib: int | None = None  # None: the allocation
    shares: str = "work_dir"  # "none", "work_dir" or "all" that the site allows
    root: bool = False
    where: str = ""


@dataclass(frozen=True)
class Runner:
    """Those who may run images whose names match. Every key that is there must hold."""

    name: str
    images: tuple[str, ...]
    users: tuple[str, ...] = ()  # "*": everybody
    groups: tuple[str, ...] = ()
    accounts: tuple[str, ...] = ()
    fqan: tuple[str, ...] = ()  # by the site's own mapping: `Policy.voms`
    partitions: tuple[str, ...] = ()  # empty: every one
    builders: tuple[str, ...] = ()  # names of builder rules; empty: every one
    tier: str | None = None  # a tier's name; the next four are then its
    max_memory_mib: int | None = None
    network: str | None = None  # the most a job may have; None: whatever the site offers
    shares: str = "all"
    root: bool = False
    where: str = ""


@dataclass(frozen=True)
class Block:
    """What is refused whatever else the policy says."""

    reason: str
    spki_sha256: str | None = None
    cert_sha256: str | None = None
    dn: dn.Dn | None = None  # a subject
    digest: str | None = None  # sha256 of an image, hex
    list: str | None = None  # identifier of a signed image list, with below_version
    below_version: str | None = None
    until: date | None = None  # the last day, UTC; None: for ever
    where: str = ""

    def holds(self, on: date) -> bool:
        return self.until is None or on <= self.until


@dataclass(frozen=True)
class Policy:
    """The whole file. What it does not say has the strict value."""

    builders: tuple[Builder, ...] = ()
    runners: tuple[Runner, ...] = ()
    blocks: tuple[Block, ...] = ()
    tiers: tuple[Tier, ...] = ()
    ca_dir: str = "/etc/grid-security/certificates"
    crl: str = "require"  # require | if-present
    crl_grace_s: int = 0  # how long a CRL counts after its nextUpdate
    namespaces: str = "require"  # require | if-present | ignore
    min_rsa_bits: int = 2048
    digests: tuple[str, ...] = STRONG
    max_list_age_s: int = 35 * DAY_S
    s0_max_age_s: int = 30 * DAY_S  # how long a bare signature counts after it was first seen here
    max_image_bytes: int = 64 << 30
    max_virtual_bytes: int = 256 << 30
    max_ratio: int = 100
    formats: tuple[str, ...] = ("raw",)
    voms_mapfile: str | None = None  # FQANs to unix groups, as LCMAPS' groupmapfile
    voms_gridmapfile: str | None = None  # FQANs to accounts, as LCMAPS' grid-mapfile
    voms: tuple[Mapped, ...] = ()  # what is in them: not of this file, added by who reads them
    contact: str = "your site's administrators"
    source: str = "built-in defaults"
    defaults_where: str = ""  # file:line of [defaults]


def matches(patterns: tuple[str, ...], name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
