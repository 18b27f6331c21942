"""Puts a node's actors together from its configuration. Imports the heavy libraries; only root's verbs need it."""

from __future__ import annotations

import sys
from pathlib import Path

from lrms_vm.anchors import CaDirectory
from lrms_vm.cgroups import Confinement
from lrms_vm.config import Config
from lrms_vm.decision import Decision
from lrms_vm.fetch import Fetch
from lrms_vm.guest import Hypervisor, Libvirt
from lrms_vm.lifecycle import Actors
from lrms_vm.site_policy import read_policy


def hypervisor(config: Config) -> Hypervisor:
    return Libvirt(config.libvirt_uri)


def decision(config: Config) -> Decision:
    """Raises `ConfigError` for a policy or a CA directory that cannot be believed."""
    policy = read_policy(Path(config.policy))
    return Decision(policy, CaDirectory(Path(policy.ca_dir)))


def fetcher(config: Config) -> Fetch:
    """How this node gets bytes."""
    return Fetch(proxy=config.http_proxy or None, ca_file=config.http_ca_file or None)


def actors(config: Config) -> Actors:
    """Raises as `decision`."""
    return Actors(
        hypervisor=hypervisor(config),
        fetch=fetcher(config),
        decision=decision(config),
        python=sys.executable,
        confinement=None if config.confine == "off" else Confinement(required=config.confine == "required"),
    )
