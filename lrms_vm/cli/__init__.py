"""The `lrms-vm` command. Each verb's module is imported only when that verb is called: hooks start per job."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from lrms_vm import __version__
from lrms_vm.errors import EXIT_USAGE, LrmsVmError

# verb: (modules whose register() adds it, one line of help)
VERBS: dict[str, tuple[tuple[str, ...], str]] = {
    "run": (("run",), "run a command in a guest on this machine, with no batch system"),
    "submit": (("submit",), "submit a command to the batch system, into an image: DRMAA or the system's commands"),
    "status": (("status",), "the guests on this node: whose, which image, which phase"),
    "metrics": (("metrics",), "what this node has counted, for Prometheus"),
    "report": (("report",), "a picture of where a job's time went, or a node's"),
    "image": (
        ("image_trust", "image_build", "image_list", "image_show", "image_pull"),
        "sign, verify, pull, build and list images",
    ),
    "cache": (("cache",), "the node's verified image cache"),
    "trust": (("trust",), "what must not go back on this node, and the ways back"),
    "policy": (("policy",), "who may build and who may run: check the rules, explain a decision"),
    "render": (("render",), "what would be given to the hypervisor for a job"),
    "doctor": (("doctor",), "what would stop a VM job on this node, each with its remedy"),
    "health": (("health",), "called by the batch system's health check: can this node run VMs?"),
    "install": (("install",), "put the hooks and the plugin in place for a batch system"),
    "prologue": (("hooks",), "called by the batch system, as root, before a job"),
    "epilogue": (("hooks",), "called by the batch system, as root, after a job"),
    "reap": (("hooks",), "remove what ended jobs left on this node"),
    "exec": (("exec",), "called in the job's step, as its user: runs the payload in the guest"),
}
_GROUPS = {"image": "a verb of its own follows", "policy": "a verb of its own follows"}

EXAMPLES = """\
examples:
  lrms-vm doctor                                       is this node ready for VM jobs?
  lrms-vm image sign atlas.raw --cert u.pem --key k.pem   vouch for an image
  lrms-vm image verify atlas.raw                       would it boot here now, and by which rule?
  lrms-vm run --vm-image=atlas -- ./simulate -n 100    try it without the batch system

exit codes: 64 usage, 69 node at fault, 70 guest lost, 75 try again later, 77 refused, 78 site configuration
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return its exit code. Errors of ours become one line on stderr."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # the libraries': of an odd certificate the user learns by our refusal
    arguments = _config_first(sys.argv[1:] if argv is None else argv)
    parser = _parser(_verb_of(arguments))
    args = parser.parse_args(arguments)
    if not hasattr(args, "run"):
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    try:
        return int(args.run(args))
    except LrmsVmError as error:
        print(f"lrms-vm: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away: nothing to tell, and nobody to tell it to
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


class _Parser(argparse.ArgumentParser):
    """argparse ends with 2 on bad usage; the table of exit codes says 64."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _config_first(arguments: Sequence[str]) -> list[str]:
    """Let --config stand behind the verb too, where people type it; what follows `--` is the user's own command."""
    ours = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    moved: list[str] = []
    for at, word in reversed(list(enumerate(ours))):
        if word.startswith("--config="):
            moved = [ours.pop(at), *moved]
        elif word == "--config" and at + 1 < len(ours):
            moved = [ours.pop(at), ours.pop(at), *moved]
    return [*moved, *ours, *arguments[len(ours) + len(moved) :]]


def _verb_of(arguments: Sequence[str]) -> str | None:
    skip = False
    for word in arguments:
        if skip:
            skip = False
        elif word == "--config":
            skip = True
        elif not word.startswith("-"):
            return word if word in VERBS else None
    return None


def _parser(verb: str | None) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lrms-vm",
        description=__doc__.partition("\n")[0] if verb else "Batch jobs in signed virtual machine images.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lrms-vm {__version__}")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="the node's configuration (/etc/lrms_vm/lrms_vm.toml)"
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    if verb is None:
        for name, (_, line) in VERBS.items():
            verbs.add_parser(name, help=line)
        return parser
    modules, line = VERBS[verb]
    target = verbs
    if verb in _GROUPS:
        group = verbs.add_parser(verb, help=line, description=line)
        target = group.add_subparsers(dest=f"{verb}_verb", metavar="VERB", parser_class=_Parser, required=True)
    for module in modules:
        importlib.import_module(f"lrms_vm.cli.{module}").register(target)
    return parser
