"""Which of the policy's rules counts: blocks win, then the builder's, then the runner's. Pure; used by every form."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from fnmatch import fnmatchcase

from cryptography import x509 as certificates
from cryptography.hazmat.primitives import hashes

from lrms_vm.errors import RequestError
from lrms_vm.trust import dn, x509
from lrms_vm.trust.policy import Builder, Policy, Runner


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
    """The first rule that lets the signer build this; else the refusal of the rule that came nearest."""
    who, by = dn.show(signer.subject), dn.show(signer.issuer)
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
    return 4, "", ""


def runner_for(
    builder: Builder,
    image_name: str,
    user: str,
    groups: Sequence[str],
    account: str,
    partition: str,
    policy: Policy,
) -> Runner:
    """The first rule that lets this user run what this builder made. Raises `RequestError`."""
    for rule in policy.runners:
        if rule.may_run(
            user=user,
            groups=groups,
            account=account,
            partition=partition,
            image_name=image_name,
            builder=builder.name,
        ):
            return rule
    near = [one for one in policy.runners if any(fnmatchcase(image_name, pattern) for pattern in one.images)]
    who = f"rule {near[0].name!r} ({near[0].where}) is for others" if near else "no runner rule is for this image"
    where = f" in partition {partition}" if partition else ""
    raise RequestError(
        f"{user} may not run {image_name!r:.80} by builder {builder.name!r}{where}: {who}",
        hint=f"ask {policy.contact}",
        code="runner-not-allowed",
    )
