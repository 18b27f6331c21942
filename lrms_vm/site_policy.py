"""Reads a site's trust policy: trust.toml, and the mapping of VOMS attributes where a rule asks for one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lrms_vm.config import read_trusted
from lrms_vm.errors import ConfigError
from lrms_vm.trust import voms
from lrms_vm.trust.policy import Policy, parse_policy


def read_policy(path: Path, *, must_be_root_owned: bool = True) -> Policy:
    """Raises `ConfigError` for what root may not believe, and for what cannot be read."""
    text = read_trusted(path.absolute(), must_be_root_owned=must_be_root_owned)
    return with_mapping(parse_policy(text, source=str(path)), must_be_root_owned=must_be_root_owned)


def with_mapping(policy: Policy, *, must_be_root_owned: bool = True) -> Policy:
    """The policy with what is in its mapfiles; they are read only where a rule has `fqan`. Raises as `read_policy`."""
    if not any(rule.fqan for rule in policy.runners):
        return policy
    found: tuple[voms.Mapped, ...] = ()
    for path, groups in ((policy.voms_mapfile, True), (policy.voms_gridmapfile, False)):
        if path is None:
            continue
        text = read_trusted(Path(path), must_be_root_owned=must_be_root_owned, max_bytes=voms.MAX_BYTES)
        try:
            found += voms.parse_mapfile(text, groups=groups)
        except voms.MapfileError as error:
            raise ConfigError(
                f"{path}: {error}", hint=f"{policy.source} names it, for rules with fqan", code="mapfile-unreadable"
            ) from error
    return replace(policy, voms=found)
