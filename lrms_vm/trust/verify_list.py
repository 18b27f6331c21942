"""May this list be believed, and may this image of it boot for this job? Pure, as trust/verify.py is.

`open_list` looks at the whole list, when it comes; `claim_listed` at one image of it, for every job, and needs no more
than an extract: the list's head, its signer and that image (trust/list_extract.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from cryptography import x509 as certificates

from lrms_vm.errors import RequestError, SiteError
from lrms_vm.trust import cms, digests, dn, imagelist, list_rules, rules, smime, strict_json, verify, x509
from lrms_vm.trust.imagelist import ImageList, ListedImage
from lrms_vm.trust.policy_values import Policy
from lrms_vm.trust.verify import Claim
from lrms_vm.trust.x509 import TrustAnchors
from lrms_vm.values import dataclass


@dataclass(frozen=True)
class SignedList:
    """A list whose signature was verified when it came. In an extract, `content.images` has only the one asked for."""

    content: ImageList
    signer: certificates.Certificate
    others: tuple[certificates.Certificate, ...]  # what came with the signature
    form: str  # "smime" or "cms"
    digest_algorithm: str  # of the signature
    content_sha256: bytes  # of exactly the signed bytes
    valid_until: datetime  # as of opening: the first end among the list, certificates and CRLs

    @property
    def spki_sha256(self) -> str:
        """The signing key, hex: with the list's identifier, the key of the ratchet."""
        return x509.spki_sha256(self.signer)


def open_list(signed: bytes, *, anchors: TrustAnchors, policy: Policy, at: datetime) -> SignedList:
    """Everything about the list itself. The first check that fails is the one reported, and nothing of what the list
    says is looked at before step 8:

     1. it is at most 2 MiB, and a message of one of the forms we know                       smime.split
     2. its signature is strict CMS in DER, with one signer                                  cms.parse[_attached]
     3. the signed bytes are those of the message: from here on these and no others          cms.check_content
     4. the signer's certificate is fit for signing, and chains to `anchors` at `at`; nothing in the chain is weak,
        revoked or outside its CA's name space, and every CRL needed is there and current    x509.validate
     5. nothing in the chain is blocked                                                      policy [[block]]
     6. the signature is by the signer's key, in a time when it was valid                    cms.verify_signature
     7. a rule lets the signer endorse lists                                                 policy [[builder]]
     8. the bytes are strict JSON and a list of images                                       imagelist.parse_list
     9. this version of it is not blocked                                                    policy [[block]]
    10. it was created, at most five minutes from now, and is neither expired nor older than max_list_age

    Whether it is older than what was seen before is trust/freshness.py's question, and asked next. `at` knows its zone.

    Raises `RequestError`, `SiteError` (as `verify.check_claim`), each with a stable code of docs/trust.md.
    """
    try:
        return _opened(signed, anchors, policy, at.astimezone(UTC))
    except (RequestError, SiteError) as error:
        raise verify.told(error, policy, None) from error


def claim_listed(
    signed: SignedList,
    image: ListedImage,
    *,
    anchors: TrustAnchors,
    policy: Policy,
    user: str | None,
    partition: str,
    at: datetime,
    groups: Sequence[str] = (),
    account: str = "",
) -> Claim:
    """What is asked anew for every job, of an image of a list that `open_list` let pass. In this order:

    1. the signer's certificate and path, as step 4 of `open_list`, and its blocks, as step 5
    2. this version of the list is not blocked, as step 9, nor is the image's digest
    3. the list is neither expired nor too old, as step 10, nor is the image itself expired
    4. no other version of the list's image makes this one too old                    lv:min_version
    5. it has a digest that the policy accepts, and its sizes are within the policy's
    6. the signer may build images of this name, of this VO and in this format, in lists    policy [[builder]]
    7. this user may run images of this name by this builder here                           policy [[runner]]

    `user=None` leaves out step 7. Raises as `open_list`.
    """
    try:
        return _claimed(signed, image, anchors, policy, user, partition, at.astimezone(UTC), groups, account)
    except (RequestError, SiteError) as error:
        signer = (dn.show(signed.signer.subject), dn.show(signed.signer.issuer))
        raise verify.told(error, policy, signer) from error


def _opened(signed: bytes, anchors: TrustAnchors, policy: Policy, at: datetime) -> SignedList:
    """The steps of `open_list`."""
    message = smime.split(signed)
    signature, content = _signature_and_content(message)
    path = _path(signature, anchors, policy, at)
    cms.verify_signature(signature)
    verify.check_signing_time(signature, at)
    _check_may_endorse(signature, policy, at)
    listed = imagelist.parse_list(smime.text_of(content))
    list_rules.check_list_blocks(listed, policy, at)
    end = list_rules.check_age(listed, policy, at)
    return SignedList(
        content=listed,
        signer=signature.signer,
        others=signature.others,
        form=message.form,
        digest_algorithm=signature.digest_algorithm,
        content_sha256=digests.of("sha256", content),
        valid_until=min(end, path.valid_until),
    )


def _path(signed: SignedList | cms.Signature, anchors: TrustAnchors, policy: Policy, at: datetime) -> x509.Path:
    path = verify.path_of(signed.signer, signed.others, anchors=anchors, policy=policy, at=at)
    rules.check_blocks(path.chain, policy, at.date())
    return path


def _signature_and_content(message: smime.Message) -> tuple[cms.Signature, bytes]:
    if message.content is None:
        signature, content = cms.parse_attached(message.signature, max_content_bytes=strict_json.MAX_BYTES)
        candidates: Iterable[bytes] = (content,)
    else:
        signature = cms.parse(message.signature)
        candidates = smime.forms(message.content)
    for candidate in candidates:
        if cms.check_content(signature, candidate):
            return signature, candidate
    raise RequestError(
        "the list's bytes are not those that were signed: they were changed since",
        hint="fetch it again, as it stands on the server",
        code="list-bytes-differ",
    )


def _claimed(
    signed: SignedList,
    image: ListedImage,
    anchors: TrustAnchors,
    policy: Policy,
    user: str | None,
    partition: str,
    at: datetime,
    groups: Sequence[str],
    account: str,
) -> Claim:
    """The steps of `claim_listed`."""
    if image not in signed.content.images:
        raise RequestError(f"{image.name}: not in the list {signed.content.identifier}", code="image-not-listed")
    path = _path(signed, anchors, policy, at)
    list_rules.check_list_blocks(signed.content, policy, at)
    blocked = {one.digest: one for one in policy.blocks if one.digest and one.holds(at.date())}
    list_rules.check_image_blocks(image, blocked, policy)
    ends = [path.valid_until, list_rules.check_age(signed.content, policy, at)]
    if image.expires is not None:
        ends.append(image.expires)
    list_rules.check_image_age(image, at)
    primary = list_rules.primary_digest(image, policy)
    list_rules.check_sizes(image, policy)
    builder = list_rules.builder_for(signed.signer, signed.digest_algorithm, image, policy, at.date())
    runner = None
    if user is not None:
        runner = rules.runner_for(builder, image.name, user, groups, account, partition, policy)
    return Claim(
        kind="list",
        digest_algorithm=primary,
        signed_digest=image.digests[primary],
        signed_digests=image.digests,
        signer=dn.show(signed.signer.subject),
        issuer=dn.show(signed.signer.issuer),
        rule=builder.name,
        rule_where=builder.where,
        valid_until=min(ends),
        signature=b"",
        certificate=signed.signer,
        max_image_bytes=policy.max_image_bytes,
        blocked=blocked,
        contact=policy.contact,
        formats=(image.format,),
        max_virtual_bytes=policy.max_virtual_bytes,
        max_ratio=policy.max_ratio,
        size_bytes=image.size_bytes,
        tree=image.tree,
        format=image.format,
        virtual_size_bytes=image.virtual_size_bytes,
        image_version=image.version,
        list_identifier=signed.content.identifier,
        list_version=signed.content.version,
        audit=rules.audited(signed.signer, "list", signed.digest_algorithm, image.name, policy, at.date()),
        **verify.granted(runner),
    )


def _check_may_endorse(signature: cms.Signature, policy: Policy, at: datetime) -> None:
    """Some rule accepts lists of this signer; for which of its images is asked image by image."""
    any_image = replace(policy, builders=tuple(replace(one, images=("*",)) for one in policy.builders))
    rules.builder_for(signature.signer, "list", signature.digest_algorithm, "*", any_image, at.date())
