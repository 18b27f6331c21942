"""`lrms-vm image verify --all`: every signature beside an image, each by itself. A job looks at the first only."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lrms_vm.cli import site_trust
from lrms_vm.errors import LrmsVmError, RequestError, UsageError

if TYPE_CHECKING:
    from lrms_vm.trust.policy import Policy
    from lrms_vm.trust.verify import Claim, TrustAnchors


def verify(args: argparse.Namespace) -> int:
    """The exit code is that of the first: what a job would get. The bytes are read once."""
    from lrms_vm.cli import image_trust

    if not args.image.is_file():
        raise UsageError(f"{args.image}: no such image file", code="image-unreadable")
    if args.signature is not None or args.list is not None:
        raise UsageError("--all is for the signatures beside the image: leave out --signature and --list")
    found = image_trust.signatures_beside(args.image)
    if not found:
        image_trust.side_files(args.image)  # says which there could be
    policy, anchors = site_trust.load(args.policy, args.config)
    claims = {path: _claim(args, path, policy, anchors) for path in found}
    results = {path: _checked(args, claim) for path, claim in _hashed(args, claims).items()}
    lines = [_line(path, claims[path], results[path]) for path in found]
    if args.json:
        print(json.dumps({"image": str(args.image), "signatures": lines}, indent=1))
    else:
        for index, line in enumerate(lines):
            counts = "" if index else " (a job looks at this one)"
            print(f"{line['file']}: {line['code']}{counts}: {line['reason']}")
    first = results[found[0]]
    return first.exit_code if isinstance(first, LrmsVmError) else 0


Found = dict[str, bytes]


def _claim(args: argparse.Namespace, path: Path, policy: Policy, anchors: TrustAnchors) -> Claim | LrmsVmError:
    from lrms_vm.cli import image_trust
    from lrms_vm.trust.verify import check_claim

    try:
        return check_claim(
            image_trust.side_files(args.image, path, args.cert),
            anchors=anchors,
            policy=policy,
            image_name=args.name or image_trust.name_of(args.image),
            user=args.user,
            partition=args.partition,
            account=args.account,
            groups=site_trust.groups_of(args.user) if args.user else (),
            at=datetime.now(UTC),
        )
    except LrmsVmError as error:
        return error


def _hashed(
    args: argparse.Namespace, claims: dict[Path, Claim | LrmsVmError]
) -> dict[Path, tuple[Claim, Found, int] | LrmsVmError]:
    """Each claim with the digests of the bytes, read once for all."""
    from lrms_vm.signing import hash_image

    wanted = {one.digest_algorithm for one in claims.values() if not isinstance(one, LrmsVmError)}
    digests, size_bytes = hash_image(args.image, {"sha256", *wanted}) if wanted else ({}, 0)
    return {path: one if isinstance(one, LrmsVmError) else (one, digests, size_bytes) for path, one in claims.items()}


def _checked(args: argparse.Namespace, asked: tuple[Claim, Found, int] | LrmsVmError) -> Claim | LrmsVmError:
    from lrms_vm.cli import image_trust
    from lrms_vm.trust.verify import check_bytes

    if isinstance(asked, LrmsVmError):
        return asked
    claim, digests, size_bytes = asked
    try:
        endorsement = check_bytes(claim, digests=digests, size_bytes=size_bytes)
        image_trust.check_form_of(args.image, claim, endorsement.sha256, size_bytes)
    except RequestError as error:
        return error
    return claim


def _line(path: Path, claim: Claim | LrmsVmError, result: Claim | LrmsVmError) -> dict[str, object]:
    known = None if isinstance(claim, LrmsVmError) else claim
    if isinstance(result, LrmsVmError):
        code, reason = result.code, str(result)
    else:
        code = "accepted"
        reason = f"signed by {result.signer}, builder rule {result.rule!r} ({result.rule_where})"
    return {
        "file": str(path),
        "accepted": code == "accepted",
        "code": code,
        "reason": reason,
        "signer": known.signer if known else None,
        "rule": known.rule if known else None,
        "valid_until": known.valid_until.isoformat() if known else None,
    }
