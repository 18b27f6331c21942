"""lrms-vm(1) from the parsers, lrms_vm.toml(5) from the settings, lrms_vm-trust.toml(5) from docs/trust.md."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields
from pathlib import Path

from lrms_vm import __version__, cli
from lrms_vm.config import Config, Kernel, Subscription
from lrms_vm.image import ImageEntry
from manual.roff import heading, paragraph, subheading, term, title, verbatim

ROOT = Path(__file__).resolve().parent.parent
EXIT_CODES = {
    "0-255": "the payload's own, where there was one",
    "64": "a command line or option that cannot be read",
    "69": "this node's fault",
    "70": "the guest was lost",
    "75": "something all nodes share is down: try again later",
    "77": "refused",
    "78": "the site's configuration is wrong",
}
SEE_ALSO = "lrms-vm(1), lrms_vm.toml(5), lrms_vm-trust.toml(5), and the pages in /usr/share/doc/lrms-vm"


def pages() -> dict[str, str]:
    """By file name."""
    return {
        "lrms-vm.1": command(),
        "lrms_vm.toml.5": settings(),
        "lrms_vm-trust.toml.5": policy(),
    }


def command() -> str:
    """Every verb with its options."""
    whole = cli._parser(None)
    parts = [
        title("lrms-vm", 1, __version__, str(whole.description).rstrip(".").lower()),
        heading("Synopsis"),
        ".B lrms\\-vm\n[\\fB\\-\\-config\\fR \\fIFILE\\fR] \\fIVERB\\fR ...\n",
        heading("Options"),
        *_options(whole),
        heading("Verbs"),
    ]
    for verb in cli.VERBS:
        group = _child(cli._parser(verb), verb)
        inner = _children(group)
        for name, parser in inner.items() if inner else [("", group)]:
            parts.append(subheading(f"{verb} {name}".strip()))
            usage = re.sub(r"\s+", " ", parser.format_usage().removeprefix("usage: ")).strip()
            parts += [paragraph(usage), paragraph(str(parser.description or cli.VERBS[verb][1])), *_options(parser)]
    parts += [heading("Exit status"), *(term(code, meaning) for code, meaning in EXIT_CODES.items())]
    parts += [heading("Examples"), verbatim(cli.EXAMPLES.partition("\n\n")[0].partition("\n")[2])]
    parts += [heading("Files"), term("/etc/lrms_vm/lrms_vm.toml", "the node's configuration")]
    parts += [term("/etc/lrms_vm/trust.toml", "who may build and who may run")]
    return "".join([*parts, heading("See also"), paragraph(SEE_ALSO)])


def settings() -> str:
    """Every key of lrms_vm.toml; its words are those of the example, or of the source."""
    example, source = (ROOT / "examples/lrms_vm.toml").read_text(), (ROOT / "lrms_vm/config.py").read_text()
    words = {**MORE_SETTINGS, **_source_words(source), **_example_words(example)}
    tables = ("kernels", "images", "lists", "cache_quota")
    parts = [
        title("lrms_vm.toml", 5, __version__, "what a node has: hypervisor, kernels, images, cache"),
        heading("Description"),
        paragraph(
            "/etc/lrms_vm/lrms_vm.toml is TOML, root's, mode 0644; nobody else may be able to write it or a directory "
            "above it. version = 1 must be there. An unknown key is an error."
        ),
        heading("Settings"),
    ]
    for one in fields(Config):
        if one.name not in (*tables, "source"):
            value = one.default if not isinstance(one.default, tuple) else list(one.default)
            shown = str(value).lower() if isinstance(value, bool) else str(value).replace("'", '"')
            shown = f'"{shown}"' if isinstance(value, str) else shown
            parts.append(term(one.name, words.get(one.name, ""), f"= {shown}"))
    for name, kind, what in (
        ("kernels", Kernel, "a kernel that guests boot"),
        ("images", ImageEntry, "an image that --vm-image may name"),
        ("lists", Subscription, "a signed image list whose images jobs may name"),
    ):
        parts.append(heading(f"[{name}.NAME]: {what}"))
        for one in fields(kind):
            if one.name not in ("name", "listed"):
                parts.append(term(one.name, words.get(f"{name}.{one.name}", "")))
    parts += [heading("[cache_quota]"), term("VO", "what the images of this VO may take", '= "SIZE"')]
    return "".join([*parts, heading("Example"), verbatim(example), heading("See also"), paragraph(SEE_ALSO)])


def policy() -> str:
    """Every key of trust.toml, as docs/trust.md shows them."""
    text = (ROOT / "docs/trust.md").read_text()
    section = text.partition("\n## The policy\n")[2].partition("\n## ")[0]
    parts = [
        title("lrms_vm-trust.toml", 5, __version__, "who may build images and who may run them"),
        heading("Description"),
        paragraph(
            "/etc/lrms_vm/trust.toml is TOML, root's. What it does not allow is refused; an unknown key is an error. "
            "`lrms-vm policy check` tells every mistake, `lrms-vm policy explain` by which rule a user runs an image."
        ),
        heading("Keys"),
    ]
    for block in re.split(r"\n\n(?=\S)|(?<=\S)\n\n(?=    )", section):
        parts.append(verbatim(block) if block.lstrip("\n").startswith("    ") else paragraph(block.strip()))
    parts += [heading("Also"), *(term(name, meaning) for name, meaning in MORE_KEYS.items())]
    return "".join([*parts, heading("See also"), paragraph(SEE_ALSO)])


# Those that docs/trust.md leaves to their own sections, or that have one value so far.
MORE_KEYS = {
    "voms_gridmapfile": "in [defaults]: a grid-mapfile(5), for rules with fqan",
    "fqan": "in [[runner]]: VOMS attributes of the user, as voms_mapfile maps them",
    "accounts": "in [[runner]]: accounts of the batch system",
    "root": "in [tiers.NAME]: true lets the user be root in the guest",
    "action": 'in [defaults]: "deny"',
    "proxy_signers": 'in [defaults]: "never"',
    "cloud_init": 'in [[runner]]: "site-only"',
    "extra_disks": "in [[runner]]: not given",
}


# Those whose names say it to whoever reads the source.
MORE_SETTINGS = {
    "libvirt_uri": "as virsh -c has it; on Xen xen:///system",
    "pygrub_program": 'what reads an image\'s boot loader for boot = "pygrub"',
    "kernels.vmlinuz": "an absolute path on the node",
    "kernels.initrd": "the same",
    "kernels.vmlinuz_sha256": "its digest in hex, checked on the node",
    "kernels.initrd_sha256": "the same",
    "images.url": "an absolute path, or http(s)://",
    "images.signature_url": "where its signature is; without: beside the image",
    "images.certificate_url": "where a bare signature's certificate is; without: beside the image",
    "images.version": "what NAME@VERSION says",
    "images.mirrors": "where the same bytes are, too, in the order in which to ask",
}


def _children(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _child(parser: argparse.ArgumentParser, verb: str) -> argparse.ArgumentParser:
    return _children(parser)[verb]


def _options(parser: argparse.ArgumentParser) -> list[str]:
    told = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction | argparse._HelpAction):
            continue
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else ""
        takes = action.option_strings and action.nargs != 0
        value = str(action.metavar or choices or action.dest.upper()) if takes else ""
        told.append(term(name, str(action.help or "").replace("%%", "%") % {"default": action.default}, value))
    return told


def _source_words(source: str) -> dict[str, str]:
    found = {}
    table = ""
    for line in source.splitlines():
        if line.startswith("class "):
            table = {"Kernel": "kernels.", "Subscription": "lists.", "Config": ""}.get(re.split(r"\W", line)[1], "?")
        if match := re.fullmatch(r"    (\w+): [^#]+#  *(.+)", line):
            found[table + match[1]] = match[2]
    return found


def _example_words(example: str) -> dict[str, str]:
    """What stands behind a key, its next lines included."""
    found: dict[str, str] = {}
    last = table = ""
    for line in example.splitlines():
        bare = line.removeprefix("# ")
        if match := re.match(r"\[(\w+)", bare):
            table, last = match[1] + ".", ""
        elif match := re.match(r"(\w+) = (?:\"[^\"]*\"|[^#]*)(?:#\s*(.*))?$", bare):
            last = (table if line.startswith("#") else "") + match[1]
            found[last] = match[2] or found.get(last, "")
        elif (match := re.match(r"\s{20,}#\s*(.*)$", line)) and last:
            found[last] += " " + match[1]
        elif not line.strip():
            last = ""
    return {key: words for key, words in found.items() if words}
