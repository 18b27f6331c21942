"""`lrms-vm cache list|prune|verify|clean`: the node's verified images. Root only, as is the cache."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time

from lrms_vm import config as configuration
from lrms_vm import upkeep
from lrms_vm.errors import EXIT_UNAVAILABLE, RequestError
from lrms_vm.paths import Places
from lrms_vm.units import parse_size_bytes

EXAMPLES = """\
examples:
  lrms-vm cache list                     what is there, who holds it
  lrms-vm cache prune --max-size 200G    remove the least recently used, never one that a job holds
  lrms-vm cache verify                   read everything again; what is damaged is put aside
"""


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    cache = verbs.add_parser(
        "cache",
        description="The node's verified images.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inner = cache.add_subparsers(dest="cache_verb", metavar="VERB", required=True)
    for name, run, line in (
        ("list", _list, "stored images, the most recently used first"),
        ("prune", _prune, "make room"),
        ("verify", _verify, "read every stored image again"),
        ("clean", _clean, "remove what crashes left"),
    ):
        parser = inner.add_parser(
            name,
            help=line,
            description=line,
            epilog=EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--json", action="store_true", help="for machines")
        if name == "prune":
            parser.add_argument("--max-size", required=True, metavar="SIZE", help="what may stay, e.g. 200G")
        parser.set_defaults(run=run)


def _list(args: argparse.Namespace) -> int:
    found = upkeep.entries(_places(args))
    if args.json:
        print(json.dumps([dataclasses.asdict(entry) for entry in found], indent=1))
        return 0
    if not found:
        print("no images in this node's cache")
    for entry in found:
        state = "sound" if entry.sound else "to be read again"
        print(
            f"sha256:{entry.sha256[:16]}  {_size(entry.size_bytes):>9} ({_size(entry.disk_bytes)} on disk)  "
            f"used {_ago(entry.last_used_at)}  {state}  {entry.source}"
        )
        for key in entry.held_by:
            print(f"    held by {key}")
    return 0


def _prune(args: argparse.Namespace) -> int:
    max_bytes = parse_size_bytes(args.max_size, bare="", source="--max-size")
    removed = upkeep.evict(_places(args), max_bytes)
    return _told(args, removed, "removed", "nothing had to go")


def _clean(args: argparse.Namespace) -> int:
    return _told(args, upkeep.clean(_places(args)), "removed", "nothing was left over")


def _verify(args: argparse.Namespace) -> int:
    places = _places(args)
    results = {}
    for entry in upkeep.entries(places):
        if sys.stderr.isatty():
            print(f"reading sha256:{entry.sha256[:16]}, {_size(entry.size_bytes)} ...", file=sys.stderr)
        results[entry.sha256] = upkeep.verify(places, entry.sha256)
    if args.json:
        print(json.dumps([{"sha256": sha256, "good": good} for sha256, good in results.items()], indent=1))
    else:
        for sha256, good in results.items():
            print(f"sha256:{sha256}  {'good' if good else f'DAMAGED, put aside in {places.quarantine}'}")
        if not results:
            print("no images in this node's cache")
    return 0 if all(results.values()) else EXIT_UNAVAILABLE


def _told(args: argparse.Namespace, things: list[str], what: str, otherwise: str) -> int:
    if args.json:
        print(json.dumps({what: things}, indent=1))
    else:
        print("\n".join(f"{what} {thing}" for thing in things) or otherwise)
    return 0


def _places(args: argparse.Namespace) -> Places:
    config = configuration.load(args.config or configuration.DEFAULT_PATH, must_be_root_owned=os.geteuid() == 0)
    if config.places.state_dir.exists() and config.places.state_dir.stat().st_uid != os.geteuid():
        raise RequestError(
            f"cache: {config.state_dir} belongs to another user", hint="run it as root", code="cache-not-yours"
        )
    return config.places


def _size(size_bytes: int) -> str:
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def _ago(at: float) -> str:
    if at == 0:
        return "never"
    seconds = max(0.0, time.time() - at)
    for count, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= count:
            return f"{seconds / count:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
