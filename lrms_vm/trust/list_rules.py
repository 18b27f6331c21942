"""The rules that are about lists: ages, blocks by version, VOs, formats. Pure; asked by trust/verify_list.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import date, datetime, timedelta

from cryptography import x509 as certificates

from lrms_vm.errors import RequestError
from lrms_vm.trust import rules
from lrms_vm.trust.imagelist import ImageList, ListedImage, compare_versions
from lrms_vm.trust.policy_values import Block, Builder, Policy

CLOCK_TOLERANCE = timedelta(minutes=5)  # between the endorser's clock and ours
_HINT_RENEW = "its endorser must publish it anew"


def valid_until(content: ImageList, policy: Policy) -> datetime:
    """What the list says, but no later than max_list_age after it was created: lists say 2499 (EGI's do)."""
    return content.created + min(content.expires - content.created, timedelta(seconds=policy.max_list_age_s))


def builder_for(
    signer: certificates.Certificate, algorithm: str, image: ListedImage, policy: Policy, today: date
) -> Builder:
    """The first rule for this image: one with VOs is for images of these VOs only, and each is for its formats."""

    def fits(rule: Builder) -> bool:
        vo_fits = not rule.vo or (bool(image.vo) and set(image.vo) <= set(rule.vo))
        return vo_fits and image.format in rule.formats and image.format in policy.formats

    asked = (signer, "list", algorithm, image.name)
    whatever = rules.builder_for(*asked, policy, today)
    fitting = replace(policy, builders=tuple(one for one in policy.builders if fits(one)))
    try:
        return rules.builder_for(*asked, fitting, today)
    except RequestError as error:
        rule = f"builder rule {whatever.name!r} ({whatever.where})"
        if image.format not in whatever.formats or image.format not in policy.formats:
            accepted = [one for one in whatever.formats if one in policy.formats]
            raise RequestError(
                f"{image.name} is in format {image.format!r}; {rule} and {policy.source} accept "
                f"{', '.join(accepted) or 'none'}",
                code="format-not-allowed",
            ) from error
        raise RequestError(
            f"{rule} is for images of the VO {', '.join(whatever.vo)}; "
            f"{image.name} is of {', '.join(image.vo) or 'none that its list names'}"[:500],
            code="builder-not-for-vo",
        ) from error


def check_list_blocks(content: ImageList, policy: Policy, at: datetime) -> None:
    for block in policy.blocks:
        if block.list != content.identifier or block.below_version is None or not block.holds(at.date()):
            continue
        if compare_versions(content.version, block.below_version) < 0:
            raise RequestError(
                f"version {content.version} of the list {content.identifier} is blocked by {block.where}: "
                f"{block.reason}; only {block.below_version} or later counts",
                hint=f"ask {policy.contact}",
                code="list-blocked",
            )


def check_age(content: ImageList, policy: Policy, at: datetime) -> datetime:
    """Until when the list counts. Raises `RequestError`."""
    what = f"version {content.version} of the list {content.identifier}"
    if content.created > at + CLOCK_TOLERANCE:
        raise RequestError(
            f"{what} says it was created at {content.created:%Y-%m-%d %H:%M:%S}Z, in the future "
            f"(it is {at:%Y-%m-%d %H:%M:%S}Z)",
            code="list-not-yet-valid",
        )
    end = valid_until(content, policy)
    if at >= end:
        days = policy.max_list_age_s // 86400
        why = "" if end == content.expires else f", {days} days after it was created (max_list_age in {policy.source})"
        raise RequestError(f"{what} expired at {end:%Y-%m-%d %H:%M}Z{why}", hint=_HINT_RENEW, code="list-expired")
    return end


def primary_digest(image: ListedImage, policy: Policy) -> str:
    for algorithm in ("sha256", "sha512"):
        if algorithm in image.digests and algorithm in policy.digests:
            return algorithm
    raise RequestError(
        f"{image.name} has only {', '.join(image.digests)} in its list; {policy.source} accepts "
        f"{', '.join(policy.digests)}",
        code="digest-not-allowed",
    )


def check_sizes(image: ListedImage, policy: Policy) -> None:
    if image.size_bytes > policy.max_image_bytes:
        raise RequestError(
            f"{image.name} has {image.size_bytes} bytes; expected at most {policy.max_image_bytes}",
            hint="the limit is max_image in trust.toml",
            code="image-too-large",
        )
    if (image.virtual_size_bytes or 0) > policy.max_virtual_bytes:
        raise RequestError(
            f"the disk in {image.name} has {image.virtual_size_bytes} bytes; "
            f"expected at most {policy.max_virtual_bytes}",
            hint="the limit is max_virtual in trust.toml",
            code="image-virtual-too-large",
        )


def check_image_age(image: ListedImage, at: datetime) -> None:
    """Neither expired nor superseded within its list. Raises `RequestError`."""
    if image.expires is not None and at >= image.expires:
        raise RequestError(
            f"{image.name}@{image.version} expired in its list at {image.expires:%Y-%m-%d %H:%M}Z",
            hint=_HINT_RENEW,
            code="image-expired",
        )
    if image.min_version is not None and compare_versions(image.version, image.min_version) < 0:
        raise RequestError(
            f"{image.name}@{image.version}: its list lets only version {image.min_version} or later boot",
            hint=f"use {image.name} without a version",
            code="image-superseded",
        )


def check_image_blocks(image: ListedImage, blocked: Mapping[str, Block], policy: Policy) -> None:
    """What `verify.check_bytes` asks again of the bytes; here before they are fetched. Raises `RequestError`."""
    sha256 = image.digests.get("sha256", b"").hex()
    if sha256 in blocked:
        raise RequestError(
            f"the image sha256:{sha256} is blocked by {blocked[sha256].where}: {blocked[sha256].reason}",
            hint=f"ask {policy.contact}",
            code="image-blocked",
        )
