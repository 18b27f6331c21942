"""`lrms-vm image show`: what a signed image list says, and whether this site believes it."""

from __future__ import annotations

import argparse
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrms_vm import config as configuration
from lrms_vm.cli import site_trust
from lrms_vm.errors import LrmsVmError, RequestError, SiteError, UsageError

if TYPE_CHECKING:
    from lrms_vm.trust.imagelist import ImageList, ListedImage
    from lrms_vm.trust.policy import Policy
    from lrms_vm.trust.verify import TrustAnchors
    from lrms_vm.trust.verify_list import SignedList

_MAX_BYTES = 2 << 20
_EXAMPLES = """\
examples:
  lrms-vm image show atlas.image_list                  a file, believed or not
  lrms-vm image show atlas/sim                         as the lists of this site have it
  lrms-vm image show atlas/sim@1.2 --user atlas001 --json

exit codes: 0 believed, 77 refused, 75 the site cannot decide now, 64 usage, 78 broken policy
"""


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "show",
        help="what a signed image list says, and whether it is believed here",
        description="Show a signed list in a file, or an image of the lists that this site subscribes to. "
        "What is not believed is shown too, and said not to be.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", metavar="LIST|NAME", help="a file, or the name of an image")
    parser.add_argument("--policy", type=Path, metavar="FILE", help="default: the site's trust.toml")
    parser.add_argument("--user", help="and may this user run it?")
    parser.add_argument("--partition", default="", help="where (default: a node with no batch system)")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=_show)


def _show(args: argparse.Namespace) -> int:
    policy, anchors = site_trust.load(args.policy, args.config)
    if os.path.exists(args.what):
        content, signed, error = _from_file(Path(args.what), policy, anchors)
        found = [(content, signed, list(content.images))] if content else []
    else:
        found, error = [(one.content, one, [image]) for one, image in _from_copies(args)], None
    shown = [_as_json(args, content, signed, images, policy, anchors) for content, signed, images in found]
    if args.json:
        refused = {"code": error.code, "reason": str(error)} if error else {"code": "accepted", "reason": None}
        print(json.dumps({"trusted": error is None, **refused, "lists": shown}, indent=1))
    else:
        for one in shown:
            print(_in_words(one, trusted=error is None))
    if error is not None:
        if shown and not args.json:
            print("NOT TRUSTED: nobody may boot by this list here; what stands above is only what it says.")
        raise error
    if args.user and not any(image["code"] == "accepted" for one in shown for image in one["images"]):
        return 77
    return 0


def _from_file(
    path: Path, policy: Policy, anchors: TrustAnchors
) -> tuple[ImageList | None, SignedList | None, LrmsVmError | None]:
    """What it says, the same proved, or why not."""
    from lrms_vm import signing_list
    from lrms_vm.trust.verify_list import open_list

    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot read: {error.strerror}", code="file-unreadable") from error
    try:
        signed = open_list(data, anchors=anchors, policy=policy, at=datetime.now(UTC))
        return signed.content, signed, None
    except (RequestError, SiteError) as error:
        try:
            return signing_list.unsigned(data), None, error
        except RequestError:
            return None, None, error


def _from_copies(args: argparse.Namespace) -> list[tuple[SignedList, ListedImage]]:
    """The image in this node's copies of the lists it subscribes to. Raises `RequestError` "image-unknown"."""
    from lrms_vm import list_copy
    from lrms_vm.image import parse_reference
    from lrms_vm.list_refresh import path_of
    from lrms_vm.trust import list_extract

    reference = parse_reference(args.what, source="image show")
    config = configuration.load(args.config or configuration.DEFAULT_PATH, must_be_root_owned=False)
    found = []
    for name in sorted(config.lists):
        try:
            copy = list_copy.read(path_of(config.places, name))
        except OSError as error:
            raise RequestError(f"{error.filename}: cannot read: {error.strerror}", code="file-unreadable") from error
        for row in copy.rows() if copy is not None else ():
            named = row.name == reference.name and reference.version in (None, row.version)
            if copy is not None and (named or (row.sha256 is not None and row.sha256 == reference.sha256)):
                found.append(list_extract.read_extract(copy.extract(row), source=str(copy.path)))
    if not found:
        raise RequestError(
            f"{args.what}: there is no such file, and no such image in the lists that this node has",
            hint="see `lrms-vm image list`",
            code="image-unknown",
        )
    return found


def _as_json(
    args: argparse.Namespace,
    content: ImageList,
    signed: SignedList | None,
    images: list[ListedImage],
    policy: Policy,
    anchors: TrustAnchors,
) -> dict[str, Any]:
    from lrms_vm.trust import dn
    from lrms_vm.trust.json_object import show_time

    return {
        "identifier": content.identifier,
        "version": content.version,
        "title": content.title,
        "created": show_time(content.created),
        "expires": show_time(content.expires),
        "valid_until": show_time(signed.valid_until) if signed else None,
        "signer": dn.show(signed.signer.subject) if signed else None,
        "issuer": dn.show(signed.signer.issuer) if signed else None,
        "spki_sha256": signed.spki_sha256 if signed else None,
        "form": signed.form if signed else None,
        "endorser": content.endorser.subject,
        "vo": list(content.vo),
        "images": [_image(args, image, signed, policy, anchors) for image in images],
    }


def _image(
    args: argparse.Namespace,
    image: ListedImage,
    signed: SignedList | None,
    policy: Policy,
    anchors: TrustAnchors,
) -> dict[str, Any]:
    from lrms_vm.trust.json_object import show_time

    code, reason, rule = _asked(args, image, signed, policy, anchors)
    return {
        "name": image.name,
        "version": image.version,
        "identifier": image.identifier,
        "title": image.title,
        "format": image.format,
        "size_bytes": image.size_bytes,
        "virtual_size_bytes": image.virtual_size_bytes,
        "digests": {algorithm: digest.hex() for algorithm, digest in image.digests.items()},
        "urls": list(image.urls),
        "tree": {"chunk_bytes": image.tree.chunk_bytes, "root": image.tree.root.hex()} if image.tree else None,
        "vo": list(image.vo),
        "expires": show_time(image.expires) if image.expires else None,
        "kernel": image.kernel,
        "code": code,
        "reason": reason,
        "rule": rule,
    }


def _asked(
    args: argparse.Namespace,
    image: ListedImage,
    signed: SignedList | None,
    policy: Policy,
    anchors: TrustAnchors,
) -> tuple[str | None, str | None, str | None]:
    """(code, reason, builder rule) of this image, for `--user` or for nobody in particular."""
    from lrms_vm.trust.verify_list import claim_listed

    if signed is None:
        return None, None, None
    try:
        claim = claim_listed(
            signed,
            image,
            anchors=anchors,
            policy=policy,
            user=args.user,
            groups=site_trust.groups_of(args.user) if args.user else (),
            partition=args.partition,
            at=datetime.now(UTC),
        )
    except (RequestError, SiteError) as error:
        return error.code, str(error), None
    return "accepted", None, claim.rule


def _in_words(one: dict[str, Any], *, trusted: bool) -> str:
    signed = (
        f"signed by {one['signer']} ({one['issuer']}), {one['form']}" if one["signer"] else "signature not believed"
    )
    until = f"until {one['valid_until']}" if trusted and one["valid_until"] else f"says: until {one['expires']}"
    lines = [
        f"list {one['identifier']} version {one['version']}: {one['title']}",
        f"  {signed}",
        f"  created {one['created']}, {until}" + (f", of {', '.join(one['vo'])}" if one["vo"] else ""),
        f"  names as its endorser: {one['endorser'] or 'nobody'}",
    ]
    for image in one["images"]:
        verdict = f"accepted by rule {image['rule']!r}" if image["rule"] else f"{image['code']}: {image['reason']}"
        lines.append(
            f"  {image['name']}@{image['version']}  {image['format']}, {image['size_bytes']} bytes, "
            + ", ".join(f"{name}:{digest[:16]}..." for name, digest in image["digests"].items())
        )
        lines += [f"    {url}" for url in image["urls"]]
        if image["code"] is not None:
            lines.append(f"    {verdict}")
    return "\n".join(lines)
