"""What a CA may name, in files that lie or are broken: cases C35 to C40 of tests/hostile/README.md."""

from __future__ import annotations

import time

import pytest

from lrms_vm.trust import names

CA = "/DC=org/CN=CA"


def permitted(text: str, subject: str) -> bool:
    return names.permits(names.parse_namespaces(text.encode()), issuer=CA, subject=subject)


def permit(pattern: str) -> str:
    return f'TO Issuer SELF PERMIT Subject "{pattern}"\n'


@pytest.mark.parametrize(
    ("pattern", "subject", "allowed"),
    [
        ("/O=People/.*", "/O=People/CN=Alice", True),
        ("/O=People/.*", "/O=Peoples/CN=Alice", False),
        ("/O=People/CN=Alice", "/O=People/CN=Alice", True),
        ("/O=People/CN=Alice", "/O=People/CN=Alice2", False),  # vmcatcher's had no end
        ("/O=People/CN=Alice", "/C=XX/O=People/CN=Alice", False),
        ("/DC=a.b/.*", "/DC=a.b/CN=x", True),
        ("/DC=a.b/.*", "/DC=aXb/CN=x", False),  # a dot in a name is a dot
        ("/O=Thawte (Pty) Ltd/.*", "/O=Thawte (Pty) Ltd/CN=x", True),  # and brackets are brackets
        ("/O=a+b?/.*", "/O=a+b?/CN=x", True),
        (".*", "", True),
        ("/O=.*x.*/CN=.*", "/O=axb/CN=y", True),
        ("/O=x.*x", "/O=x", False),  # no part of the name is used twice
        ("/USERID=.*", "/UID=x", True),
        ("/Email=.*", "/emailAddress=a@b", True),
    ],
)
def test_a_pattern_is_text_with_gaps(pattern: str, subject: str, allowed: bool) -> None:
    assert permitted(permit(pattern), subject) is allowed


@pytest.mark.parametrize("pattern", ["/O=(Hosts|People)/x", "/O=[HP].*", "/O=a\\\\.b/.*", "^/O=.*$", "/O=*", "/O=a{2}"])
def test_an_expression_that_we_do_not_read_permits_nothing(pattern: str) -> None:
    """IGTF's own file of the USERTrust root CA has names in it that end with "[Run by the Issuer]"."""
    assert not permitted(permit(pattern) + permit("/O=Other/.*"), "/O=People/x")
    assert permitted(permit(pattern) + permit("/O=People/.*"), "/O=People/CN=x")
    with pytest.raises(names.NamesError):
        permitted(permit(pattern), "/O=People/CN=x")


def test_c40_a_denial_wins_wherever_it_stands_and_is_never_narrower_than_meant() -> None:
    deny = 'TO Issuer SELF DENY Subject "/O=A.B/.*"\n'
    for text in (deny + permit(".*"), permit(".*") + deny):
        assert not permitted(text, "/O=A.B/CN=x")
        assert not permitted(text, "/O=AxB/CN=x")
        assert permitted(text, "/O=C/CN=x")
    for pattern in ("/O=(a)/.*", "/O=a+", "/O=a?"):
        with pytest.raises(names.NamesError):
            permitted(permit(".*") + f'TO Issuer SELF DENY Subject "{pattern}"\n', "/O=C")


# As canl-java's own malformed ones have it, in our words.
@pytest.mark.parametrize(
    "text",
    [
        "nonsense\n" + permit(".*"),
        permit(".*") + "nonsense",
        'TO Issuer SELF PERMITS Subject ".*"',
        "TO Issuer /O=CA PERMIT Subject .*",
        'TO Issuer "/O=CA" PERMIT Subject ""',
        'TO Issuer "/O=CA" PERMIT Subject ".*',
        'TO Issuer "/O=CA"\nPER MIT Subject ".*"',
        'TO Issuer "" PERMIT Subject ".*"',
        "#" + permit(".*"),
        "",
        "\0",
    ],
)
def test_c37_a_namespaces_file_is_read_whole_or_not_at_all(text: str) -> None:
    with pytest.raises(names.NamesError):
        names.parse_namespaces(text.encode())


GOOD = "access_id_CA X509 '/O=CA'\npos_rights globus CA:sign\ncond_subjects globus '\"/O=People/*\" \"/O=Robots/*\"'\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("X509", "X609"),
        ("access_id_CA", "access_id_XX"),
        ("pos_rights globus", "pos_rights grid"),
        ("CA:sign", "CA:read"),
        ("cond_subjects globus", "cond_subjects globusek"),
        ("*\"'\n", '*"\n'),
        ('\'"/O=People/*" "/O=Robots/*"\'', '"a""b"'),
        ('\'"/O=People/*" "/O=Robots/*"\'', "/O=People/*"),
        ("pos_rights", "neg_rights"),
        ("access_id_CA X509 '/O=CA'\n", ""),
        ("pos_rights globus CA:sign\n", ""),
        ("'/O=CA'", "'/O=CA"),
    ],
)
def test_c38_a_signing_policy_is_read_whole_or_not_at_all(old: str, new: str) -> None:
    assert len(names.parse_signing_policy(GOOD.encode())) == 2
    with pytest.raises(names.NamesError):
        names.parse_signing_policy(GOOD.replace(old, new, 1).encode())


def test_no_name_keeps_us_busy() -> None:
    """A hundred kilobytes of a name, in all the ways in which an expression could take it apart."""
    statements = names.parse_namespaces(permit("/DC=org/.*/OU=.*/O=.*/CN=.*/CN=x").encode())
    began = time.monotonic()
    assert not names.permits(statements, issuer=CA, subject="/DC=org/" + "/OU=/O=/CN=" * 10_000)
    assert time.monotonic() - began < 1
