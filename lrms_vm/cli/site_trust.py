"""What verbs that judge need: policy and CA directory, believed only where nobody else could have written them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lrms_vm import config as configuration

if TYPE_CHECKING:
    from lrms_vm.trust.policy import Policy
    from lrms_vm.trust.verify import TrustAnchors


def load(policy_file: Path | None, config: Path | None) -> tuple[Policy, TrustAnchors]:
    """The policy in `policy_file`, else the site's. Raises `ConfigError`, `SiteError`."""
    from lrms_vm.anchors import read_anchors
    from lrms_vm.site_policy import read_policy

    # What root believes must be root's; somebody else asks for himself, with a file of his own.
    must_be_root_owned = os.geteuid() == 0 or policy_file is None
    path = policy_file or site_policy(config)
    policy = read_policy(path, must_be_root_owned=must_be_root_owned)
    return policy, read_anchors(Path(policy.ca_dir), must_be_root_owned=must_be_root_owned)


def groups_of(user: str) -> tuple[str, ...]:
    """The names of the user's groups on this machine."""
    import grp
    import pwd

    try:
        gids = os.getgrouplist(user, pwd.getpwnam(user).pw_gid)
    except KeyError:
        return ()  # no account on this machine; rules by user name still hold
    names = []
    for gid in gids:
        try:
            names.append(grp.getgrgid(gid).gr_name)
        except KeyError:
            continue  # a group without a name is in no rule
    return tuple(names)


def site_policy(config: Path | None) -> Path:
    """Where the site's trust.toml is."""
    path = config or configuration.DEFAULT_PATH
    if config is None and not path.exists():
        return Path(configuration.Config().policy)
    return Path(configuration.load(path).policy)
