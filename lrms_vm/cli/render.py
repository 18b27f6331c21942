"""`lrms-vm render`: what would be given to the hypervisor for a job. Starts nothing."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from lrms_vm import config as configuration
from lrms_vm.errors import UsageError
from lrms_vm.request import OPTIONS, Allocation, parse_request
from lrms_vm.units import parse_memory_mib

DESCRIPTION = """\
Prints the domain that a job with these options would get, as libvirt's XML, or in the hypervisor's own words
(the qemu command line; xl.cfg for Xen), which libvirt writes. Takes no image from the cache and starts nothing.
"""
EXAMPLE = """\
examples:
  lrms-vm render --vm-image=atlas --memory 4G --cpus 2
  lrms-vm render --vm-image=atlas --hypervisor kvm --format qemu
"""
TIMEOUT_S = 30.0
FORMATS = {"xml": "", "qemu": "qemu", "xl": "xl"}


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "render", description=DESCRIPTION, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for word in OPTIONS:
        parser.add_argument(f"--{word}", required=word == "vm-image", metavar="REF" if word == "vm-image" else "VALUE")
    parser.add_argument("--memory", default="1G", help="what the batch system would give the job here (default 1G)")
    parser.add_argument("--cpus", type=int, default=1, help="and how many cpus (default 1)")
    parser.add_argument("--format", choices=FORMATS, default="xml")
    parser.add_argument("--hypervisor", choices=configuration.HYPERVISORS, help="instead of the configured one")
    parser.add_argument("--json", action="store_true", help="the domain's values and the text, for machines")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from dataclasses import asdict, replace

    from lrms_vm import domain, lifecycle, lists
    from lrms_vm.resolve import resolve

    config = configuration.load(args.config or configuration.DEFAULT_PATH)
    if args.hypervisor:
        config = replace(config, hypervisor=args.hypervisor)
    options = {word: text for word in OPTIONS if (text := getattr(args, word.replace("-", "_"))) is not None}
    request = parse_request(options, source="--vm-image")
    allocation = _allocation(args.cpus, args.memory)
    resolve(request.image, config, lambda reference: lists.outline(reference, config.lists, config.places))
    described = domain.outline(request, allocation, config=config, places=config.places.job(allocation.key))
    text = domain.render(described, lifecycle.template_text(config, described.hypervisor))
    domain.compare(described, text)
    if args.format != "xml":
        text = _native(text, args.format, config.libvirt_uri)
    print(
        json.dumps({"domain": asdict(described), "format": args.format, "text": text}) if args.json else text.rstrip()
    )
    return 0


def _allocation(cpus: int, memory: str) -> Allocation:
    if cpus < 1:
        raise UsageError(f"--cpus: {cpus} is not a number of cpus", hint="1 or more", code="option-unreadable")
    return Allocation(
        lrms="local", job_id="0", node="node", uid=65534, gid=65534, user="nobody", work_dir=str(Path("/tmp")),  # noqa: S108
        cpus=cpus, memory_mib=parse_memory_mib(memory, bare="M", source="--memory"),
    )  # fmt: skip


def _native(xml: str, format_: str, uri: str) -> str:
    from lrms_vm.guest import Libvirt

    return Libvirt(uri).native_config(xml, FORMATS[format_], deadline=time.monotonic() + TIMEOUT_S)
