"""`lrms-vm image build`: a bootable raw image, or the site's kernel, from a recipe."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

EXAMPLE = """\
examples:
  sudo lrms-vm image build images/hep-jets.toml --output /srv/images
  sudo lrms-vm image build images/kernel.toml --output /srv/kernel     the site's kernel and initrd

A second build of the same recipe is done at once; --force builds again, with the packages of today.
docs/images.md tells how a recipe is written and how the image is signed.
"""


def register(verbs: Subparsers) -> None:
    parser = verbs.add_parser(
        "build",
        help="make a bootable image, or a kernel for the site, from a recipe",
        description="Make a bootable raw image, or a kernel for the site, from a recipe.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="a TOML file, see images/ and docs/images.md")
    parser.add_argument("--output", type=Path, metavar="DIR", default=Path(), help="where to put it (here)")
    parser.add_argument("--force", action="store_true", help="build even if the output is up to date")
    parser.set_defaults(run=_build)


def _build(args: argparse.Namespace) -> int:
    from lrms_vm import build

    started = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started:6.1f} s] {line}", file=sys.stderr, flush=True)

    made = build.build(args.recipe, args.output, force=args.force, progress=say)
    for path in made.outputs:
        print(path)
    return 0
