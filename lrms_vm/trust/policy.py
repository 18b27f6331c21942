"""Reads trust.toml once into a frozen `Policy` (docs/trust.md). Pure.

Default deny. Unknown keys, unknown values and rules that could never match are errors, and so is a setting that this
version would not honour: a switch that is silently not read is worse than none.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lrms_vm.errors import ConfigError
from lrms_vm.trust import voms
from lrms_vm.trust.policy_values import DAY_S, Block, Builder, Policy, Runner, Tier, matches
from lrms_vm.trust.toml_table import MAX_ITEMS, Table, is_rule_name

__all__ = ["Block", "Builder", "Policy", "Runner", "Tier", "matches", "parse_policy", "problems_of"]

MAX_BYTES = 1 << 20
MAX_GRACE_S = 30 * DAY_S  # a CRL that is older says nothing of who is revoked
MAX_KEY_PARTS = 100
_FORMATS = ("raw", "qcow2")
_WHO = ("users", "groups", "accounts", "fqan")


def parse_policy(text: bytes, *, source: str) -> Policy:
    """Read trust.toml. Raises `ConfigError` naming every problem with its key, and nothing else."""
    policy, problems = _read(text, source)
    if problems:
        shown = "; ".join(problems[:20])
        raise ConfigError(f"{source}: {shown}", hint="see docs/trust.md", code="policy-invalid")
    return policy


def problems_of(text: bytes, *, source: str) -> tuple[str, ...]:
    """Every reason why `parse_policy` would refuse this, "line N, " first where that is known. Empty: it would not.

    Raises `ConfigError` "policy-unreadable" for what is not TOML.
    """
    return tuple(_read(text, source)[1])


def _read(text: bytes, source: str) -> tuple[Policy, list[str]]:
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{source}: {len(text)} bytes; a policy has at most {MAX_BYTES}", code="policy-unreadable")
    problems: list[str] = []
    try:
        decoded = text.decode()
        if any(_has_endless_key(line) for line in decoded.split("\n")):
            raise ValueError(f"a key with more than {MAX_KEY_PARTS} parts")
        table = Table(tomllib.loads(decoded), "", problems)
        return _policy(table, _Lines(decoded, source), problems), problems
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and TOMLDecodeError are ValueErrors
        raise ConfigError(
            f"{source}: not TOML: {str(error)[:200]}", hint="see docs/trust.md", code="policy-unreadable"
        ) from error


def _has_endless_key(line: str) -> bool:
    """tomllib's memory grows with the square of a dotted key's parts: a line of 400 KB takes all there is."""
    if line.lstrip().startswith("#"):
        return False
    keys = [line] if line.lstrip().startswith("[") else line.split("=")[:-1]
    return any(key.count(".") > MAX_KEY_PARTS for key in keys)


def _policy(table: Table, lines: _Lines, problems: list[str]) -> Policy:
    version = table.take("version")
    if version != 1 or isinstance(version, bool):
        problems.append(f"version: expected 1, got {version!r:.40}")
    defaults = table.table("defaults", lines.opens("defaults", "defaults"))
    values = _defaults(defaults)
    defaults.end()
    tiers = []
    for name, content in table.named_tables("tiers").items():
        if not is_rule_name(name):
            problems.append(f"tiers: expected a plain name, got {name!r:.60}")
        tier = Table(content, lines.opens(f"tiers.{name}", f"tiers.{name:.64}"), problems)
        tiers.append(_tier(tier, name, lines.where(f"tiers.{name}")))
        tier.end()
    builders = [_builder(rule, where) for rule, where in _rules(table, "builder", lines, problems)]
    runners = [
        _runner(rule, where, {one.name: one for one in tiers})
        for rule, where in _rules(table, "runner", lines, problems)
    ]
    blocks = [_block(rule, where) for rule, where in _rules(table, "block", lines, problems)]
    table.end()
    problems += _contradictions(builders, runners)
    return Policy(
        builders=tuple(builders),
        runners=tuple(runners),
        blocks=tuple(blocks),
        tiers=tuple(tiers),
        source=lines.source,
        defaults_where=lines.where("defaults"),
        **values,
    )


def _defaults(table: Table) -> dict[str, Any]:
    base = Policy()
    # Each of these has one value that this version honours. A proxy lasts half a day and names its owner all the same:
    # what would be signed with one would boot until the evening.
    table.word("action", "deny", ("deny",))
    table.word("proxy_signers", "never", ("never",))
    return {
        "ca_dir": table.path("ca_dir", base.ca_dir),
        "crl": table.word("crl", base.crl, ("require", "if-present")),
        "crl_grace_s": table.duration_s("crl_grace", base.crl_grace_s, most=MAX_GRACE_S),
        "namespaces": table.word("namespaces", base.namespaces, ("require", "if-present", "ignore")),
        "min_rsa_bits": table.number("min_rsa", base.min_rsa_bits, 2048, 8192),
        "digests": table.words("digests", base.digests, default=base.digests),
        "max_list_age_s": table.duration_s("max_list_age", base.max_list_age_s),
        "s0_max_age_s": table.duration_s("s0_max_age", base.s0_max_age_s),
        "max_image_bytes": table.size_bytes("max_image", base.max_image_bytes),
        "max_virtual_bytes": table.size_bytes("max_virtual", base.max_virtual_bytes),
        "max_ratio": table.number("max_ratio", base.max_ratio, 1, 1_000_000),
        "formats": table.words("formats", _FORMATS, default=base.formats),
        "voms_mapfile": table.path("voms_mapfile", "") or None,
        "voms_gridmapfile": table.path("voms_gridmapfile", "") or None,
        "contact": table.text("contact") or base.contact,
    }


def _tier(table: Table, name: str, where: str) -> Tier:
    network = table.network("network", "any") or "none"
    return Tier(
        name=name,
        network=None if network == "any" else network,
        max_memory_mib=table.memory_mib("max_mem"),
        shares=table.word("shares", "work_dir", ("none", "work_dir", "all")),
        root=table.flag("root"),
        where=where,
    )


def _builder(table: Table, where: str) -> Builder:
    signatures = table.words("signatures", ("list", "cms", "dgst"), default=("list", "cms"))
    sha1_until = table.day("allow_sha1_until")
    if sha1_until is not None and "dgst" not in signatures:
        table.problem("allow_sha1_until", 'needs "dgst" among the signatures')
    builder = Builder(
        name=table.rule_name(),
        issuer=table.name("issuer", required=True) or (),
        subject=table.name("subject", required=True) or (),
        images=table.texts("images", required=True),
        signatures=signatures,
        spki_sha256=tuple(table.digest("spki_sha256", one) for one in table.texts("spki_sha256")),
        vo=table.texts("vo"),
        formats=table.words("formats", _FORMATS, default=("raw",)),
        allow_sha1_until=sha1_until,
        audit=table.flag("audit"),
        where=where,
    )
    table.end()
    return builder


def _runner(table: Table, where: str, tiers: Mapping[str, Tier]) -> Runner:
    who: dict[str, Any] = {key: table.texts(key) for key in _WHO}
    if not any(who.values()):
        table.problem("users", 'missing: say who ("*" for everybody), by users, groups, accounts or fqan')
    for fqan in who["fqan"]:
        if not voms.is_fqan(fqan):
            table.problem("fqan", f"expected e.g. /atlas/Role=production, got {fqan!r:.60}")
    table.never("extra_disks")
    table.word("cloud_init", "site-only", ("site-only",))
    runner = Runner(
        name=table.rule_name(),
        images=table.texts("images", required=True),
        partitions=table.texts("partitions"),
        builders=table.texts("builders"),
        where=where,
        **who,
        **_granted(table, tiers),
    )
    table.end()
    return runner


def _granted(table: Table, tiers: Mapping[str, Tier]) -> dict[str, Any]:
    """What the rule gives: its tier's, or what it says itself, but not both."""
    network, memory_mib, name = table.network("network"), table.memory_mib("max_mem"), table.text("tier")
    if name is None:
        return {"network": network, "max_memory_mib": memory_mib}
    if network is not None or memory_mib is not None:
        table.problem("tier", "network and max_mem are the tier's to say; take one of them out")
    if name not in tiers:
        table.problem("tier", f"there is no [tiers.{name:.64}]")
    tier = tiers.get(name, Tier(name))
    return {
        "tier": name,
        "network": tier.network,
        "max_memory_mib": tier.max_memory_mib,
        "shares": tier.shares,
        "root": tier.root,
    }


def _block(table: Table, where: str) -> Block:
    found = {key: table.text(key) for key in ("spki_sha256", "cert_sha256", "digest")}
    block = Block(
        reason=table.text("reason") or "no reason given",
        dn=table.name("dn"),
        list=table.text("list"),
        below_version=table.version("below_version"),
        until=table.day("until"),
        where=where,
        **{key: None if value is None else table.digest(key, value) for key, value in found.items()},
    )
    if not any((block.spki_sha256, block.cert_sha256, block.digest, block.dn, block.list)):
        table.problem("spki_sha256", "missing: say what is blocked, by spki_sha256, cert_sha256, dn, digest or list")
    if (block.list is None) != (block.below_version is None):
        table.problem("list", "list and below_version go together")
    table.end()
    return block


def _contradictions(builders: Sequence[Builder], runners: Sequence[Runner]) -> list[str]:
    problems = []
    for kind, names in (("builder", [one.name for one in builders]), ("runner", [one.name for one in runners])):
        problems += [f"{kind} {name!r}: named twice" for name in sorted({n for n in names if names.count(n) > 1})]
    known = {one.name for one in builders}
    seen: dict[Builder, str] = {}
    for one in builders:
        twin = seen.setdefault(replace(one, name="", where="", allow_sha1_until=None), one.name)
        if twin != one.name:
            problems.append(f"builder {one.name!r}: says the same as builder {twin!r}")
    for rule in runners:
        problems += [
            f"runner {rule.name!r}: there is no builder {name!r}" for name in rule.builders if name not in known
        ]
    return problems


def _rules(table: Table, kind: str, lines: _Lines, problems: list[str]) -> list[tuple[Table, str]]:
    """The tables of `[[kind]]`, each with file:line. Whoever reads one ends it."""
    found = table.tables(kind)
    rules = []
    for index, one in enumerate(found):
        number = lines.of_rule(kind, index, len(found))
        opens = f"{f'line {number}, ' if number else ''}[[{kind}]] {index + 1}"
        rules.append((Table(one, opens, problems), f"{lines.source}:{number}" if number else lines.source))
    return rules


class _Lines:
    """Where the tables begin, by their headers."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self._found: dict[str, list[int]] = {}
        for number, line in enumerate(text.split("\n"), 1):
            if match := re.match(r"\s*(\[\[?)([^\[\]]{1,200})\]", line):
                header = ".".join(part.strip().strip("\"'") for part in match[2].split(".", 1))
                self._found.setdefault(match[1] + header, []).append(number)

    def of_rule(self, kind: str, index: int, count: int) -> int | None:
        """A header inside a multi-line text would shift the numbers: then better none than a wrong one."""
        numbers = self._found.get(f"[[{kind}", [])
        return numbers[index] if len(numbers) == count <= MAX_ITEMS else None

    def where(self, table: str) -> str:
        """file:line of `[table]`; the file where it is not known."""
        numbers = self._found.get(f"[{table}", [])
        return f"{self.source}:{numbers[0]}" if len(numbers) == 1 else self.source

    def opens(self, table: str, shown: str) -> str:
        """How problems of `[table]` begin."""
        numbers = self._found.get(f"[{table}", [])
        return f"line {numbers[0]}, {shown}" if len(numbers) == 1 else shown
