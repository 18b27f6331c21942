"""`lrms-vm trust show|reset`: what this node holds lists, the clock and bare signatures to, and the ways back. Root."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from lrms_vm import config as configuration
from lrms_vm import journal
from lrms_vm.config import Config
from lrms_vm.errors import LrmsVmError, RequestError

EXAMPLES = """\
examples:
  lrms-vm trust show
  lrms-vm trust reset ratchet atlas --reason "restored from backup, version 40 was a mistake (ticket 4711)"
  lrms-vm trust reset clock --reason "the node booted in 2038"
  lrms-vm trust reset pin sha1:0a4d55a8d778e5022fab701977c5d840bbc486d0 --reason "signed again"

A reset takes a protection away once: the reason is logged, and kept for `show`.
"""


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    trust = verbs.add_parser(
        "trust",
        description="What must not go back on this node: list versions, the clock, what bare signatures are held to.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inner = trust.add_subparsers(dest="trust_verb", metavar="VERB", required=True)
    show = _parser(inner, "show", "what is kept, and every recovery so far")
    show.add_argument("--json", action="store_true", help="for machines")
    show.set_defaults(run=_show)
    reset = _parser(inner, "reset", "go back, on purpose").add_subparsers(
        dest="what", metavar="ratchet|clock|pin", required=True
    )
    for what, argument, line in (
        ("ratchet", "LIST", "let an older version of a list count: its [lists.NAME], or its identifier"),
        ("clock", None, "let the time that it is now count, whatever it was"),
        ("pin", "DIGEST", "forget which image a bare signature over DIGEST (sha1:HEX) was first seen with, and when"),
    ):
        parser = _parser(reset, what, line)
        if argument is not None:
            parser.add_argument("which", metavar=argument)
        parser.add_argument("--reason", required=True, help="why: logged and kept")
        parser.set_defaults(run=_reset)


def _parser(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, line: str
) -> argparse.ArgumentParser:
    return verbs.add_parser(
        name,
        help=line,
        description=line,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _reset(args: argparse.Namespace) -> int:
    from lrms_vm import list_refresh, trust_state

    config, at = _config(args), datetime.now(UTC)
    places, which = config.places, getattr(args, "which", "")
    trust_state.prepare(places)
    if args.what == "clock":
        trust_state.reset_clock(places, reason=args.reason, at=at)
    elif args.what == "pin":
        trust_state.reset_pin(places, which, reason=args.reason, at=at)
    elif which in config.lists:
        list_refresh.forget(config.lists[which], places, reason=args.reason, at=at)
    else:
        trust_state.reset_ratchet(places, which, reason=args.reason, at=at)
    done = " ".join(word for word in ("reset", args.what, which) if word)
    journal.say("warning", "trust", f"{done}: {args.reason}")
    print(f"{done}: done, and noted in {places.trust / 'history.jsonl'}")
    return 0


def _show(args: argparse.Namespace) -> int:
    from lrms_vm import trust_state
    from lrms_vm.trust.json_object import show_time

    places = _config(args).places
    ratchet = _or_damage(lambda: trust_state.read_ratchet(places))
    clock = _or_damage(lambda: trust_state.read_clock(places))
    found: dict[str, Any] = {
        "lists": ratchet
        if isinstance(ratchet, str)
        else [
            {"list": identifier, "key": spki, "version": seen.version, "created": show_time(seen.created)}
            for (identifier, spki), seen in sorted(ratchet.lists.items())
        ],
        "clock": clock if isinstance(clock, str) or clock is None else show_time(clock.at),
        "bare_signatures": [
            {"digest": digest, "image": sha256, "first_seen": seen}
            for digest, sha256, seen in trust_state.bare_signatures(places)
        ],
        "history": trust_state.history(places),
    }
    if args.json:
        print(json.dumps(found, indent=1))
        return 0
    print(f"clock: not before {found['clock'] or 'anything: no job was decided about yet'}")
    _say("lists", found["lists"], "list {list} version {version}, created {created}, by the key {key:.16}...")
    _say("bare", found["bare_signatures"], "{digest} is sha256:{image}, since {first_seen}")
    _say("recoveries", found["history"], "{at:.19} {what} by {by}: {reason}")
    return 0


def _say(what: str, found: list[dict[str, str]] | str, form: str) -> None:
    if isinstance(found, str) or not found:
        print(f"{what}: {found or 'none'}")
        return
    for one in found:
        print(form.format_map(one))


def _or_damage(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except LrmsVmError as error:
        return f"DAMAGED: {error}"


def _config(args: argparse.Namespace) -> Config:
    config = configuration.load(args.config or configuration.DEFAULT_PATH, must_be_root_owned=os.geteuid() == 0)
    if config.places.state_dir.exists() and config.places.state_dir.stat().st_uid != os.geteuid():
        raise RequestError(
            f"trust: {config.state_dir} belongs to another user", hint="run it as root", code="cache-not-yours"
        )
    return config
