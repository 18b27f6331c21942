"""Which of the policy's rules counts: blocks win, then the builder's, then the runner's. Pure; used by every form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date

from cryptography import x509 as certificates
from cryptography.hazmat.primitives import hashes

from lrms_vm.errors import RequestError
from lrms_vm.trust import dn, voms, x509
from lrms_vm.trust.policy_values import Builder, Policy, Runner, matches


def check_blocks(chain: Sequence[certificates.Certificate], policy: Policy, today: date) -> None:
    """Raises `RequestError` "signer-blocked" where a certificate of the chain is."""
    for certificate in chain:
        name, spki = dn.of(certificate.subject), x509.spki_sha256(certificate)
        fingerprint = certificate.fingerprint(hashes.SHA256()).hex()
        for block in policy.blocks:
            if block.holds(today) and (
                block.spki_sha256 == spki or block.cert_sha256 == fingerprint or block.dn == name
            ):
                raise RequestError(
                    f"{dn.show(certificate.subject)} is blocked by {block.where}: {block.reason}",
                    hint=f"ask {policy.contact}",
                    code="signer-blocked",
                )


def builder_for(
    signer: certificates.Certificate, kind: str, algorithm: str, image_name: str, policy: Policy, today: date
) -> Builder:
    """The first rule that lets the signer build this; else the refusal of the rule that came nearest.

    A rule with `audit` lets nobody pass, whatever it says: see `audited`.
    """
    who, by = dn.Shown(signer.subject), dn.Shown(signer.issuer)
    subject, issuer, spki = dn.of(signer.subject), dn.of(signer.issuer), x509.spki_sha256(signer)
    mine = [one for one in policy.builders if (one.issuer, one.subject) == (issuer, subject)]
    if not mine:
        same_name = [one for one in policy.builders if one.subject == subject]
        but = f" (the rule at {same_name[0].where} is for that name from another CA)" if same_name else ""
        raise RequestError(
            f"{who}, certified by {by}, is not one of the builders in {policy.source}{but}",
            hint=f"ask {policy.contact}, or use an image by one of their builders",
            code="not-a-builder",
        )
    nearest, refusal = -1, RequestError("")
    for one in mine:
        step, code, what = _builder_refusal(one, kind, algorithm, image_name, spki, policy, today)
        if not code:
            return one
        if step > nearest:
            nearest = step
            refusal = RequestError(
                f"builder rule {one.name!r} ({one.where}) for {who} {what}", hint=f"ask {policy.contact}", code=code
            )
    raise refusal


def audited(
    signer: certificates.Certificate, kind: str, algorithm: str, image_name: str, policy: Policy, today: date
) -> tuple[str, ...]:
    """What the signer's rules with `audit` would do, a sentence each: for the log, before a rule is let loose."""
    subject, issuer, spki = dn.of(signer.subject), dn.of(signer.issuer), x509.spki_sha256(signer)
    found = []
    for one in policy.builders:
        if not one.audit or (one.issuer, one.subject) != (issuer, subject):
            continue
        live = replace(one, audit=False)
        _, code, what = _builder_refusal(live, kind, algorithm, image_name, spki, policy, today)
        would = f"would refuse {image_name!r:.80} ({code}): it {what}" if code else f"would accept {image_name!r:.80}"
        found.append(f"builder rule {one.name!r} ({one.where}) has audit = true and {would}")
    return tuple(found)


def _builder_refusal(
    rule: Builder, kind: str, algorithm: str, image_name: str, spki: str, policy: Policy, today: date
) -> tuple[int, str, str]:
    """(how far it got, code, what); code is empty where the rule lets it pass."""
    if not rule.may_name(image_name):
        return 0, "builder-not-for-image", f"is for images {', '.join(rule.images)}, not {image_name!r:.80}"
    if rule.spki_sha256 and spki not in rule.spki_sha256:
        return 1, "builder-key-not-pinned", f"pins another key than {spki}"
    if kind not in rule.signatures:
        return 2, "signature-form-not-allowed", f"accepts {', '.join(rule.signatures)}, not {kind}"
    if algorithm == "sha1":
        if rule.allow_sha1_until is None:
            return 3, "digest-not-allowed", "does not allow SHA-1 (allow_sha1_until)"
        if today > rule.allow_sha1_until:
            return 3, "digest-not-allowed", f"allowed SHA-1 until {rule.allow_sha1_until}"
    elif algorithm not in policy.digests:
        return (
            3,
            "digest-not-allowed",
            f"counts, but {policy.source} accepts {', '.join(policy.digests)}, not {algorithm}",
        )
    if rule.audit:
        return 4, "builder-in-audit", "would accept it, but has audit = true: it only says so"
    return 5, "", ""


def runner_for(
    builder: Builder,
    image_name: str,
    user: str,
    groups: Sequence[str],
    account: str,
    partition: str,
    policy: Policy,
) -> Runner:
    """The first rule that lets this user run what this builder made; else `RequestError` naming the nearest rule."""
    nearest, near = 0, f"no runner rule of {policy.source} is for this image"
    for rule in policy.runners:
        step, what = _runner_refusal(rule, builder, image_name, user, groups, account, partition, policy)
        if not what:
            return rule
        if step > nearest:
            nearest, near = step, f"the nearest rule, {rule.name!r} ({rule.where}), {what}"
    where = f" in partition {partition}" if partition else ""
    raise RequestError(
        f"{user} may not run {image_name!r:.80} by builder {builder.name!r} ({builder.where}){where}: {near}",
        hint=f"ask {policy.contact}",
        code="runner-not-allowed",
    )


def _runner_refusal(
    rule: Runner,
    builder: Builder,
    image_name: str,
    user: str,
    groups: Sequence[str],
    account: str,
    partition: str,
    policy: Policy,
) -> tuple[int, str]:
    """(how far it got, what); the text is empty where the rule lets it pass."""
    if not matches(rule.images, image_name):
        return 0, "is for other images"
    if rule.builders and builder.name not in rule.builders:
        return 1, f"is for images by {_some(rule.builders)}"
    if rule.partitions and partition not in rule.partitions:
        return 2, f"is for {_some(rule.partitions)} only, of the partitions"
    if rule.users and "*" not in rule.users and user not in rule.users:
        return 3, "is for other users"
    if rule.groups and set(rule.groups).isdisjoint(groups):
        return 4, f"is for {_some(rule.groups)} only, of the unix groups"
    if rule.accounts and account not in rule.accounts:
        return 5, f"is for {_some(rule.accounts)} only, of the accounts of the batch system"
    if rule.fqan and not voms.has_any(rule.fqan, policy.voms, user=user, groups=groups):
        return 6, f"is for {_some(rule.fqan)} only, by {policy.voms_mapfile or policy.voms_gridmapfile or 'no mapfile'}"
    return 7, ""


def _some(words: Sequence[str]) -> str:
    more = f" and {len(words) - 3} more" if len(words) > 3 else ""
    return ", ".join(words[:3])[:200] + more
