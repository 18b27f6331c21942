"""Certificate policies along a path: RFC 5280 section 6.1 with the graph of RFC 9618, for a site that asks for none.

A site wants no policy of its own (user-initial-policy-set is any-policy), but a CA may say of those below it that they
must have one (policyConstraints), that names of policies mean others (policyMappings), or that "any" does not count
(inhibitAnyPolicy). OpenSSL looks at these only where it is also told which policies are wanted, and pyOpenSSL cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import TypeVar

from cryptography import x509

from lrms_vm.trust import der
from lrms_vm.values import dataclass

_E = TypeVar("_E", bound=x509.ExtensionType)
_ANY = "2.5.29.32.0"
_POLICY_MAPPINGS = x509.ObjectIdentifier("2.5.29.33")
_NONE_HOLDS = "no certificate policy holds along it, and a CA requires one"


@dataclass
class _State:
    """Section 6.1.2. `level` has the graph's lowest nodes, each with what it expects below; empty: no graph is left."""

    explicit: int
    mapping: int
    any_policy: int
    level: dict[str, set[str]] = field(default_factory=lambda: {_ANY: {_ANY}})


def problem(path: Sequence[x509.Certificate]) -> str:
    """What is wrong, in words, or "". `path` begins below the trust anchor and ends with the signer."""
    beyond = len(path) + 1
    state = _State(beyond, beyond, beyond)
    try:
        for index, certificate in enumerate(path, 1):
            last = index == len(path)
            _require(state, certificate, last)
            if state.explicit == 0 and not state.level:
                return _NONE_HOLDS
            _prepare(state, certificate, last)
    except der.DerError as error:
        return f"its certificate policies cannot be read: {error}"
    return _NONE_HOLDS if state.explicit == 0 and not state.level else ""


def _require(state: _State, certificate: x509.Certificate, last: bool) -> None:
    """Section 6.1.3 (d) and (e): the policies that this certificate and all above it have."""
    extension = _find(certificate, x509.CertificatePolicies)
    policies = [one.policy_identifier.dotted_string for one in extension or ()]
    if len(set(policies)) != len(policies):
        raise der.DerError("a policy that is there twice")
    expected = {policy for below in state.level.values() for policy in below}
    named = set(policies) - {_ANY}
    found = named if _ANY in state.level else named & expected
    if _ANY in policies and (state.any_policy > 0 or (not last and _self_issued(certificate))):
        found = found | expected
    # Without a parent there is no child: what once was empty stays so.
    state.level = {policy: {policy} for policy in found} if state.level else {}


def _prepare(state: _State, certificate: x509.Certificate, last: bool) -> None:
    """Sections 6.1.4 and 6.1.5: what this certificate says of those below it, or, the last, of itself."""
    if not last:
        _map(state, certificate)
    if last or not _self_issued(certificate):
        state.explicit = max(state.explicit - 1, 0)
        state.mapping = max(state.mapping - 1, 0)
        state.any_policy = max(state.any_policy - 1, 0)
    if constraints := _find(certificate, x509.PolicyConstraints):
        required, inhibited = constraints.require_explicit_policy, constraints.inhibit_policy_mapping
        if required is not None and (not last or required == 0):
            state.explicit = min(state.explicit, required)
        if inhibited is not None:
            state.mapping = min(state.mapping, inhibited)
    if inhibit := _find(certificate, x509.InhibitAnyPolicy):
        state.any_policy = min(state.any_policy, inhibit.skip_certs)


def _map(state: _State, certificate: x509.Certificate) -> None:
    """Section 6.1.4 (a) and (b)."""
    for policy, meant in _mappings(certificate).items():
        if state.mapping == 0:
            state.level.pop(policy, None)
        elif policy in state.level or _ANY in state.level:
            state.level[policy] = meant


def _mappings(certificate: x509.Certificate) -> dict[str, set[str]]:
    """policyMappings (section 4.2.1.5): each policy of the issuer with those of the subject that are the same."""
    try:
        extension = certificate.extensions.get_extension_for_oid(_POLICY_MAPPINGS)
    except x509.ExtensionNotFound:
        return {}
    found: dict[str, set[str]] = {}
    for one in der.read(extension.value.public_bytes()).children(der.SEQUENCE, "policyMappings"):
        pair = one.children(der.SEQUENCE, "policyMapping")
        here, below = (der.oid(pair.take_any(what), what) for what in ("issuerDomainPolicy", "subjectDomainPolicy"))
        pair.end()
        if _ANY in (here, below):
            raise der.DerError("a mapping of any-policy")
        found.setdefault(here, set()).add(below)
    return found


def _self_issued(certificate: x509.Certificate) -> bool:
    return certificate.issuer == certificate.subject


def _find(certificate: x509.Certificate, kind: type[_E]) -> _E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
