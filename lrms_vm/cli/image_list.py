"""`lrms-vm image list`: the images a job may name here."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

from lrms_vm import config as configuration
from lrms_vm.config import Config
from lrms_vm.errors import LrmsVmError, RequestError

FETCH_TIMEOUT_S = 60.0

EXAMPLES = """\
examples:
  lrms-vm image list
  lrms-vm image list --update    ask the servers of all lists for their newest version first (root)
  lrms-vm image list --json
"""


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "list",
        help="the images a job may name here",
        description="The site's own images and those of the signed lists it subscribes to, as this node last saw them. "
        "Whether one would boot: image verify.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--update", action="store_true", help="ask for every list's newest version first; as root")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=_list)


def _list(args: argparse.Namespace) -> int:
    config = configuration.load(args.config or configuration.DEFAULT_PATH, must_be_root_owned=args.update)
    failed = _update(config) if args.update else None
    rows, lists = _own(config), []
    for name in sorted(config.lists):
        head, listed = _listed(config, name)
        lists.append(head)
        rows += listed
    if args.json:
        print(json.dumps({"images": rows, "lists": lists}, indent=1))
    else:
        _print(config, rows, lists)
    return failed.exit_code if failed is not None else 0


def _own(config: Config) -> list[dict[str, Any]]:
    return [
        {
            "name": entry.name, "version": entry.version, "list": None, "expires": None, "sha256": None,
            "cached": None, "hidden": False, "url": entry.url,
        }
        for entry in sorted(config.images.values(), key=lambda entry: entry.name)
    ]  # fmt: skip


def _listed(config: Config, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The list's head and its images, by the copy that this node has; to be shown, nobody boots by it."""
    from lrms_vm import list_copy
    from lrms_vm.list_refresh import path_of
    from lrms_vm.trust.json_object import show_time

    subscription = config.lists[name]
    try:
        copy = list_copy.read(path_of(config.places, name))
    except OSError as error:
        raise RequestError(f"{error.filename}: cannot read: {error.strerror}", code="file-unreadable") from error
    if copy is None or copy.head.url != subscription.url:
        return {"list": name, "url": subscription.url, "version": None}, []
    head = copy.head
    rows = [
        {
            "name": row.name,
            "version": row.version,
            "list": name,
            "expires": min(show_time(row.expires), head.valid_until) if row.expires else head.valid_until,
            "sha256": row.sha256,
            "cached": None if row.sha256 is None else _cached(config, row.sha256),
            "hidden": row.name in config.images and config.images[row.name].version in (None, row.version),
            "url": None,
        }
        for row in copy.rows()
    ]
    shown = {
        "list": name, "url": head.url, "identifier": head.identifier, "version": head.version, "title": head.title,
        "created": head.created, "valid_until": head.valid_until, "signer": head.signer,
        "asked_s_ago": round(max(0.0, time.time() - copy.answered_at)),
    }  # fmt: skip
    return shown, sorted(rows, key=lambda row: (row["name"], row["version"]))


def _cached(config: Config, sha256: str) -> bool:
    """Whether the raw disk is here that these bytes are, or (as far as the caller may know) became."""
    from lrms_vm import sidefiles, store

    found = sidefiles.reference(config.places, f"sha256-{sha256}")
    return found is not None and os.path.exists(store.entry_dir(config.places, found.stored) / "meta.json")


def _print(config: Config, rows: list[dict[str, Any]], lists: list[dict[str, Any]]) -> None:
    width = max([len(row["name"]) for row in rows], default=0)
    for row in rows:
        where = row["url"] or f"list {row['list']}, until {row['expires']}"
        cached = "  cached" if row["cached"] else ""
        hidden = "  hidden by [images] of the same name" if row["hidden"] else ""
        print(f"{row['name']:<{width}}  {row['version'] or '-':<10}  {where}{cached}{hidden}")
    for one in lists:
        if one["version"] is None:
            print(f"list {one['list']}: not seen on this node yet: {one['url']}")
        else:
            print(
                f"list {one['list']}: version {one['version']}, signed by {one['signer']}, "
                f"asked for {one['asked_s_ago'] / 60:.0f} min ago"
            )
    if not rows and not lists:
        print(f"no images: add [images.NAME] or [lists.NAME] tables to {config.source}")


def _update(config: Config) -> LrmsVmError | None:
    """Refresh every list; say what fails and return the last failure."""
    from lrms_vm import node
    from lrms_vm.list_refresh import Refresher, remove_unsubscribed

    if os.geteuid() != 0:
        raise RequestError("image list --update: only root keeps lists", hint="leave out --update", code="not-root")
    decide = node.decision(config).for_job(user=None)
    failed = None
    remove_unsubscribed(config.places, config.lists)
    for name in sorted(config.lists):
        refresher = Refresher(
            config.lists, config.places, decide, node.fetcher(config), time.monotonic() + FETCH_TIMEOUT_S
        )
        try:
            refresher.refresh(name)
        except LrmsVmError as error:
            print(f"lrms-vm: {error}", file=sys.stderr)
            failed = error
    return failed
