"""Whatever is in trust.toml or a mapfile: a policy, or a `ConfigError` that says why not; and what patterns cover."""

from __future__ import annotations

import contextlib
from datetime import date
from fnmatch import fnmatchcase

from hypothesis import given, settings
from hypothesis import strategies as st

from lrms_vm.errors import ConfigError
from lrms_vm.trust import voms
from lrms_vm.trust.patterns import covers, may_overlap
from lrms_vm.trust.policy import Policy, parse_policy, problems_of
from lrms_vm.trust.policy_lint import lint

KEYS = [
    "version",
    "defaults",
    "builder",
    "runner",
    "block",
    "tiers",
    "action",
    "ca_dir",
    "crl",
    "crl_grace",
    "namespaces",
    "min_rsa",
    "digests",
    "max_list_age",
    "s0_max_age",
    "max_image",
    "max_virtual",
    "max_ratio",
    "formats",
    "proxy_signers",
    "voms_mapfile",
    "voms_gridmapfile",
    "contact",
    "name",
    "issuer",
    "subject",
    "spki_sha256",
    "vo",
    "images",
    "signatures",
    "allow_sha1_until",
    "audit",
    "fqan",
    "users",
    "groups",
    "accounts",
    "partitions",
    "builders",
    "max_mem",
    "network",
    "tier",
    "shares",
    "root",
    "extra_disks",
    "cloud_init",
    "cert_sha256",
    "dn",
    "digest",
    "list",
    "below_version",
    "reason",
    "until",
    "x",
]
VALUES = [
    "1", "0", "-1", "99999999999999999999", "1.5", "nan", "inf", "true", "false", "[]", "{}", "[1]", '[""]', '["*"]',
    '["a", "b"]', '"*"', '""', '"x"', '"1d"', '"999999999d"', '"1G"', '"999999999999999T"', '"require"',
    '"if-present"', '"none"', '"CN=x"', '"CN=x,DC=y+OU=z"', '"CN=\\\\"', '"CN=#04"', '"C=xyz"', '"1.2.3.4=x"',
    '"#"', '"CN="', "2027-01-31", "2027-01-31T00:00:00Z", "00:00:00", '["/atlas/Role=x*"]', '"\\u202e"', '"\\u0000"',
    '"' + "ab" * 32 + '"', '["list", "cms"]', '["dgst"]', '["raw"]', "[[[[]]]]", "{a = {a = {}}}", "'''\n[[builder]]'''",
]  # fmt: skip
HEADERS = ["[defaults]", "[[builder]]", "[[runner]]", "[[block]]", "[tiers.x]", "[tiers]", "[builder]", "[x.y.z]"]
LINES = st.one_of(
    st.sampled_from(HEADERS),
    st.builds(lambda key, value: f"{key} = {value}", st.sampled_from(KEYS), st.sampled_from(VALUES)),
    st.text(max_size=30),
)
PATTERNS = st.text("ab*?", max_size=6)


def asked(data: bytes) -> Policy | None:
    with contextlib.suppress(ConfigError):
        assert parse_policy(data, source="trust.toml").source == "trust.toml"
        assert problems_of(data, source="trust.toml") == ()
        return parse_policy(data, source="trust.toml")
    return None


@settings(max_examples=400, deadline=None)
@given(st.lists(LINES, max_size=25), st.booleans())
def test_lines_that_look_like_a_policy(lines: list[str], with_version: bool) -> None:
    policy = asked("\n".join(["version = 1"] * with_version + lines).encode())
    if policy is not None:
        lint(policy, today=date(2026, 11, 22))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    asked(data)
    for groups in (True, False):
        with contextlib.suppress(voms.MapfileError):
            voms.parse_mapfile(data, groups=groups)


def test_depth_that_no_recursion_and_no_memory_survives() -> None:
    for start, end in (
        (b"version", b" = 1"),
        (b"[tiers", b"]"),
        (b"x = {x", b" = 1}"),
        (b'"="', b" = 1"),
        (b'["="', b"]"),
        (b'["]"', b"]"),
    ):
        assert asked(start + b".a" * 200_000 + end) is None
    assert asked(b"version = " + b"[" * 200_000) is None


@settings(max_examples=400, deadline=None)
@given(PATTERNS, PATTERNS, st.text("ab", max_size=6))
def test_what_is_covered_is_matched_and_what_is_matched_twice_overlaps(one: str, other: str, text: str) -> None:
    if covers(one, other) and fnmatchcase(text, other):
        assert fnmatchcase(text, one)
    if fnmatchcase(text, one) and fnmatchcase(text, other):
        assert may_overlap([one], [other])
