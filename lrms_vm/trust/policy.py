"""Who may build and who may run: trust.toml, read once into a frozen value (docs/trust.md).

Default deny. Unknown keys, unknown values and rules that could never match are errors, and so is a setting that this
version would not honour: a switch that is silently not read is worse than none.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase
from typing import Any

from lrms_vm.errors import ConfigError, UsageError
from lrms_vm.trust import dn
from lrms_vm.trust.digests import STRONG
from lrms_vm.units import parse_duration_s, parse_size_bytes

MAX_BYTES = 1 << 20
MAX_RULES = 1000
_HEX_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})", re.ASCII)
_RULE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,63}", re.ASCII)


@dataclass(frozen=True)
class Builder:
    """One who may sign images whose names match."""

    name: str
    issuer: dn.Dn
    subject: dn.Dn
    images: tuple[str, ...]
    signatures: tuple[str, ...] = ("list", "cms")
    spki_sha256: tuple[str, ...] = ()  # hex; empty: any key that the CA certifies
    vo: tuple[str, ...] = ()  # read by signed image lists
    formats: tuple[str, ...] = ("raw",)
    allow_sha1_until: date | None = None  # the last day, UTC
    where: str = ""  # file:line

    def may_name(self, image_name: str) -> bool:
        return _matches(self.images, image_name)


@dataclass(frozen=True)
class Runner:
    """Those who may run images whose names match. Every key that is there must hold."""

    name: str
    images: tuple[str, ...]
    users: tuple[str, ...] = ()  # "*": everybody
    groups: tuple[str, ...] = ()
    accounts: tuple[str, ...] = ()
    fqan: tuple[str, ...] = ()  # we know nobody's yet: such a rule matches no job
    partitions: tuple[str, ...] = ()  # empty: every one
    builders: tuple[str, ...] = ()  # names of builder rules; empty: every one
    max_memory_mib: int | None = None
    network: str | None = None  # the most a job may have
    where: str = ""

    def may_run(
        self, *, user: str, groups: Sequence[str], account: str, partition: str, image_name: str, builder: str
    ) -> bool:
        return (
            not self.fqan
            and (not self.users or "*" in self.users or user in self.users)
            and (not self.groups or not set(self.groups).isdisjoint(groups))
            and (not self.accounts or account in self.accounts)
            and (not self.partitions or partition in self.partitions)
            and (not self.builders or builder in self.builders)
            and _matches(self.images, image_name)
        )


@dataclass(frozen=True)
class Block:
    """What is refused whatever else the policy says."""

    reason: str
    spki_sha256: str | None = None
    cert_sha256: str | None = None
    dn: dn.Dn | None = None  # a subject
    digest: str | None = None  # sha256 of an image, hex
    list: str | None = None  # identifier of a signed image list, with below_version
    below_version: str | None = None
    until: date | None = None  # the last day, UTC; None: for ever
    where: str = ""

    def holds(self, on: date) -> bool:
        return self.until is None or on <= self.until


@dataclass(frozen=True)
class Policy:
    """The whole file. What it does not say has the strict value."""

    builders: tuple[Builder, ...] = ()
    runners: tuple[Runner, ...] = ()
    blocks: tuple[Block, ...] = ()
    ca_dir: str = "/etc/grid-security/certificates"
    namespaces: str = "require"  # require | if-present | ignore
    min_rsa_bits: int = 2048
    digests: tuple[str, ...] = STRONG
    max_list_age_s: int = 35 * 86400
    max_image_bytes: int = 64 << 30
    max_virtual_bytes: int = 256 << 30
    max_ratio: int = 100
    formats: tuple[str, ...] = ("raw",)
    contact: str = "your site's administrators"
    source: str = "built-in defaults"


def parse_policy(text: bytes, *, source: str) -> Policy:
    """Read trust.toml. Raises `ConfigError` naming every problem with its key."""
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{source}: {len(text)} bytes; a policy has at most {MAX_BYTES}", code="policy-unreadable")
    try:
        decoded = text.decode()
        table = tomllib.loads(decoded)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and TOMLDecodeError are ValueErrors
        raise ConfigError(f"{source}: not TOML: {str(error)[:200]}", code="policy-unreadable") from error
    problems: list[str] = []
    policy = _policy(_Table(table, "", problems), decoded, source, problems)
    if problems:
        shown = "; ".join(problems[:20])
        raise ConfigError(f"{source}: {shown}", hint="see docs/trust.md", code="policy-invalid")
    return policy


def _matches(patterns: Sequence[str], name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _policy(table: _Table, text: str, source: str, problems: list[str]) -> Policy:
    version = table.take("version")
    if version != 1 or isinstance(version, bool):
        problems.append(f"version: expected 1, got {version!r:.40}")
    defaults = table.table("defaults")
    values = _defaults(defaults)
    defaults.end()
    builders, runners, blocks = [], [], []
    for rule, where in _rules(table, "builder", text, source, problems):
        builders.append(_builder(rule, where))
    for rule, where in _rules(table, "runner", text, source, problems):
        runners.append(_runner(rule, where))
    for rule, where in _rules(table, "block", text, source, problems):
        blocks.append(_block(rule, where))
    table.end()
    problems += _contradictions(builders, runners)
    return Policy(builders=tuple(builders), runners=tuple(runners), blocks=tuple(blocks), source=source, **values)


def _defaults(table: _Table) -> dict[str, Any]:
    base = Policy()
    # Each of these has one value that this version honours.
    table.word("action", "deny", ("deny",))
    table.word("crl", "require", ("require",))
    table.word("proxy_signers", "never", ("never",))
    return {
        "ca_dir": table.path("ca_dir", base.ca_dir),
        "namespaces": table.word("namespaces", base.namespaces, ("require", "if-present", "ignore")),
        "min_rsa_bits": table.number("min_rsa", base.min_rsa_bits, 2048, 8192),
        "digests": table.words("digests", STRONG, default=base.digests),
        "max_list_age_s": table.duration_s("max_list_age", base.max_list_age_s),
        "max_image_bytes": table.size_bytes("max_image", base.max_image_bytes),
        "max_virtual_bytes": table.size_bytes("max_virtual", base.max_virtual_bytes),
        "max_ratio": table.number("max_ratio", base.max_ratio, 1, 1_000_000),
        "formats": table.words("formats", ("raw", "qcow2"), default=base.formats),
        "contact": table.text("contact") or base.contact,
    }


def _builder(table: _Table, where: str) -> Builder:
    signatures = table.words("signatures", ("list", "cms", "dgst"), default=("list", "cms"))
    sha1_until = table.day("allow_sha1_until")
    if sha1_until is not None and "dgst" not in signatures:
        table.problem("allow_sha1_until", 'needs "dgst" among the signatures')
    table.flag("audit", only=False)
    return Builder(
        name=table.rule_name(),
        issuer=table.name("issuer", required=True) or (),
        subject=table.name("subject", required=True) or (),
        images=table.texts("images", required=True),
        signatures=signatures,
        spki_sha256=tuple(table.digest("spki_sha256", one) for one in table.texts("spki_sha256")),
        vo=table.texts("vo"),
        formats=table.words("formats", ("raw", "qcow2"), default=("raw",)),
        allow_sha1_until=sha1_until,
        where=where,
    )


def _runner(table: _Table, where: str) -> Runner:
    who = {key: table.texts(key) for key in ("users", "groups", "accounts", "fqan")}
    if not any(who.values()):
        table.problem("users", 'missing: say who ("*" for everybody), by users, groups, accounts or fqan')
    network = table.text("network")
    if network is not None and network not in ("none", "nat") and re.fullmatch(r"bridge:[\w.-]{1,15}", network) is None:
        table.problem("network", f"expected none, nat or bridge:NAME, got {network!r:.40}")
    table.flag("extra_disks", only=False)
    table.word("cloud_init", "site-only", ("site-only",))
    memory_bytes = table.size_bytes("max_mem", 0)
    return Runner(
        name=table.rule_name(),
        images=table.texts("images", required=True),
        partitions=table.texts("partitions"),
        builders=table.texts("builders"),
        max_memory_mib=memory_bytes >> 20 if memory_bytes else None,
        network=network,
        where=where,
        **who,
    )


def _block(table: _Table, where: str) -> Block:
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
    return block


def _contradictions(builders: Sequence[Builder], runners: Sequence[Runner]) -> list[str]:
    problems = []
    for kind, names in (("builder", [one.name for one in builders]), ("runner", [one.name for one in runners])):
        problems += [f"{kind} {name!r}: named twice" for name in sorted({n for n in names if names.count(n) > 1})]
    known = {one.name for one in builders}
    seen: dict[object, str] = {}
    for one in builders:
        twin = seen.setdefault((one.issuer, one.subject, one.images, one.spki_sha256), one.name)
        if twin != one.name:
            problems.append(f"builder {one.name!r}: says the same as builder {twin!r}")
    for rule in runners:
        problems += [
            f"runner {rule.name!r}: there is no builder {name!r}" for name in rule.builders if name not in known
        ]
    return problems


def _rules(table: _Table, kind: str, text: str, source: str, problems: list[str]) -> list[tuple[_Table, str]]:
    """The tables of `[[kind]]`, each with file:line, both ended once read by the caller's `_Table`."""
    found = table.take(kind)
    if found is None:
        return []
    if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
        problems.append(f"{kind}: expected [[{kind}]] tables")
        return []
    if len(found) > MAX_RULES:
        problems.append(f"{kind}: {len(found)} rules; at most {MAX_RULES}")
        return []
    header = re.compile(rf"\s*\[\[\s*{kind}\s*\]\]")
    lines = [number for number, line in enumerate(text.splitlines(), 1) if header.match(line)]
    rules = []
    for index, one in enumerate(found):
        # A header inside a multi-line text would shift the numbers: then better none than a wrong one.
        where = f"{source}:{lines[index]}" if len(lines) == len(found) else source
        rules.append((_Table(one, f"[[{kind}]] {index + 1}", problems, closed=_KEYS[kind]), where))
    return rules


# fmt: off
_KEYS: Mapping[str, tuple[str, ...]] = {
    "builder": (
        "name", "issuer", "subject", "spki_sha256", "vo", "images", "signatures", "allow_sha1_until", "formats",
        "audit",
    ),
    "runner": (
        "name", "fqan", "users", "groups", "accounts", "partitions", "images", "builders",
        "max_mem", "network", "extra_disks", "cloud_init",
    ),
    "block": ("spki_sha256", "cert_sha256", "dn", "digest", "list", "below_version", "reason", "until"),
}
# fmt: on


class _Table:
    """One TOML table being read: every getter notes its problem and goes on, so that all are reported at once."""

    def __init__(
        self, values: Mapping[str, Any], where: str, problems: list[str], closed: Sequence[str] | None = None
    ) -> None:
        self._values = dict(values)
        self._where = where
        self._problems = problems
        for key in sorted(set(values) - set(closed)) if closed is not None else ():
            self.problem(key, "unknown key")

    def problem(self, key: str, what: str) -> None:
        shown = key if re.fullmatch(r"[\w-]{1,60}", key) else repr(key[:60])
        self._problems.append(f"{self._where} {shown}: {what}".strip())

    def take(self, key: str) -> Any:
        return self._values.pop(key, None)

    def end(self) -> None:
        for key in self._values:
            self.problem(key, "unknown key")

    def table(self, key: str) -> _Table:
        value = self.take(key)
        if value is not None and not isinstance(value, dict):
            self.problem(key, "expected a table")
            value = None
        return _Table(value or {}, key, self._problems)

    def text(self, key: str) -> str | None:
        value = self.take(key)
        if value is None:
            return None
        if isinstance(value, str) and 0 < len(value) <= 1000 and value.isprintable():
            return value
        self.problem(key, f"expected a text, got {value!r:.60}")
        return None

    def texts(self, key: str, *, required: bool = False) -> tuple[str, ...]:
        value = self.take(key)
        if value is None:
            if required:
                self.problem(key, "missing")
            return ()
        if (
            isinstance(value, list)
            and 0 < len(value) <= MAX_RULES
            and all(isinstance(one, str) and 0 < len(one) <= 1000 and one.isprintable() for one in value)
        ):
            return tuple(value)
        self.problem(key, f"expected a list of texts that is not empty, got {value!r:.60}")
        return ()

    def words(self, key: str, allowed: Sequence[str], *, default: tuple[str, ...]) -> tuple[str, ...]:
        if key not in self._values:
            return default
        words = self.texts(key)
        for word in words:
            if word not in allowed:
                self.problem(key, f"expected some of {', '.join(allowed)}, got {word!r:.40}")
        return words

    def word(self, key: str, default: str, allowed: Sequence[str]) -> str:
        value = self.take(key)
        if value is None:
            return default
        if value not in allowed:
            expected = " or ".join(allowed)
            self.problem(key, f"{value!r:.40} is not supported by this version; expected {expected}")
            return default
        return str(value)

    def flag(self, key: str, *, only: bool) -> None:
        value = self.take(key)
        if value is not None and value is not only:
            self.problem(key, f"{value!r:.40} is not supported by this version; expected {str(only).lower()}")

    def number(self, key: str, default: int, least: int, most: int) -> int:
        value = self.take(key)
        if value is None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        self.problem(key, f"expected {least} to {most}, got {value!r:.40}")
        return default

    def path(self, key: str, default: str) -> str:
        value = self.text(key)
        if value is not None and (not value.startswith("/") or ".." in value.split("/")):
            self.problem(key, f"expected an absolute path, got {value!r:.60}")
        return value or default

    def duration_s(self, key: str, default: int) -> int:
        value = self.text(key)
        try:
            return default if value is None else parse_duration_s(value, source=key)
        except UsageError as error:
            self.problem(key, str(error))
            return default

    def size_bytes(self, key: str, default: int) -> int:
        value = self.text(key)
        try:
            return default if value is None else parse_size_bytes(value, bare="", source=key)
        except UsageError as error:
            self.problem(key, str(error))
            return default

    def day(self, key: str) -> date | None:
        value = self.take(key)
        if value is None or type(value) is date:
            return value
        try:
            if isinstance(value, str) and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value, re.ASCII):
                return date.fromisoformat(value)
        except ValueError:
            pass  # reported below with every other form
        self.problem(key, f"expected a date like 2027-01-31, got {value!r:.40}")
        return None

    def digest(self, key: str, value: str) -> str:
        match = _HEX_DIGEST.fullmatch(value)
        if match is None:
            self.problem(key, f"expected a sha256 in 64 small hex digits, got {value!r:.80}")
            return ""
        return match[1]

    def version(self, key: str) -> str | None:
        value = self.take(key)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return None if value is None else str(value)
        if isinstance(value, str) and re.fullmatch(r"[0-9]+(\.[0-9]+){0,5}", value, re.ASCII):
            return value
        self.problem(key, f"expected a version like 42 or 1.10, got {value!r:.40}")
        return None

    def name(self, key: str, *, required: bool = False) -> dn.Dn | None:
        value = self.text(key)
        if value is None:
            if required and not any(f"{self._where} {key}:" in problem for problem in self._problems):
                self.problem(key, "missing")
            return None
        try:
            return dn.parse(value)
        except ValueError as error:
            self.problem(key, str(error))
            return None

    def rule_name(self) -> str:
        value = self.text("name")
        if value is None or _RULE_NAME.fullmatch(value) is None:
            self.problem("name", f"expected a plain name, got {value!r:.60}")
        return value or ""
