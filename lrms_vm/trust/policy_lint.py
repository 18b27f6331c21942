"""What a policy says without meaning it: rules that never decide, that nobody meets, that have run out. Pure.

`parse_policy` refuses what cannot be meant. What is here can be meant, and mostly is a mistake.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import date, timedelta

from lrms_vm.trust import voms
from lrms_vm.trust.patterns import all_covered, covers, may_overlap
from lrms_vm.trust.policy_values import Builder, Policy, Runner
from lrms_vm.values import dataclass

ERROR, WARNING, NOTE = "error", "warning", "note"


@dataclass(frozen=True)
class Finding:
    """One thing to look at."""

    level: str  # "error": a rule does nothing, or less than it says; "warning": look at it; "note"
    code: str
    where: str  # file:line
    message: str


def lint(policy: Policy, *, today: date, strangers: Collection[str] = ()) -> list[Finding]:
    """In the order of the file. `strangers`: "user:NAME" and "group:NAME" that are not known on this machine."""
    found = [*_defaults(policy), *_tiers(policy)]
    for index, builder in enumerate(policy.builders):
        found += _builder(builder, policy.builders[:index], policy, today)
    for index, runner in enumerate(policy.runners):
        found += _runner(runner, policy.runners[:index], policy, strangers)
    for block in policy.blocks:
        if block.until is not None and not block.holds(today):
            found.append(Finding(NOTE, "block-expired", block.where, f"blocks nothing since {block.until}: remove it"))
    return found


def _defaults(policy: Policy) -> Iterator[Finding]:
    where = policy.defaults_where
    if not policy.builders or not policy.runners:
        missing = "builder" if not policy.builders else "runner"
        yield Finding(WARNING, "refuses-all", policy.source, f"there is no [[{missing}]]: every image is refused")
    if policy.crl == "if-present":
        yield Finding(
            WARNING,
            "crl-if-present",
            where,
            'crl = "if-present": WHERE A CA\'S CRL IS NOT THERE, CERTIFICATES THAT IT REVOKED ARE ACCEPTED. A CRL that '
            'fetch-crl failed to get looks the same as one that was never published; use "require"',
        )
    if policy.crl_grace_s:
        hours = policy.crl_grace_s / 3600
        yield Finding(
            WARNING if hours > 24 else NOTE,
            "crl-grace",
            where,
            f"crl_grace: whoever is revoked stays trusted up to {hours:.0f} h longer where fetch-crl fails",
        )
    if policy.namespaces != "require":
        yield Finding(
            WARNING,
            "namespaces-not-required",
            where,
            f'namespaces = "{policy.namespaces}": a CA may give names that belong to another',
        )


def _tiers(policy: Policy) -> Iterator[Finding]:
    used = {rule.tier for rule in policy.runners}
    for tier in policy.tiers:
        if tier.name not in used:
            yield Finding(NOTE, "tier-unused", tier.where, f"tier {tier.name!r}: no [[runner]] has it")


def _builder(rule: Builder, earlier: Sequence[Builder], policy: Policy, today: date) -> Iterator[Finding]:
    def finding(level: str, code: str, message: str) -> Finding:
        return Finding(level, code, rule.where, f"builder {rule.name!r}: {message}")

    if rule.audit:
        yield finding(NOTE, "audit", "has audit = true: it is logged, and lets nothing pass")
    for other in earlier:
        if (other.issuer, other.subject) != (rule.issuer, rule.subject) or other.audit != rule.audit:
            continue
        if _builds_all(other, rule):
            yield finding(
                ERROR, "unreachable", f"never decides: {other.name!r} ({other.where}) lets all of it pass before"
            )
        elif may_overlap(other.images, rule.images) and not all_covered(rule.images, other.images):
            yield finding(
                NOTE, "overlap", f"is for some of the images of {other.name!r} ({other.where}), which is asked first"
            )
    if "*" in rule.images:
        yield finding(WARNING, "builds-all", 'images = ["*"]: this signer may replace every image of the site')
    if rule.allow_sha1_until is not None:
        left = rule.allow_sha1_until - today
        if left < timedelta(0):
            yield finding(WARNING, "expired", f"allow_sha1_until = {rule.allow_sha1_until} is over")
        else:
            yield finding(WARNING, "sha1", f"accepts SHA-1 until {rule.allow_sha1_until}: two disks can have one SHA-1")
    useless = [one for one in rule.formats if one not in policy.formats]
    if useless:
        level = ERROR if len(useless) == len(rule.formats) else WARNING
        yield finding(level, "format-refused", f"accepts {', '.join(useless)}, which formats in [defaults] does not")
    for block in policy.blocks:
        blocked = block.dn == rule.subject or (block.spki_sha256 and rule.spki_sha256 == (block.spki_sha256,))
        if blocked and block.holds(today):
            yield finding(WARNING, "blocked", f"is blocked by {block.where}: {block.reason}")
    if policy.runners and not rule.audit and not any(_may_meet(runner, rule) for runner in policy.runners):
        yield finding(WARNING, "runs-nowhere", "no [[runner]] lets anybody run what it builds")


def _builds_all(rule: Builder, other: Builder) -> bool:
    """Whether `rule` lets everything pass that `other` would."""
    return (
        all_covered(rule.images, other.images)
        and (not rule.spki_sha256 or (bool(other.spki_sha256) and set(other.spki_sha256) <= set(rule.spki_sha256)))
        and set(other.signatures) <= set(rule.signatures)
        and set(other.formats) <= set(rule.formats)
        and (not rule.vo or (bool(other.vo) and set(other.vo) <= set(rule.vo)))
        and (
            other.allow_sha1_until is None
            or (rule.allow_sha1_until is not None and rule.allow_sha1_until >= other.allow_sha1_until)
        )
    )


def _runner(rule: Runner, earlier: Sequence[Runner], policy: Policy, strangers: Collection[str]) -> Iterator[Finding]:
    def finding(level: str, code: str, message: str) -> Finding:
        return Finding(level, code, rule.where, f"runner {rule.name!r}: {message}")

    for other in earlier:
        if _runs_all(other, rule):
            yield finding(
                ERROR, "unreachable", f"never decides: {other.name!r} ({other.where}) is asked first and covers it"
            )
    if rule.fqan:
        yield from (finding(*one) for one in _fqans(rule, policy))
    if rule.accounts:
        yield finding(
            NOTE,
            "account-claimed",
            "accounts: a job names its account; this counts only where the batch system checks that the user may "
            "(Slurm: AccountingStorageEnforce=associations)",
        )
    for key, kind, names in (("users", "user", rule.users), ("groups", "group", rule.groups)):
        unknown = [name for name in names if f"{kind}:{name}" in strangers]
        if unknown:
            level = WARNING if len(unknown) == len(names) else NOTE
            yield finding(level, "unknown-here", f"{key}: not known on this machine: {', '.join(unknown[:5])}")
    built = [one for one in policy.builders if not one.audit and _may_meet(rule, one)]
    if policy.builders and not built:
        yield finding(ERROR, "matches-nobody", "no builder of it may sign images of these names (or all have audit)")
    if "*" in rule.users and "*" in rule.images and not (rule.partitions or rule.builders):
        yield finding(NOTE, "everybody-everything", "everybody may run every image that anybody may build")


def _fqans(rule: Runner, policy: Policy) -> Iterator[tuple[str, str, str]]:
    if policy.voms_mapfile is None and policy.voms_gridmapfile is None:
        yield (
            ERROR,
            "fqan-without-mapfile",
            "fqan matches nobody: say voms_mapfile in [defaults], the file from which users get their groups",
        )
    elif not voms.is_mapped(rule.fqan, policy.voms):
        yield ERROR, "matches-nobody", f"fqan: in the mapfile no group or account is for {', '.join(rule.fqan)} only"
    for one in rule.fqan:
        if one.endswith("*") and "/" not in one[1:]:
            exact = f"{one[:-1]!r} and {one[:-1] + '/*'!r}"
            yield WARNING, "fqan-wide", f"{one!r} covers other VOs whose names begin so too; write {exact}"


def _runs_all(rule: Runner, other: Runner) -> bool:
    """Whether `rule` decides wherever `other` could."""

    def wider(mine: Sequence[str], theirs: Sequence[str]) -> bool:
        return not mine or "*" in mine or (bool(theirs) and set(theirs) <= set(mine))

    return (
        all_covered(rule.images, other.images)
        and wider(rule.users, other.users)
        and wider(rule.groups, other.groups)
        and wider(rule.accounts, other.accounts)
        and wider(rule.partitions, other.partitions)
        and wider(rule.builders, other.builders)
        and (not rule.fqan or (bool(other.fqan) and all(any(covers(a, b) for a in rule.fqan) for b in other.fqan)))
    )


def _may_meet(runner: Runner, builder: Builder) -> bool:
    return (not runner.builders or builder.name in runner.builders) and may_overlap(runner.images, builder.images)
