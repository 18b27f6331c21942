"""trust.toml: strict, default deny, every problem told at once."""

from __future__ import annotations

from datetime import date

import pytest

from lrms_vm.errors import ConfigError
from lrms_vm.trust.policy import Policy, Tier, parse_policy

BUILDER = """
[[builder]]
name = "alice"
issuer = "CN=Test CA,DC=TestGrid,DC=org"
subject = "CN=Alice Example,O=People,DC=TestGrid,DC=org"
images = ["atlas/*"]
"""
RUNNER = """
[[runner]]
name = "production"
users = ["atlas001"]
images = ["atlas/*"]
"""


def parsed(text: str) -> Policy:
    return parse_policy(f"version = 1\n{text}".encode(), source="trust.toml")


def problems(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    assert caught.value.code in ("policy-invalid", "policy-unreadable")
    assert caught.value.message.startswith("trust.toml: ")
    return caught.value.message


def test_what_a_file_does_not_say_is_strict() -> None:
    assert parsed("") == Policy(source="trust.toml", defaults_where="trust.toml")
    found = parsed(BUILDER).builders[0]
    assert (found.signatures, found.formats, found.allow_sha1_until) == (("list", "cms"), ("raw",), None)


def test_every_key_of_the_documentation_is_read() -> None:
    found = parsed(
        """
[defaults]
action = "deny"
ca_dir = "/etc/grid-security/certificates"
crl = "if-present"
crl_grace = "6h"
s0_max_age = "7d"
voms_mapfile = "/etc/grid-security/groupmapfile"
voms_gridmapfile = "/etc/grid-security/voms-grid-mapfile"
namespaces = "if-present"
min_rsa = 3072
digests = ["sha512"]
max_list_age = "35d"
max_image = "64GiB"
max_virtual = "256GiB"
max_ratio = 100
formats = ["raw"]
proxy_signers = "never"
contact = "grid@example.org"
[tiers.sealed]
[tiers.open]
network = "any"
max_mem = "1.5GiB"
shares = "all"
root = true
[[builder]]
name = "atlas-endorser"
issuer = "CN=TestGrid CA,DC=TestGrid,DC=org"
subject = "emailAddress=a@example.org,CN=Alice\\\\, Example,O=People,DC=TestGrid,DC=org"
spki_sha256 = ["HEX"]
vo = ["atlas"]
images = ["atlas/*"]
signatures = ["list", "cms", "dgst"]
allow_sha1_until = 2027-01-31
formats = ["raw", "qcow2"]
audit = false
[[runner]]
name = "atlas-prod"
fqan = ["/atlas/Role=production*"]
users = ["atlas001"]
groups = ["atlas"]
accounts = ["atlas"]
partitions = ["grid"]
images = ["atlas/*"]
builders = ["atlas-endorser"]
max_mem = "16GiB"
network = "nat"
extra_disks = false
cloud_init = "site-only"
[[runner]]
name = "atlas-others"
users = ["*"]
images = ["atlas/*"]
tier = "open"
[[runner]]
name = "everybody"
users = ["*"]
images = ["*"]
tier = "sealed"
[[block]]
spki_sha256 = "HEX"
reason = "CVE-2026-1"
until = "2027-01-01"
[[block]]
list = "uuid"
below_version = 42
""".replace("HEX", "ab" * 32)
    )
    assert (found.namespaces, found.min_rsa_bits, found.digests, found.contact) == (
        "if-present",
        3072,
        ("sha512",),
        "grid@example.org",
    )
    assert (found.max_image_bytes, found.max_list_age_s) == (64 << 30, 35 * 86400)
    builder, runner, blocks = found.builders[0], found.runners[0], found.blocks
    assert builder.allow_sha1_until == date(2027, 1, 31)
    assert (found.crl, found.crl_grace_s, found.s0_max_age_s) == ("if-present", 6 * 3600, 7 * 86400)
    assert found.voms_mapfile == "/etc/grid-security/groupmapfile"
    assert found.tiers == (
        Tier("sealed", "none", None, "work_dir", False, "trust.toml:21"),
        Tier("open", None, 1536, "all", True, "trust.toml:22"),
    )
    assert [(one.tier, one.network, one.max_memory_mib, one.shares, one.root) for one in found.runners] == [
        (None, "nat", 16384, "all", False),
        ("open", None, 1536, "all", True),
        ("sealed", "none", None, "work_dir", False),
    ]
    assert (builder.where, runner.where) == ("trust.toml:27", "trust.toml:38")
    assert [frozenset({("2.5.4.3", "Alice, Example")})] == [builder.subject[-2]]
    assert (runner.max_memory_mib, runner.network) == (16384, "nat")
    assert (blocks[0].until, blocks[1].below_version) == (date(2027, 1, 1), "42")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[defaults]\nverify-image-lists = true", "unknown key"),
        ("[default]\ncrl = 'require'", "unknown key"),
        ("[defaults]\ncrl = 'ignore'", "crl: 'ignore' is not supported"),
        ("[defaults]\ncrl_grace = '31d'", "crl_grace: '31d' is too long; at most 30d"),
        ("[defaults]\nmax_list_age = '99999d'", "too long"),
        ("[defaults]\nvoms_mapfile = 'groupmapfile'", "absolute"),
        ("[tiers]\nopen = 1", "[tiers.NAME]"),
        ("[tiers.open]\nnetwork = 'all'", "line 2, tiers.open network: expected none, nat, any or bridge:NAME"),
        ("[tiers.open]\nshares = 'home'", "none or work_dir or all"),
        ("[tiers.open]\nroot = 'yes'", "true or false"),
        ("[tiers.open]\nmax_mem = '0'", "no memory"),
        ("[tiers.open]\nmemory = '1G'", "unknown key"),
        ('[tiers."\\u202eopen"]\nshares = "all"', "plain name"),
        (RUNNER + "tier = 'open'", "no [tiers.open]"),
        ("[tiers.open]" + RUNNER + "tier = 'open'\nnetwork = 'nat'", "the tier's to say"),
        (RUNNER + "max_mem = '1K'", "no memory"),
        (RUNNER + "fqan = ['atlas']", "expected e.g. /atlas/Role=production"),
        (RUNNER + "fqan = ['/*']", "expected e.g."),
        (RUNNER + "fqan = ['/DC=org/CN=Alice']", "expected e.g."),
        ("[defaults]\naction = 'allow'", "action"),
        ("[defaults]\nproxy_signers = 'full'", "proxy_signers"),
        ("[defaults]\nnamespaces = 'no'", "namespaces"),
        ("[defaults]\nmin_rsa = 1024", "2048"),
        ("[defaults]\nmin_rsa = true", "2048"),
        ("[defaults]\ndigests = ['sha1']", "sha256"),
        ("[defaults]\ndigests = []", "not empty"),
        ("[defaults]\ndigests = 'sha256'", "list"),
        ("[defaults]\nca_dir = 'certificates'", "absolute"),
        ("[defaults]\nmax_image = 'big'", "size"),
        ("[defaults]\nmax_list_age = '5 weeks'", "duration"),
        ("defaults = 1", "table"),
        ("builder = 1", "[[builder]]"),
        ("[builder]\nname = 'x'", "[[builder]]"),
        ("[[builder]]\nname = 'x'", "issuer: missing"),
        (BUILDER + "signatures = ['pgp']", "pgp"),
        (BUILDER + "audit = 1", "line 3, [[builder]] 1 audit: expected true or false"),
        (BUILDER + "allow_sha1_until = '2027-01-31'", "dgst"),
        (BUILDER + "signatures = ['dgst']\nallow_sha1_until = 'soon'", "date"),
        (BUILDER + "signatures = ['dgst']\nallow_sha1_until = '2027-02-31'", "date"),
        (BUILDER + "spki_sha256 = ['optional pin']", "sha256"),
        (BUILDER + "levels = 'log'", "unknown key"),
        (BUILDER.replace('images = ["atlas/*"]', "images = []"), "not empty"),
        (BUILDER.replace('images = ["atlas/*"]', ""), "images: missing"),
        (BUILDER.replace("CN=Alice Example,O=People,DC=TestGrid,DC=org", "*"), "RFC 4514"),
        (BUILDER.replace("CN=Alice Example,O=People,DC=TestGrid,DC=org", "/DC=org/CN=Alice"), "slash form"),
        (BUILDER.replace("CN=Alice Example,O=People,DC=TestGrid,DC=org", ""), "subject"),
        (BUILDER + BUILDER, "named twice"),
        (BUILDER + BUILDER.replace('"alice"', '"alice2"'), "says the same"),
        (BUILDER.replace('"alice"', '"\\u202ealice"'), "name"),
        (RUNNER.replace('users = ["atlas001"]', ""), "say who"),
        (RUNNER + "builders = ['nobody']", "no builder 'nobody'"),
        (RUNNER + "user = ['x']", "unknown key"),
        (RUNNER + "extra_disks = true", "extra_disks"),
        (RUNNER + "cloud_init = 'user'", "cloud_init"),
        (RUNNER + "network = 'any'", "network"),
        (RUNNER.replace('["atlas001"]', "[1]"), "list of texts"),
        ("[[block]]\nreason = 'x'", "say what is blocked"),
        ("[[block]]\nlist = 'x'", "together"),
        ("[[block]]\ndigest = 'sha512:00'", "sha256"),
        ("[[block]]\ndigest = ''", "digest"),
    ],
)
def test_a_mistake_is_named(text: str, says: str) -> None:
    assert says in problems(text)


@pytest.mark.parametrize("text", [b"", b"version = 2", b"version = true", b"version = '1'"])
def test_the_version_is_required(text: bytes) -> None:
    with pytest.raises(ConfigError, match="version"):
        parse_policy(text, source="trust.toml")


@pytest.mark.parametrize(
    "text",
    [
        b"\xff",
        b"= 1",
        b"[",
        b"a = " + b"[" * 5000,
        b"#" * (2 << 20),
        b"a = 1\na = 2",
        b"version" + b".a" * 20_000 + b" = 1",
    ],
)
def test_what_is_not_toml_is_a_configuration_error(text: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_policy(text, source="trust.toml")
    assert caught.value.code == "policy-unreadable"


def test_all_mistakes_are_told_at_once() -> None:
    text = problems("[defaults]\ncrl = 'no'\nx = 1\n" + RUNNER + "y = 2")
    assert all(part in text for part in ("crl", "defaults x", "[[runner]] 1 y"))


def test_a_header_inside_a_text_costs_the_line_number_and_nothing_else() -> None:
    found = parsed(
        '[defaults]\ncontact = "x"\n' + BUILDER + "#\n" + '[[block]]\ndn = "CN=x"\nreason = "a [[builder]] b"'
    )
    assert found.builders[0].where == "trust.toml:5"
    tricky = BUILDER.replace('["atlas/*"]', '["atlas/*", """\\\n[[builder]]"""]')
    assert parsed(tricky).builders[0].where == "trust.toml"
