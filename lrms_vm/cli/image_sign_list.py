"""`lrms-vm image sign --list`: vouch for many images at once, with names, versions and an end (docs/image-lists.md)."""

from __future__ import annotations

import argparse
import json
import re
import sys
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from lrms_vm.errors import LrmsVmError, UsageError
from lrms_vm.image import parse_reference
from lrms_vm.units import parse_duration_s

if TYPE_CHECKING:
    from lrms_vm.signing import Signer
    from lrms_vm.signing_list import NewImage
    from lrms_vm.trust.imagelist import ImageList

FORMS = ("smime", "both")
_MAX_BYTES = 2 << 20
_IMAGE = re.compile(r"([^=]{1,300})=(.{1,4000})", re.ASCII)


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("signed image lists")
    group.add_argument(
        "--list", type=Path, metavar="FILE", help="the list: what to sign (JSON), or, with --image, write"
    )
    group.add_argument(
        "--image",
        dest="images",
        action="append",
        default=[],
        metavar="NAME@VERSION=FILE",
        help="an image that the list shall have; may be said again",
    )
    group.add_argument("--url", metavar="URL", help="where the image files will be; needed with --image")
    group.add_argument("--leaves", action="store_true", help="write FILE.leaves too: publish it beside the image")
    group.add_argument("--out", type=Path, metavar="FILE", help="default: FILE of --list, as .image_list or .p7m")
    group.add_argument("--title", help="default: the list's file name")
    group.add_argument("--identifier", help="the list's own; default: that of the list that is there, else a new UUID")
    group.add_argument("--version", dest="list_version", metavar="VERSION", help="default: the time, as 20270131120000")
    group.add_argument("--lifetime", default="28d", help="how long it counts (default: 28d; sites accept 35d at most)")
    group.add_argument("--vo", action="append", default=[], help="whose images they are; may be said again")


def sign(args: argparse.Namespace, signer: Signer, digest: str, at: datetime) -> int:
    """Raises `UsageError`, `RequestError`."""
    from lrms_vm import signing_list, store

    if args.image is not None or args.form == "dgst":
        raise UsageError(
            "--list: a list is signed without IMAGE, as --form smime, cms or both", code="image-unreadable"
        )
    form = args.form or "smime"
    payload = _made(args, signer, at) if args.images else _read(args.list)
    forms = ("smime", "cms") if form == "both" else (form,)
    files = {
        _out(args, one, one != forms[0]): signing_list.sign_list(payload, signer, form=one, digest=digest, at=at)
        for one in forms
    }
    for path, signed in files.items():
        try:
            store.write_durably(path, signed, 0o644)
        except OSError as error:
            raise UsageError(f"{path}: cannot write: {error.strerror}", code="signature-unwritable") from error
    _say(args, next(iter(files.values())), list(files))
    return 0


def _made(args: argparse.Namespace, signer: Signer, at: datetime) -> bytes:
    from lrms_vm import signing_list

    if not args.url:
        raise UsageError("--url: say where the image files will be", code="list-malformed")
    old = _old(args.list)
    version = args.list_version or at.strftime("%Y%m%d%H%M%S")
    _check_newer(version, old, args)
    title = args.title or (old.title if old else "") or args.list.name.partition(".")[0]
    head = signing_list.Head(
        identifier=args.identifier or (old.identifier if old else str(uuid.uuid4())),
        version=version,
        title=title,
        created=at.replace(microsecond=0),
        expires=at.replace(microsecond=0) + timedelta(seconds=parse_duration_s(args.lifetime, source="--lifetime")),
        vo=tuple(args.vo) or (old.vo if old else ()),
        url=f"{args.url.rstrip('/')}/{quote(args.list.name)}",
    )
    return signing_list.list_of(head, _images(args.images, args.url, args.leaves), signer)


def _images(words: Sequence[str], url: str, leaves: bool) -> list[NewImage]:
    from lrms_vm.signing_list import NewImage, format_of

    made = []
    for word in words:
        match = _IMAGE.fullmatch(word)
        reference = parse_reference(match[1], source="--image") if match else None
        if match is None or reference is None or reference.name is None or reference.version is None:
            raise UsageError(f"--image: expected NAME@VERSION=FILE, got {word!r:.200}", code="list-malformed")
        path = Path(match[2])
        place = f"{url.rstrip('/')}/{quote(path.name)}"
        made.append(NewImage(reference.name, reference.version, path, place, format_of(path), leaves))
    return made


def _old(path: Path) -> ImageList | None:
    """The list that is there already, whose next version this is; proved or not, it is the author's own."""
    from lrms_vm import signing_list

    if not path.exists():
        return None
    try:
        return signing_list.unsigned(_read(path))
    except LrmsVmError as error:
        raise UsageError(
            f"{path}: is there, and not a list: {error}", hint="name another file with --list", code="list-malformed"
        ) from error


def _check_newer(version: str, old: ImageList | None, args: argparse.Namespace) -> None:
    from lrms_vm.trust.imagelist import compare_versions

    if old is None or (args.identifier and args.identifier != old.identifier):
        return
    if compare_versions(version, old.version) <= 0:
        raise UsageError(
            f"--version: {version} is not higher than {old.version}, which {args.list} has",
            hint="nodes refuse a list that is older, or has the same version and other content",
            code="list-older",
        )


def _out(args: argparse.Namespace, form: str, second: bool) -> Path:
    suffix = ".image_list" if form == "smime" else ".p7m"
    base: Path = args.out or args.list
    if not second and (args.out is not None or args.images):
        return base
    return base.with_name(base.name.removesuffix(".json").removesuffix(".image_list") + suffix)


def _say(args: argparse.Namespace, signed: bytes, files: list[Path]) -> None:
    from lrms_vm import signing_list

    made = signing_list.unsigned(signed)
    if args.json:
        print(
            json.dumps(
                {
                    "files": [str(path) for path in files],
                    "identifier": made.identifier,
                    "version": made.version,
                    "expires": made.expires.isoformat(),
                    "images": [f"{one.name}@{one.version}" for one in made.images],
                }
            )
        )
    print(
        f"lrms-vm: version {made.version} of the list {made.identifier} with {len(made.images)} images, "
        f"until {made.expires:%Y-%m-%d}: {' and '.join(map(str, files))}",
        file=sys.stderr,
    )


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"--list: {path}: cannot read: {error.strerror}", code="file-unreadable") from error
