"""`lrms-vm cache list|prune|pin|unpin|verify|scrub|clean`: the node's verified images. Root only, as is the cache."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable

from lrms_vm import config as configuration
from lrms_vm import pins, store, upkeep
from lrms_vm.errors import EXIT_UNAVAILABLE, RequestError, UsageError
from lrms_vm.paths import Places
from lrms_vm.units import parse_size_bytes, size_text

EXAMPLES = """\
examples:
  lrms-vm cache list                     what is there, who holds it
  lrms-vm cache prune --max-size 200G    remove the least recently used, never one that a job holds or that is pinned
  lrms-vm cache pin atlas/sim --reason "production until June"
  lrms-vm cache scrub --max-seconds 600 --rate 50
                                         read again what was not read for longest; what is damaged is put aside
  lrms-vm cache verify                   the same for everything at once, at full speed
"""
MIN_DIGITS = 8  # of a digest in place of all 64


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    cache = verbs.add_parser(
        "cache",
        description="The node's verified images.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inner = cache.add_subparsers(dest="cache_verb", metavar="VERB", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], line: str) -> argparse.ArgumentParser:
        parser = inner.add_parser(
            name,
            help=line,
            description=line,
            epilog=EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--json", action="store_true", help="for machines")
        parser.set_defaults(run=run)
        return parser

    parser = add("list", _list, "stored images, the most recently used first")
    parser.add_argument("--quarantine", action="store_true", help="what was found damaged and put aside instead")
    parser = add("prune", _prune, "make room")
    parser.add_argument("--max-size", required=True, metavar="SIZE", help="what may stay, e.g. 200G")
    parser = add("pin", _pin, "keep an image whatever room is needed")
    parser.add_argument("image", metavar="IMAGE", help="its name, or at least 8 digits of its sha256")
    parser.add_argument("--reason", default="", metavar="TEXT", help="shown by `cache list`")
    parser = add("unpin", _unpin, "let an image go when its turn comes")
    parser.add_argument("image", metavar="IMAGE", help="its name, or at least 8 digits of its sha256")
    add("verify", _verify, "read every stored image again")
    parser = add("scrub", _scrub, "read stored images again in the background, the longest unread first")
    parser.add_argument("--max-seconds", type=float, metavar="N", help="stop then; the next scrub goes on there")
    parser.add_argument("--rate", type=float, metavar="MIB", help="MiB to read per second at most")
    add("clean", _clean, "remove what crashes left")


def _list(args: argparse.Namespace) -> int:
    if args.quarantine:
        return _list_quarantine(args)
    found = upkeep.entries(_places(args))
    if args.json:
        print(json.dumps([dataclasses.asdict(entry) for entry in found], indent=1))
        return 0
    if not found:
        print("no images in this node's cache")
    for entry in found:
        state = f"verified {_ago(entry.verified_at)}" if entry.sound else "to be read again"
        print(
            f"sha256:{entry.sha256[:16]}  {size_text(entry.size_bytes):>9} ({size_text(entry.disk_bytes)} on disk)  "
            f"used {_ago(entry.last_used_at)}  {state}  {', '.join(entry.names) or '-'}  {entry.source}"
        )
        if entry.pinned is not None:
            print(f"    pinned{f': {_plain(entry.pinned)}' if entry.pinned else ''}")
        for key in entry.held_by:
            print(f"    held by {key}")
    return 0


def _list_quarantine(args: argparse.Namespace) -> int:
    found = upkeep.quarantine(_places(args))
    if args.json:
        print(json.dumps([dataclasses.asdict(one) for one in found], indent=1))
        return 0
    for one in found:
        print(
            f"sha256:{one.sha256[:16]}  {size_text(one.disk_bytes):>9}  {_ago(one.at)}  {_plain(one.why)}  {one.path}"
        )
    if not found:
        print("nothing was put aside")
    return 0


def _prune(args: argparse.Namespace) -> int:
    max_bytes = parse_size_bytes(args.max_size, bare="", source="--max-size")
    removed = upkeep.evict(_places(args), max_bytes)
    return _told(args, removed, "removed", "nothing had to go")


def _pin(args: argparse.Namespace) -> int:
    places = _places(args)
    if len(args.reason) > pins.MAX_REASON_LENGTH:
        raise UsageError(f"--reason: more than {pins.MAX_REASON_LENGTH} letters", code="reason-too-long")
    sha256 = _stored(args.image, places)
    store.prepare(places)
    upkeep.pin(places, sha256, args.reason)
    return _told(args, [f"sha256:{sha256}"], "pinned", "")


def _unpin(args: argparse.Namespace) -> int:
    places = _places(args)
    digits = args.image.removeprefix("sha256:")
    pinned = [pin.sha256 for pin in pins.pins(places) if pin.sha256.startswith(digits) and len(digits) >= MIN_DIGITS]
    sha256 = pinned[0] if len(pinned) == 1 else _stored(args.image, places)
    done = [f"sha256:{sha256}"] if pins.unpin(places, sha256) else []
    return _told(args, done, "unpinned", f"sha256:{sha256} was not pinned")


def _clean(args: argparse.Namespace) -> int:
    from lrms_vm.list_refresh import remove_unsubscribed

    config = _config(args)
    lists = [f"list {name}" for name in remove_unsubscribed(config.places, config.lists)]
    return _told(args, [*upkeep.clean(config.places), *lists], "removed", "nothing was left over")


def _verify(args: argparse.Namespace) -> int:
    places = _places(args)
    results = {}
    for entry in upkeep.entries(places):
        if sys.stderr.isatty():
            print(f"reading sha256:{entry.sha256[:16]}, {size_text(entry.size_bytes)} ...", file=sys.stderr)
        results[entry.sha256] = upkeep.verify(places, entry.sha256)
    if args.json:
        print(json.dumps([{"sha256": sha256, "good": good} for sha256, good in results.items()], indent=1))
    else:
        for sha256, good in results.items():
            print(f"sha256:{sha256}  {'good' if good else f'DAMAGED, put aside in {places.quarantine}'}")
        if not results:
            print("no images in this node's cache")
    return 0 if all(results.values()) else EXIT_UNAVAILABLE


def _scrub(args: argparse.Namespace) -> int:
    from lrms_vm import scrub

    places = _places(args)
    for option, value in (("--max-seconds", args.max_seconds), ("--rate", args.rate)):
        if value is not None and not 0 < value < 1e9:
            raise UsageError(f"{option}: expected a number above 0, got {value:g}", code="number-out-of-range")
    pace = scrub.Pace(
        bytes_per_s=None if args.rate is None else max(1, int(args.rate * (1 << 20))),
        deadline=None if args.max_seconds is None else time.monotonic() + args.max_seconds,
    )
    results = []
    for one in scrub.scrub(places, pace):
        results.append(one)
        if not args.json:
            state = f"DAMAGED, put aside in {places.quarantine}" if one.state == scrub.DAMAGED else one.state
            more = f": {one.found}" if one.found else ""
            print(f"sha256:{one.sha256[:16]}  {size_text(one.read_bytes):>9} read  {state}{more}", flush=True)
    if args.json:
        print(json.dumps([dataclasses.asdict(one) for one in results], indent=1))
    elif not results:
        print("no images in this node's cache")
    return EXIT_UNAVAILABLE if any(one.state == scrub.DAMAGED for one in results) else 0


def _stored(text: str, places: Places) -> str:
    """The sha256 of the stored image that is meant: by digits, else the one that came last under that name."""
    entries = upkeep.entries(places)
    digits = text.removeprefix("sha256:")
    if len(digits) >= MIN_DIGITS and set(digits) <= set("0123456789abcdef"):
        found = [entry for entry in entries if entry.sha256.startswith(digits)]
        if len(found) > 1:
            raise UsageError(f"{text!r:.80}: {len(found)} stored images begin so", code="digest-ambiguous")
    else:
        found = sorted((e for e in entries if text in (*e.names, e.source)), key=lambda e: -e.stored_at)
    if not found:
        raise RequestError(
            f"{text!r:.80}: no such image in this node's cache",
            hint="see `lrms-vm cache list`; `lrms-vm image pull NAME` brings one in",
            code="image-not-stored",
        )
    return found[0].sha256


def _told(args: argparse.Namespace, things: list[str], what: str, otherwise: str) -> int:
    if args.json:
        print(json.dumps({what: things}, indent=1))
    else:
        print("\n".join(f"{what} {thing}" for thing in things) or otherwise)
    return 0


def _places(args: argparse.Namespace) -> Places:
    return _config(args).places


def _config(args: argparse.Namespace) -> configuration.Config:
    config = configuration.load(args.config or configuration.DEFAULT_PATH, must_be_root_owned=os.geteuid() == 0)
    if config.places.state_dir.exists() and config.places.state_dir.stat().st_uid != os.geteuid():
        raise RequestError(
            f"cache: {config.state_dir} belongs to another user", hint="run it as root", code="cache-not-yours"
        )
    return config


def _plain(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _ago(at: float) -> str:
    if at == 0:
        return "never"
    seconds = max(0.0, time.time() - at)
    for count, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= count:
            return f"{seconds / count:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
