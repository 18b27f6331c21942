"""`lrms-vm image pull`: bring an image into this node's cache before a job asks for it. Root only, as is the cache."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType

from lrms_vm import config as configuration
from lrms_vm.cli.progress import Progress
from lrms_vm.errors import UsageError
from lrms_vm.image import parse_reference
from lrms_vm.units import parse_duration_s, size_text

EXAMPLES = """\
examples:
  lrms-vm image pull atlas/sim                  the version that a job would get now
  lrms-vm image pull atlas/sim@13.0.10 --json
  lrms-vm image pull https://images.example.org/a.raw --timeout 2h     where image_places allows it

What a pull that failed or was killed has brought is gone on with by the next, for a day, where the image's signed
list has the leaves of its chunk tree.
"""


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "pull",
        help="bring an image into this node's cache ahead of jobs",
        description="Fetch an image as a job would, with every check but who may run it, and keep it in the cache.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image", metavar="NAME|URL", help="as in --vm-image")
    parser.add_argument("--timeout", default="24h", metavar="TIME", help="give up after, e.g. 2h (default: 24h)")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=_pull)


def _pull(args: argparse.Namespace) -> int:
    reference = parse_reference(args.image, source="image pull")
    deadline = time.monotonic() + parse_duration_s(args.timeout, source="--timeout")
    if os.geteuid() != 0:
        raise UsageError("image pull: needs root for the cache", hint="sudo lrms-vm image pull ...", code="not-root")
    from lrms_vm import cache, lifecycle, node
    from lrms_vm.admission import Admission

    config = configuration.load(args.config or configuration.DEFAULT_PATH)
    decision, fetch = node.decision(config), node.fetcher(config)
    decide = decision.for_job(user=None)
    lease = f"pull-{os.getpid()}"
    came: list[int] = []
    began = time.monotonic()
    with _ended_by_signals():
        entry = lifecycle.resolved(reference, config, fetch, decide, deadline)
        total_bytes = entry.listed.image.size_bytes if entry.listed is not None else None
        try:
            with Progress(entry.name, total_bytes, lines=not args.json) as progress:

                def told(done_bytes: int) -> None:
                    came[:] = [done_bytes]
                    progress(done_bytes)

                image = cache.acquire(
                    entry,
                    places=config.places,
                    lease=lease,
                    decide=decide,
                    fetch=fetch,
                    max_image_bytes=decision.max_image_bytes,
                    deadline=deadline,
                    progress=told,
                    admission=Admission(config.limits, config.state_dir_on_network),
                )
        finally:
            cache.release(config.places, lease)
    seconds = time.monotonic() - began
    if args.json:
        print(
            json.dumps(
                {
                    "name": image.name,
                    "version": entry.version,
                    "sha256": image.sha256,
                    "size_bytes": image.size_bytes,
                    "path": image.path,
                    "signer": image.signer,
                    "rule": image.rule,
                    "was_here": not came,
                    "seconds": round(seconds, 3),
                },
                indent=1,
            )
        )
    what = f"{size_text(came[0])} in {seconds:.0f} s" if came else "it was here already"
    print(
        f"lrms-vm: {image.name}: sha256:{image.sha256}, {what}; signed by {image.signer}, rule {image.rule!r}",
        file=sys.stderr,
    )
    return 0


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A TERM or HUP lets go of the lease, as Ctrl-C does."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
