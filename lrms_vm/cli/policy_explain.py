"""`lrms-vm policy explain`: which rules decide about an image and a user, and what they give."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lrms_vm import config as configuration
from lrms_vm.cli import site_trust
from lrms_vm.errors import LrmsVmError

if TYPE_CHECKING:
    from lrms_vm.decision import Decision, JobDecision
    from lrms_vm.trust.verify import Claim

TIMEOUT_S = 30.0
EXAMPLES = """\
examples:
  lrms-vm policy explain atlas/sim --user atlas001 --partition grid    a name, as a job would give it
  lrms-vm policy explain ./atlas.raw --user atlas001                   a file, with its signature beside it

exit codes, as of image verify: 0 accepted, 77 refused, 75 the site cannot decide now, 64 usage, 78 broken policy
"""


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "explain",
        help="which rules let this user run this image, or why none does",
        description="Ask the policy as a job would, and say which rule of which line decides. The image's bytes are "
        "not read: that is `lrms-vm image verify`.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image", metavar="IMAGE", help="a file, or what --vm-image may say")
    parser.add_argument("--user", required=True, help="who wants to run it")
    parser.add_argument("--partition", default="", help="where (default: a node with no batch system)")
    parser.add_argument("--account", default="", help="charged to which account of the batch system (default: none)")
    parser.add_argument("--policy", type=Path, metavar="FILE", help="default: the site's trust.toml")
    parser.add_argument("--name", help="of a file: the image's name at the site (default: the file's)")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=_explain)


def _explain(args: argparse.Namespace) -> int:
    from lrms_vm.decision import Decision

    policy, anchors = site_trust.load(args.policy, args.config)
    site = Decision(policy, anchors)
    groups = site_trust.groups_of(args.user)
    builder: Claim | None = None
    try:
        builder = _claim(args, site, site.for_job(user=None))
        job = site.for_job(user=args.user, groups=groups, partition=args.partition, account=args.account)
        claim = _claim(args, site, job)
    except LrmsVmError as error:
        facts = _facts(args, builder) | {"accepted": False, "code": error.code, "reason": error.message}
        facts["hint"] = error.hint or f"ask {policy.contact}"
        _show(args, facts)
        return error.exit_code
    _show(args, _facts(args, claim) | {"accepted": True, "code": "accepted"} | _granted(claim))
    return 0


def _claim(args: argparse.Namespace, site: Decision, decide: JobDecision) -> Claim:
    """What is claimed of the image for one user, or for none. Raises as a job's prologue would."""
    path = Path(args.image)
    if path.is_file():
        from lrms_vm.cli import image_trust

        name = args.name or image_trust.name_of(path)
        return decide.claim(image_trust.side_files(path), name)
    from lrms_vm import lifecycle, node, sidefiles
    from lrms_vm.image import parse_reference

    config = configuration.load(args.config or configuration.DEFAULT_PATH, must_be_root_owned=False)
    deadline = time.monotonic() + TIMEOUT_S
    fetch = node.fetcher(config)
    entry = lifecycle.resolved(parse_reference(args.image, source="IMAGE"), config, fetch, decide, deadline)
    if entry.listed is not None:
        return decide.listed(entry.listed)
    return decide.claim(sidefiles.fetch_files(entry, fetch=fetch, deadline=deadline), entry.name)


def _facts(args: argparse.Namespace, claim: Claim | None) -> dict[str, object]:
    """What is known of the image, whoever asks."""
    facts: dict[str, object] = {
        "image": args.image,
        "user": args.user,
        "partition": args.partition,
        "account": args.account,
    }
    if claim is None:
        return facts
    listed = claim.list_identifier and f"{claim.list_identifier} version {claim.list_version}"
    return facts | {
        "signature": claim.kind,
        "list": listed,
        "signer": claim.signer,
        "issuer": claim.issuer,
        "builder": claim.rule,
        "builder_where": claim.rule_where,
        "formats": list(claim.formats),
        "max_image_bytes": claim.max_image_bytes,
        "max_virtual_bytes": claim.max_virtual_bytes,
        "audit": list(claim.audit),
    }


def _granted(claim: Claim) -> dict[str, object]:
    return {
        "runner": claim.runner,
        "runner_where": claim.runner_where,
        "tier": claim.tier,
        "network": claim.network,
        "max_memory_mib": claim.max_memory_mib,
        "shares": claim.shares,
        "root": claim.root,
        "valid_until": claim.valid_until.isoformat(),
    }


def _show(args: argparse.Namespace, facts: dict[str, object]) -> None:
    if args.json:
        print(json.dumps(facts, indent=1))
        return
    where = f" in partition {args.partition}" if args.partition else ""
    print(f"image      {args.image}, for {args.user}{where}")
    if "builder" in facts:
        by_list = f", by the list {facts['list']}" if facts["list"] else ""
        print(f"signer     {facts['signer']}, certified by {facts['issuer']} ({facts['signature']}{by_list})")
        print(f"builder    rule {facts['builder']!r} ({facts['builder_where']})")
    if "runner" in facts:
        memory = f"{facts['max_memory_mib']} MiB" if facts["max_memory_mib"] else "the allocation"
        print(f"runner     rule {facts['runner']!r} ({facts['runner_where']})")
        network = facts["network"] or "as the site offers"
        print(f"tier       {facts['tier'] or 'none'}: network {network}, memory {memory},")
        print(f"           directories of the host: {facts['shares']}, root inside: {'yes' if facts['root'] else 'no'}")
        print(f"until      {str(facts['valid_until'])[:16].replace('T', ' ')}Z")
    for sentence in facts.get("audit") or ():  # type: ignore[attr-defined]
        print(f"audit      {sentence}")
    if not facts["accepted"]:
        print(f"refused    {facts['code']}: {facts['reason']}")
        print(f"what next  {facts['hint']}")
    else:
        print("bytes      not read here: `lrms-vm image verify`, and every job, compares them with what was signed")
