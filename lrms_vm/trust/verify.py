"""May this image boot for this job, now? The one place where that is decided; pure, so that a test can ask anything.

Two questions, because the bytes are hashed once and the decision is re-taken for every job:
`check_claim` looks at the signature, the signer and the policy; `check_bytes` at the image's digests.
"""

from __future__ import annotations

import functools
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509 as certificates

from lrms_vm.errors import LrmsVmError, RequestError, SiteError
from lrms_vm.trust import cms, dgst, dn, rules, x509
from lrms_vm.trust.policy_values import Block, Policy, Runner
from lrms_vm.trust.tree import Tree
from lrms_vm.trust.x509 import TrustAnchors
from lrms_vm.values import dataclass

__all__ = [
    "Claim",
    "Endorsement",
    "SignatureFiles",
    "TrustAnchors",
    "check_bytes",
    "check_claim",
    "check_tree",
    "has_tree",
    "named_signer",
]

CLOCK_TOLERANCE = timedelta(minutes=5)  # between the signer's clock and ours
DGST_DIGESTS = ("sha256", "sha384", "sha512", "sha1")  # suffixes of bare signatures


@dataclass(frozen=True)
class SignatureFiles:
    """What lies beside an image."""

    kind: str  # "cms" or "dgst"
    signature: bytes
    digest_algorithm: str | None = None  # of a bare signature, from its suffix
    certificate: bytes | None = None  # PEM, the signer's first, then its chain; only with a bare signature


@dataclass(frozen=True)
class Claim:
    """Somebody who may build vouches for some bytes, and this job may run what they vouch for. Which bytes is next."""

    kind: str
    digest_algorithm: str
    signed_digest: bytes | None  # None: an ECDSA bare signature, which does not show what it is over
    signer: str  # RFC 4514
    issuer: str
    rule: str  # the builder rule
    rule_where: str  # file:line
    runner: str | None  # the runner rule; None: not asked
    max_memory_mib: int | None  # what the runner rule grants at most; None: it does not say
    network: str | None
    valid_until: datetime  # the first end among certificates, CRLs and the builder's leave to use SHA-1
    signature: bytes
    certificate: certificates.Certificate
    max_image_bytes: int
    blocked: Mapping[str, Block]  # by sha256, hex
    contact: str
    # What only a signed list says of its image.
    size_bytes: int | None = None
    signed_digests: Mapping[str, bytes] = field(default_factory=dict)
    tree: Tree | None = None
    format: str = "raw"
    virtual_size_bytes: int | None = None
    image_version: str | None = None
    list_identifier: str | None = None
    list_version: str | None = None
    formats: tuple[str, ...] = ("raw",)  # what the bytes may be: what the list says, else what policy and builder allow
    max_virtual_bytes: int = 256 << 30  # of the disk in a qcow2
    max_ratio: int = 100  # of a disk to the qcow2 it is in
    # What the runner rule's tier gives besides memory and network.
    tier: str | None = None  # its name; None: the rule has none
    shares: str = "all"  # of the host's directories: "none", "work_dir" or "all" that the site allows
    root: bool = False  # whether the job's user may become root inside the guest
    runner_where: str | None = None  # file:line of the runner rule
    audit: tuple[str, ...] = ()  # what builder rules that are only tried out would do, a sentence each: for the log


@dataclass(frozen=True)
class Endorsement:
    """The checked proof: who vouches for these bytes, and by which rule that counts."""

    signer: str
    issuer: str
    rule: str
    sha256: str
    code: str = "accepted"


def check_claim(
    files: SignatureFiles,
    *,
    anchors: TrustAnchors,
    policy: Policy,
    image_name: str,
    user: str | None,
    partition: str,
    at: datetime,
    groups: Sequence[str] = (),
    account: str = "",
) -> Claim:
    """Everything but the image's bytes. The first check that fails is the one reported:

     1. the signature file parses, and has one signer                          cms.parse, dgst.signed_digest
     2. the signer's key, key usage and name are fit for signing               x509.check_signer
     3. its certificate chains to `anchors` at `at`, nothing in the chain is revoked, and every CRL
        needed is there, signed and current                                    RFC 5280 section 6
     4. nothing else in the chain is weak                                      x509.validate
     5. each CA gave only names that it may give                               namespaces, signing_policy
     6. nothing in the chain is blocked                                        policy [[block]]
     7. the signature is by the signer's key, in a time when it was valid      cms.verify_signature
     8. the signer may build images of this name, in this form                 policy [[builder]]
     9. this user may run images of this name by this builder here             policy [[runner]]

    `user=None` leaves out step 9: an administrator asks about the image alone. `at` knows its zone.

    Raises `RequestError` (refused), `SiteError` (a CRL or namespaces file is missing or stale: nobody can tell),
    each with a stable code of docs/trust.md. Malformed input is a `RequestError`, whatever it is.
    """
    try:
        return _claim(
            files,
            anchors=anchors,
            policy=policy,
            image_name=image_name,
            user=user,
            partition=partition,
            at=at.astimezone(UTC),
            groups=groups,
            account=account,
        )
    except (RequestError, SiteError) as error:
        raise told(error, policy, named_signer(files)) from error


def told(error: LrmsVmError, policy: Policy, signer: tuple[str, str] | None) -> LrmsVmError:
    """The same refusal with the signer's name (proved or not), and what to do or whom to ask, where it has none."""
    message = error.message
    if signer is not None and signer[0] not in message:
        message = f"{message} (the signature is by {signer[0]}, or says so)"
    return type(error)(message, hint=error.hint or f"ask {policy.contact}", code=error.code)


def _claim(
    files: SignatureFiles,
    *,
    anchors: TrustAnchors,
    policy: Policy,
    image_name: str,
    user: str | None,
    partition: str,
    at: datetime,
    groups: Sequence[str],
    account: str,
) -> Claim:
    """The steps of `check_claim`."""
    if files.kind == "cms":
        parsed = _parsed(files.signature)
        signer, others, algorithm = parsed.signer, parsed.others, parsed.digest_algorithm
        digest: bytes | None = parsed.message_digest
    else:
        signer, *rest = _bare_chain(files)
        others, algorithm = tuple(rest), files.digest_algorithm or ""
        if algorithm not in DGST_DIGESTS:
            raise RequestError(
                f"a bare signature over {algorithm!r:.20} is not accepted", hint="use sha256", code="digest-not-allowed"
            )
        x509.check_signer(signer, min_rsa_bits=policy.min_rsa_bits)
        digest = dgst.signed_digest(files.signature, signer, algorithm)
    path = path_of(signer, others, anchors=anchors, policy=policy, at=at)
    rules.check_blocks(path.chain, policy, at.date())
    if files.kind == "cms":
        cms.verify_signature(parsed)
        check_signing_time(parsed, at)
    builder = rules.builder_for(signer, files.kind, algorithm, image_name, policy, at.date())
    runner = None
    if user is not None:
        runner = rules.runner_for(builder, image_name, user, groups, account, partition, policy)
    valid_until = path.valid_until
    if algorithm == "sha1" and builder.allow_sha1_until is not None:
        end = datetime.combine(builder.allow_sha1_until + timedelta(days=1), datetime.min.time(), UTC)
        valid_until = min(valid_until, end)
    return Claim(
        kind=files.kind,
        digest_algorithm=algorithm,
        signed_digest=digest,
        signer=dn.show(signer.subject),
        issuer=dn.show(signer.issuer),
        rule=builder.name,
        rule_where=builder.where,
        valid_until=valid_until,
        signature=files.signature,
        certificate=signer,
        max_image_bytes=policy.max_image_bytes,
        blocked={one.digest: one for one in policy.blocks if one.digest and one.holds(at.date())},
        contact=policy.contact,
        formats=tuple(one for one in builder.formats if one in policy.formats),
        max_virtual_bytes=policy.max_virtual_bytes,
        max_ratio=policy.max_ratio,
        audit=rules.audited(signer, files.kind, algorithm, image_name, policy, at.date()),
        **granted(runner),
    )


def path_of(
    signer: certificates.Certificate,
    others: Sequence[certificates.Certificate],
    *,
    anchors: TrustAnchors,
    policy: Policy,
    at: datetime,
) -> x509.Path:
    """The signer's path, as strict as the policy says. Raises as `x509.validate`."""
    return x509.validate(
        signer,
        others,
        anchors=anchors,
        min_rsa_bits=policy.min_rsa_bits,
        namespaces=policy.namespaces,
        at=at,
        crl=policy.crl,
        crl_grace_s=policy.crl_grace_s,
    )


def granted(runner: Runner | None) -> dict[str, Any]:
    """The fields of a claim that say which rule lets the user run it, and what the guest may have. None: not asked."""
    if runner is None:
        return {"runner": None, "max_memory_mib": None, "network": None}
    return {
        "runner": runner.name,
        "runner_where": runner.where,
        "max_memory_mib": runner.max_memory_mib,
        "network": runner.network,
        "tier": runner.tier,
        "shares": runner.shares,
        "root": runner.root,
    }


def check_bytes(claim: Claim, *, digests: Mapping[str, bytes], size_bytes: int) -> Endorsement:
    """The image's size and digests, as counted and hashed here, are all that was signed, and it is not blocked.

    `digests` has, by name, "sha256", `claim.digest_algorithm` and whatever is in `claim.signed_digests`: what is signed
    and was not hashed counts as different. Raises `RequestError`.
    """
    if not 0 < size_bytes <= claim.max_image_bytes:
        raise RequestError(
            f"the image has {size_bytes} bytes; expected 1 to {claim.max_image_bytes}",
            hint="the limit is max_image in trust.toml",
            code="image-too-large" if size_bytes else "signed-nothing",
        )
    if claim.size_bytes not in (None, size_bytes):
        raise _differs(f"there are {size_bytes} of them, {claim.signer} signed {claim.size_bytes}")
    found = digests[claim.digest_algorithm]
    signed = list(claim.signed_digests.items())
    if claim.signed_digest is not None:
        signed.append((claim.digest_algorithm, claim.signed_digest))
    for algorithm, digest in signed:
        here = digests.get(algorithm, b"")
        if not hmac.compare_digest(here, digest):
            raise _differs(
                f"{algorithm} is {here.hex()[:16] or 'unknown'}..., {claim.signer} signed {digest.hex()[:16]}..."
            )
    if claim.kind == "dgst":
        dgst.verify_digest(claim.signature, claim.certificate, claim.digest_algorithm, found)
    sha256 = digests["sha256"].hex()
    if block := claim.blocked.get(sha256):
        raise RequestError(
            f"the image sha256:{sha256} is blocked by {block.where}: {block.reason}",
            hint=f"ask {claim.contact}",
            code="image-blocked",
        )
    return Endorsement(signer=claim.signer, issuer=claim.issuer, rule=claim.rule, sha256=sha256)


def has_tree(claim: Claim) -> bool:
    """Whether `check_tree` can decide: a tree of SHA-256, where SHA-256 is what this site's policy goes by."""
    return claim.tree is not None and claim.size_bytes is not None and claim.digest_algorithm == "sha256"


def check_tree(claim: Claim, *, root: bytes, size_bytes: int) -> Endorsement:
    """The same by the image's size and chunk tree (trust/tree.py), as counted and hashed here on all cores.

    The tree and the digests are in one signed list, so whoever signed vouches for each; and a tree with its size binds
    the bytes as strongly as a sha256. The digests themselves are then the signer's word: good for saying what a file
    is, and for the blocks, but no name to keep bytes under. The cache computes its own.
    Only where `has_tree`. Raises `RequestError`.
    """
    if not has_tree(claim) or claim.tree is None:
        raise ValueError("a claim without a tree to check by")
    if claim.size_bytes == size_bytes and not hmac.compare_digest(root, claim.tree.root):
        raise _differs(
            f"the root of their tree is {root.hex()[:16]}..., {claim.signer} signed {claim.tree.root.hex()[:16]}..."
        )
    return check_bytes(claim, digests=claim.signed_digests, size_bytes=size_bytes)


def _differs(what: str) -> RequestError:
    return RequestError(
        f"the bytes of the image are not those that were signed: {what}",
        hint="fetch the image again, or ask its builder to sign it again (with -binary)",
        code="bytes-differ",
    )


def certificates_of(files: SignatureFiles) -> tuple[certificates.Certificate, ...]:
    """The signer's certificate and what came with it: whose CAs a decision will need. None where that is unreadable."""
    try:
        if files.kind != "cms":
            return _bare_chain(files)
        parsed = _parsed(files.signature)
        return (parsed.signer, *parsed.others)
    except RequestError:
        return ()


def named_signer(files: SignatureFiles) -> tuple[str, str] | None:
    """(subject, issuer) that a signature names, proved or not: for a refusal's report only."""
    try:
        signer = _parsed(files.signature).signer if files.kind == "cms" else _bare_chain(files)[0]
    except RequestError:
        return None
    return dn.show(signer.subject), dn.show(signer.issuer)


_parsed = functools.lru_cache(maxsize=8)(cms.parse)  # asked for its certificates, then for its claim


def _bare_chain(files: SignatureFiles) -> tuple[certificates.Certificate, ...]:
    if not files.signature:
        raise RequestError("the signature file is empty", code="not-signed")
    if files.certificate is None:
        raise RequestError(
            "a bare signature needs its certificate beside it", hint="expected IMAGE.crt", code="certificate-missing"
        )
    return x509.parse_chain(files.certificate, source="the signer's certificate file")


def check_signing_time(signature: cms.Signature, at: datetime) -> None:
    """The signer's own word, good for nothing but a contradiction."""
    if not signature.signer.not_valid_before_utc <= signature.signing_time <= at + CLOCK_TOLERANCE:
        raise RequestError(
            f"the signature says it was made at {signature.signing_time:%Y-%m-%d %H:%M:%S}Z: "
            f"before its certificate was valid, or in the future (it is {at:%Y-%m-%d %H:%M:%S}Z)",
            code="signing-time-wrong",
        )
