"""Plugs guests in and out: addresses, the node's own bridge, nftables. Loaded only where a guest has a network.

    run_dir/networks/<key>.json    0600 root   what the guest has; written before anything is made, removed last
    run_dir/networks/forwarding    0600 root   what net.ipv4.ip_forward was before our first guest

Everything is made as it shall be whether or not it is there, and removed whether or not it is: whoever comes after a
crash does it again. One lock for the node; it is held for moments.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Protocol

from lrms_vm import network_rules as rules
from lrms_vm.command import remaining_s, run
from lrms_vm.errors import NodeError
from lrms_vm.network_rules import Address
from lrms_vm.paths import Places

NFT = "/usr/sbin/nft"
IP = "/usr/sbin/ip"
XENSTORE_RM = "/usr/bin/xenstore-rm"
DOM0 = Path("/proc/xen/capabilities")
SYSCTL = Path("/proc/sys/net")
RESOLV_CONF = Path("/etc/resolv.conf")
NETWORKS = Path("/sys/class/net")
MAX_DNS = 3  # resolv.conf(5), MAXNS
MAX_BYTES = 1 << 16


class Site(Protocol):
    """What is needed of config.Config."""

    @property
    def nat_bridge(self) -> str: ...
    @property
    def nat_subnet(self) -> str: ...
    @property
    def nat_refuse(self) -> tuple[str, ...]: ...
    @property
    def bridge_guests_talk(self) -> bool: ...
    @property
    def places(self) -> Places: ...


def plug(
    key: str, kind: str, *, config: Site, note: Callable[[dict[str, str]], None], deadline: float
) -> Address | None:
    """Everything for a guest of this key but its interface, which the hypervisor makes. None: the site's bridge.

    `kind` is "nat" or "bridge:NAME"; `note` is told before anything is made. Raises `NodeError`.
    """
    places, bridge, subnet = config.places, config.nat_bridge, IPv4Network(config.nat_subnet)
    with _locked(places, deadline):
        address = _address(places, key, subnet) if kind == "nat" else None
        facts = {"network": kind, "interface": rules.port_of(key), "nat_bridge": bridge}
        facts |= {"address": str(address.address)} if address else {}
        note(facts)
        _write(_marker(places, key), facts)
        if address is not None:
            _make_bridge(places, bridge, address, deadline)
        else:
            _require_bridge(kind.removeprefix("bridge:"))
        node = rules.of_node(bridge, subnet, refuse=config.nat_refuse, bridges_talk=config.bridge_guests_talk)
        _nft(node + rules.of_guest(key, address), deadline)
    return address


def unplug(places: Places, key: str, *, deadline: float) -> None:
    """Undo `plug`; the last guest takes the node's part along. Costs nothing where there is nothing. `NodeError`."""
    marker = _marker(places, key)
    if not marker.exists():
        return
    with _locked(places, deadline):
        _nft(rules.gone(key), deadline)
        _forget_in_xenstore(rules.port_of(key), deadline)
        bridge = _read(marker).get("nat_bridge", "")
        others = [facts for path, facts in _markers(places) if path != marker]
        if bridge and not any("address" in facts for facts in others):
            _remove_bridge(places, bridge, deadline)
        if bridge and not others:
            _nft(rules.node_gone(bridge), deadline)
        marker.unlink(missing_ok=True)


def _forget_in_xenstore(port: str, deadline: float) -> None:
    """Xen's script takes domain and device from an interface's name, vifN.M: of ours it makes a path nobody removes.

    /etc/xen/scripts/xen-network-common.sh, set_mtu (4.17). xenstore-rm is content where there is nothing.
    """
    if DOM0.exists():
        run([XENSTORE_RM, f"/local/domain/{port}"], timeout_s=remaining_s(deadline))


def _address(places: Places, key: str, subnet: IPv4Network) -> Address:
    taken = {IPv4Address(facts["address"]) for _, facts in _markers(places) if "address" in facts}
    found = rules.free_address(subnet, key, taken)
    if found is None:
        raise NodeError(
            f"nat_subnet {subnet}: all of its addresses are taken by guests",
            hint="give lrms_vm.toml a larger one",
            code="network-full",
        )
    return Address(found, subnet, rules.mac_of(key), _dns())


def _dns() -> tuple[IPv4Address, ...]:
    """The host's own name servers, but those that only the host itself can reach."""
    found = []
    with contextlib.suppress(OSError):
        for line in RESOLV_CONF.read_text(errors="replace")[:MAX_BYTES].splitlines():
            words = line.split()
            if len(words) >= 2 and words[0] == "nameserver":
                with contextlib.suppress(ValueError):
                    found.append(IPv4Address(words[1]))
    return tuple(one for one in found if not one.is_loopback)[:MAX_DNS]


def _make_bridge(places: Places, bridge: str, address: Address, deadline: float) -> None:
    if not (NETWORKS / bridge).exists():
        _ip(["link", "add", "name", bridge, "type", "bridge", "stp_state", "0", "forward_delay", "0"], deadline)
    _sysctl(f"ipv6/conf/{bridge}/disable_ipv6", "1")  # a guest's router advertisements are not for this host
    _ip(["address", "replace", f"{address.gateway}/{address.network.prefixlen}", "dev", bridge], deadline)
    _ip(["link", "set", bridge, "up"], deadline)
    before = _forwarding(places)
    if not before.exists():
        _write(before, {"was": (SYSCTL / "ipv4/ip_forward").read_text().strip()})
    _sysctl("ipv4/ip_forward", "1")


def _remove_bridge(places: Places, bridge: str, deadline: float) -> None:
    if (NETWORKS / bridge).exists():
        _ip(["link", "delete", bridge, "type", "bridge"], deadline)
    before = _forwarding(places)
    was = _read(before).get("was")
    if was in ("0", "1"):
        _sysctl("ipv4/ip_forward", was)
    before.unlink(missing_ok=True)


def _require_bridge(name: str) -> None:
    if not (NETWORKS / name / "bridge").is_dir():
        raise NodeError(
            f"network bridge:{name}: there is no bridge {name} on this node",
            hint="make it, or take it out of networks_allowed",
            code="network-bridge-missing",
        )


@contextlib.contextmanager
def _locked(places: Places, deadline: float) -> Iterator[None]:
    directory = _directory(places)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise NodeError(f"{directory}: locked by another prologue", code="network-locked") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(fd)


def _directory(places: Places) -> Path:
    return places.networks


def _marker(places: Places, key: str) -> Path:
    return _directory(places) / f"{key}.json"


def _forwarding(places: Places) -> Path:
    return _directory(places) / "forwarding"


def _markers(places: Places) -> list[tuple[Path, dict[str, str]]]:
    return [(path, _read(path)) for path in _directory(places).glob("*.json")]


def _read(path: Path) -> dict[str, str]:
    """Our own file; empty where it is not there or a crash cut it short."""
    try:
        values: Any = json.loads(path.read_text())
        return {str(name): str(value) for name, value in values.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _write(path: Path, values: dict[str, str]) -> None:
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.write_text(json.dumps(values))
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise NodeError(f"{path}: cannot write: {error.strerror}", code="state-unwritable") from error


def _nft(text: str, deadline: float) -> None:
    run([NFT, "-f", "-"], stdin=text.encode(), timeout_s=remaining_s(deadline))


def _ip(words: list[str], deadline: float) -> None:
    run([IP, *words], timeout_s=remaining_s(deadline))


def _sysctl(name: str, value: str) -> None:
    path = SYSCTL / name
    try:
        if path.read_text().strip() != value:
            path.write_text(value)
    except OSError as error:
        raise NodeError(f"{path}: cannot set to {value}: {error.strerror}", code="network-unmade") from error
