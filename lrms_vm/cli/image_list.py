"""`lrms-vm image list`: the images a job may name here."""

from __future__ import annotations

import argparse
import json

from lrms_vm import config as configuration


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "list",
        help="the images a job may name here",
        description="The site's image list: what --vm-image may name. Whether an image would boot: image verify.",
        epilog="example:\n  lrms-vm image list --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=_list)


def _list(args: argparse.Namespace) -> int:
    config = configuration.load(args.config or configuration.DEFAULT_PATH, must_be_root_owned=False)
    entries = sorted(config.images.values(), key=lambda entry: entry.name)
    if args.json:
        print(json.dumps([{"name": e.name, "version": e.version, "url": e.url} for e in entries], indent=1))
        return 0
    width = max([len(entry.name) for entry in entries], default=0)
    for entry in entries:
        print(f"{entry.name:<{width}}  {entry.version or '-':<10}  {entry.url}")
    if not entries:
        print(f"no images: add [images.NAME] tables to {config.source}")
    return 0
