"""What the CA directory lacks for the builders of a policy: certificates, CRLs, name spaces. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from cryptography import x509 as certificates

from lrms_vm.trust import dn, x509
from lrms_vm.trust.name_hash import name_hash
from lrms_vm.trust.policy_lint import ERROR, NOTE, WARNING, Finding
from lrms_vm.trust.policy_values import Builder, Policy

SOON = timedelta(days=30)


def lint_anchors(policy: Policy, anchors: x509.TrustAnchors, *, at: datetime) -> list[Finding]:
    """In the order of the builder rules; then what else has run out."""
    cas = {dn.of(one.subject): one for one in x509.readable(anchors.certificates)}
    ends: dict[str, datetime] = {}
    for issuer, end in x509.crl_expiries(anchors):
        ends[issuer] = max(end, ends.get(issuer, end))
    grace = timedelta(seconds=policy.crl_grace_s)
    found: list[Finding] = []
    asked: set[str] = set()
    for rule in policy.builders:
        ca = cas.get(rule.issuer)
        if ca is None:
            found.append(
                Finding(
                    ERROR,
                    "ca-missing",
                    rule.where,
                    f"builder {rule.name!r}: {anchors.source} has no CA of this name; compare with "
                    "openssl x509 -noout -subject -nameopt RFC2253 of its file",
                )
            )
        while ca is not None:
            name = dn.show(ca.subject)
            if name in asked:
                break  # said already, for another rule; or two CAs are above each other
            asked.add(name)
            found += _ca(ca, rule, policy, anchors, at)
            found += _crl(name, ends.get(name), rule, policy, at, grace)
            above = cas.get(dn.of(ca.issuer))
            ca = above if above is not None and above.subject != ca.subject else None
    expired = sorted(name for name, end in ends.items() if end + grace <= at and name not in asked)
    if expired:
        some = "; ".join(expired[:3]) + ("; ..." if len(expired) > 3 else "")
        found.append(
            Finding(
                NOTE, "crl-expired", anchors.source, f"{len(expired)} expired CRLs of CAs of no builder here: {some}"
            )
        )
    return found


def _ca(
    ca: certificates.Certificate, rule: Builder, policy: Policy, anchors: x509.TrustAnchors, at: datetime
) -> Iterator[Finding]:
    who = f"builder {rule.name!r}: {dn.show(ca.subject)}"
    if ca.not_valid_after_utc <= at:
        yield Finding(ERROR, "ca-expired", rule.where, f"{who} expired at {ca.not_valid_after_utc:%Y-%m-%d}")
    elif ca.not_valid_after_utc <= at + SOON:
        yield Finding(WARNING, "ca-expires", rule.where, f"{who} expires at {ca.not_valid_after_utc:%Y-%m-%d}")
    stem = name_hash(ca.subject)
    if policy.namespaces == "require" and all(
        one != stem for one, _ in (*anchors.namespaces, *anchors.signing_policies)
    ):
        yield Finding(
            ERROR,
            "namespaces-missing",
            rule.where,
            f"{who} has neither {stem}.namespaces nor {stem}.signing_policy in {anchors.source}",
        )


def _crl(
    name: str, end: datetime | None, rule: Builder, policy: Policy, at: datetime, grace: timedelta
) -> Iterator[Finding]:
    who = f"builder {rule.name!r}: the CRL of {name}"
    if end is None:
        level = ERROR if policy.crl == "require" else WARNING
        yield Finding(level, "crl-missing", rule.where, f"{who} is not there, or cannot be read: run fetch-crl")
    elif end + grace <= at:
        yield Finding(ERROR, "crl-expired", rule.where, f"{who} expired at {end:%Y-%m-%d %H:%M}Z: run fetch-crl")
    elif end <= at:
        yield Finding(WARNING, "crl-expired", rule.where, f"{who} expired at {end:%Y-%m-%d %H:%M}Z; crl_grace holds")
