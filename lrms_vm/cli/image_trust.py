"""`lrms-vm image sign` and `lrms-vm image verify`: vouch for an image, and ask whether it would boot here now."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lrms_vm.cli import image_sign_list, listed_file, site_trust
from lrms_vm.cli.progress import Progress
from lrms_vm.errors import LrmsVmError, RequestError, UsageError

if TYPE_CHECKING:
    from lrms_vm.image_file import TreeAhead
    from lrms_vm.trust.verify import Claim, Endorsement, SignatureFiles

DIGESTS = ("sha256", "sha384", "sha512")
_SUFFIXES = (*DIGESTS, "sha1")
_MAX_BYTES = 64 << 10
LOOK_TIMEOUT_S = 600.0

_SIGN = """\
examples:
  lrms-vm image sign atlas.raw --cert ~/.globus/usercert.pem --key ~/.globus/userkey.pem
  lrms-vm image sign atlas.raw --cert u.pem --key k.pem --form dgst    as openssl dgst -sha256 -sign does
  lrms-vm image sign --list atlas.image_list --image atlas/sim@1.2=sim.raw --image atlas/reco@7=reco.raw \\
      --url https://images.example.org/atlas --vo atlas --cert u.pem --key k.pem     make a list, and sign it
  lrms-vm image sign --list atlas.json --cert u.pem --key k.pem        sign a list that you wrote
"""
_VERIFY = """\
examples:
  lrms-vm image verify atlas.raw
  lrms-vm image verify atlas.raw --user atlas001 --partition grid --json
  lrms-vm image verify atlas.raw --list atlas.image_list --name atlas/sim@1.2

exit codes: 0 accepted, 77 refused, 75 the site cannot decide now (CRL missing or expired), 64 usage, 78 broken policy
"""


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _register_sign(verbs)
    _register_verify(verbs)


def _register_sign(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "sign",
        help="vouch for an image with your grid certificate",
        description="Sign the image's bytes; writes IMAGE.p7s, or IMAGE.sha256 with IMAGE.crt. "
        "With --list: sign a list of images instead (docs/image-lists.md).",
        epilog=_SIGN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", nargs="?")
    parser.add_argument("--cert", type=Path, required=True, metavar="PEM", help="your certificate")
    parser.add_argument("--key", type=Path, required=True, metavar="PEM", help="its private key")
    parser.add_argument("--chain", type=Path, metavar="PEM", help="certificates between yours and the CA's root")
    parser.add_argument(
        "--form",
        choices=("cms", "dgst", *image_sign_list.FORMS),
        help="of an image: cms (detached, default) or dgst (bare); of a list: smime (default), cms (DER) or both",
    )
    parser.add_argument("--digest", choices=DIGESTS, help="default: sha256 (sha512 for an Ed25519 key)")
    parser.add_argument("--json", action="store_true", help="for machines")
    image_sign_list.add_options(parser)
    parser.set_defaults(run=_sign)


def _register_verify(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "verify",
        help="would this image boot here now, and by which rule?",
        description="Check signature, signer, revocation, policy and every byte. Looks at IMAGE.p7s, "
        "else IMAGE.sha256 (.sha384, .sha512, .sha1) with the certificate in IMAGE.crt. "
        "IMAGE may be without its .img or .raw there.",
        epilog=_VERIFY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image", type=Path, metavar="IMAGE")
    parser.add_argument("--signature", type=Path, metavar="FILE", help="where it is not beside the image")
    parser.add_argument("--cert", type=Path, metavar="PEM", help="the signer's certificate, for a bare signature")
    parser.add_argument(
        "--list", type=Path, metavar="FILE", help="a signed list that has it; with a chunk tree, read on all cores"
    )
    parser.add_argument("--policy", type=Path, metavar="FILE", help="default: the site's trust.toml")
    parser.add_argument(
        "--name", help="the image's name at the site (default: the file's, without .img, .raw or .qcow2)"
    )
    parser.add_argument("--all", action="store_true", help="tell of every signature beside the image; the first counts")
    parser.add_argument("--user", help="and may this user run it?")
    parser.add_argument("--partition", default="", help="where (default: a node with no batch system)")
    parser.add_argument("--account", default="", help="charged to which account of the batch system (default: none)")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=_verify)


def _sign(args: argparse.Namespace) -> int:
    from lrms_vm import signing

    at = datetime.now(UTC)
    signer = signing.load_signer(
        _read(args.cert, "--cert"),
        _read(args.key, "--key"),
        _read(args.chain, "--chain") if args.chain else b"",
        password=_ask_password,
        at=at,
    )
    digest = args.digest or signing.default_digest(signer)
    if args.list is not None:
        return image_sign_list.sign(args, signer, digest, at)
    if args.image is None or args.form in image_sign_list.FORMS:
        raise UsageError("say which IMAGE, and --form cms or dgst; or --list FILE", code="image-unreadable")
    with Progress(
        f"reading {args.image.name}", args.image.stat().st_size if args.image.is_file() else None
    ) as progress:
        done = signing.sign_image(args.image, signer, form=args.form or "cms", digest=digest, at=at, progress=progress)
    _warn_about_others(args.image, done.files)
    if args.json:
        print(
            json.dumps(
                {
                    "files": [str(path) for path in done.files],
                    "signer": done.signer,
                    "digest": f"{done.digest_algorithm}:{done.digest.hex()}",
                    "size_bytes": done.size_bytes,
                }
            )
        )
    names = " and ".join(str(path) for path in done.files)
    print(f"lrms-vm: {args.image}: signed by {done.signer}: {names}", file=sys.stderr)
    return 0


def _warn_about_others(image: Path, made: tuple[Path, ...]) -> None:
    """`verify` looks at one signature only, in the order of `side_files`."""
    for suffix in ("p7s", *_SUFFIXES):
        other = image.with_name(f"{image.name}.{suffix}")
        if other in made:
            return
        if other.exists():
            print(f"lrms-vm: {other} is there too, and is looked at first: remove it if it is old", file=sys.stderr)


def _verify(args: argparse.Namespace) -> int:
    if args.all:
        from lrms_vm.cli import image_verify_all

        return image_verify_all.verify(args)
    files: SignatureFiles | None = None
    try:
        if not args.image.is_file():
            raise UsageError(f"{args.image}: no such image file", code="image-unreadable")
        if args.list is None:
            files = side_files(args.image, args.signature, args.cert)
            claim, endorsement = _decide(args, files, None)
        else:
            from lrms_vm.image_file import TreeAhead

            with TreeAhead(args.image) as ahead:
                claim, endorsement = _decide(args, files, ahead)
    except LrmsVmError as error:
        if args.json:
            print(json.dumps(_refused(error, files)))
        raise
    if args.json:
        print(json.dumps(_accepted(claim, endorsement)))
    may_run = f", and {args.user} may run it by rule {claim.runner!r}" if claim.runner else ""
    print(
        f"lrms-vm: {args.image}: accepted: signed by {claim.signer}, builder rule {claim.rule!r} ({claim.rule_where})"
        f"{may_run}, until {claim.valid_until:%Y-%m-%d %H:%M}Z",
        file=sys.stderr,
    )
    return 0


def _decide(
    args: argparse.Namespace, files: SignatureFiles | None, ahead: TreeAhead | None
) -> tuple[Claim, Endorsement]:
    """By the files beside the image; None: by the list that was named."""
    from lrms_vm.signing import check_image
    from lrms_vm.trust import verify

    policy, anchors = site_trust.load(args.policy, args.config)
    groups = site_trust.groups_of(args.user) if args.user else ()
    at = datetime.now(UTC)
    site = {
        "anchors": anchors,
        "policy": policy,
        "user": args.user,
        "partition": args.partition,
        "account": args.account,
    }
    if files is None:
        claim = listed_file.claim(args.list, args.image, name=args.name, groups=groups, at=at, **site)
    else:
        name = args.name or name_of(args.image)
        claim = verify.check_claim(files, image_name=name, groups=groups, at=at, **site)
    size_bytes = args.image.stat().st_size
    with Progress(f"reading {args.image.name}", size_bytes) as progress:
        endorsement = check_image(args.image, claim, progress=progress, ahead=ahead)
    check_form_of(args.image, claim, endorsement.sha256, size_bytes)
    return claim, endorsement


def check_form_of(image: Path, claim: Claim, sha256: str, size_bytes: int) -> None:
    """It is a raw disk, or something that policy lets become one here. What cannot be converted shows only at boot."""
    from lrms_vm.convert import look
    from lrms_vm.trust.forms import check_form

    fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        header = look(fd, claim, source=str(image), deadline=time.monotonic() + LOOK_TIMEOUT_S)
    finally:
        os.close(fd)
    raw_size_bytes = header.virtual_size_bytes if header else size_bytes
    check_form(claim, "qcow2" if header else "raw", sha256, size_bytes=size_bytes, raw_size_bytes=raw_size_bytes)


def name_of(image: Path) -> str:
    """What an image file is called at a site, where nobody says."""
    return image.name.removesuffix(".img").removesuffix(".raw").removesuffix(".qcow2")


def signatures_beside(image: Path) -> list[Path]:
    """The signature files that are there; the first is the one that counts."""
    stem = image.with_suffix("") if image.suffix in (".img", ".raw") else image  # the seed says vm_image.sha1
    beside = [f"{image}.{suffix}" for suffix in ("p7s", *_SUFFIXES)] + [f"{stem}.{suffix}" for suffix in _SUFFIXES]
    return [Path(path) for path in dict.fromkeys(beside) if os.path.exists(path)]


def side_files(image: Path, signature: Path | None = None, certificate: Path | None = None) -> SignatureFiles:
    """Which signature to look at, by its suffix. Raises `RequestError` "not-signed" where there is none."""
    from lrms_vm.trust.verify import SignatureFiles

    stem = image.with_suffix("") if image.suffix in (".img", ".raw") else image
    if signature is None:
        found = signatures_beside(image)
        if not found:
            raise RequestError(
                f"{image}: not signed: there is neither {image.name}.p7s nor {image.name}.sha256 beside it",
                hint="sign it with `lrms-vm image sign`, or name the signature with --signature",
                code="not-signed",
            )
        signature = found[0]
    content = _read(signature, "--signature")
    suffix = signature.name.rpartition(".")[2]
    if suffix not in _SUFFIXES:
        return SignatureFiles("cms", content)
    if certificate is None:
        places = [Path(f"{image}.crt"), signature.with_suffix(".crt"), Path(f"{stem}.crt")]
        certificate = next((path for path in places if path.exists()), None)
    return SignatureFiles("dgst", content, suffix, _read(certificate, "--cert") if certificate else None)


def _accepted(claim: Claim, endorsement: Endorsement) -> dict[str, object]:
    return {
        "accepted": True,
        "code": endorsement.code,
        "reason": f"signed by {endorsement.signer}, who may build it by rule {endorsement.rule!r}",
        "signer": endorsement.signer,
        "issuer": endorsement.issuer,
        "rule": endorsement.rule,
        "digest": f"sha256:{endorsement.sha256}",
        "runner": claim.runner,
        "valid_until": claim.valid_until.isoformat(),
    }


def _refused(error: LrmsVmError, files: SignatureFiles | None) -> dict[str, object]:
    """`signer` and `issuer` are then whom the signature names: nothing says that it was them."""
    from lrms_vm.trust.verify import named_signer

    named = named_signer(files) if files is not None else None
    return {
        "accepted": False,
        "code": error.code,
        "reason": str(error),
        "signer": named[0] if named else None,
        "issuer": named[1] if named else None,
        "rule": None,
        "digest": None,
    }


def _read(path: Path, option: str) -> bytes:
    """A small file that the caller named. One that is too long is cut where the trust core says so."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            return file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{option}: {path}: cannot read: {error.strerror}", code="file-unreadable") from error


def _ask_password() -> bytes:
    import getpass

    if not sys.stdin.isatty():
        raise UsageError("--key: the key has a password, and there is no terminal to ask for it", code="key-unreadable")
    return getpass.getpass("Password of the private key: ").encode()
