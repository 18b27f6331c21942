"""What a guest on a network may send and whom it may reach, as nftables text (nft(8)). Pure.

Each guest has a table of its own, of the bridge family, named after its job: it goes in before the guest starts and
goes when the guest is gone, whatever others do meanwhile. What holds for all guests of the node is in two more, which
come with the first guest and go with the last. An `accept` of ours overrules nobody else's `drop`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lrms_vm.values import dataclass

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Network

PORT_PREFIX = "lrmsv"
CHANNEL_PORT = 1022  # of the guest, where the channel is its address
# RFC 3927 (and the clouds' metadata), RFC 1122 3.2.1.3, RFC 5771: nothing there is anybody's but this host's
NEVER = ("169.254.0.0/16", "127.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32")


@dataclass(frozen=True)
class Address:
    """A guest's address on the node's own network."""

    address: IPv4Address
    network: IPv4Network
    mac: str
    dns: tuple[IPv4Address, ...] = ()

    @property
    def gateway(self) -> IPv4Address:
        """The node's own."""
        return gateway_of(self.network)


def gateway_of(network: IPv4Network) -> IPv4Address:
    """The node's address on it: the first."""
    return network.network_address + 1


def mac_of(key: str) -> str:
    """A locally administered unicast address (IEEE 802: second bit of the first octet), the same for the same job."""
    return ":".join(f"{octet:02x}" for octet in (0x02, *hashlib.sha256(key.encode()).digest()[:5]))


def port_of(key: str) -> str:
    """The name of a guest's interface on the host; 15 characters are the most that Linux takes."""
    return PORT_PREFIX + _short(key)


def table_of(key: str) -> str:
    """The name of a guest's own table."""
    return f"lrms_vm_{_short(key)}"


def free_address(network: IPv4Network, key: str, taken: set[IPv4Address]) -> IPv4Address | None:
    """An address for a guest; not the one that was given back last, for others may remember whose it was."""
    count = network.num_addresses - 3  # without the network's, the node's and the broadcast address
    start = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
    for offset in range(count):
        address = network.network_address + 2 + (start + offset) % count
        if address not in taken:
            return address
    return None


def of_guest(key: str, address: Address | None) -> str:
    """The guest's own table: it speaks as itself only. `address` None: on the site's bridge, where it has any."""
    port, mac = f'"{port_of(key)}"', mac_of(key)
    if address is not None:
        rules = [
            f"arp saddr ether {mac} arp saddr ip {address.address} accept",
            f"ip saddr {address.address} accept",
            "drop",  # no IPv6, nothing else
        ]
    else:
        rules = [
            f"ether type arp arp saddr ether != {mac} drop",
            "udp sport { 67, 547 } drop",  # RFC 2131, RFC 8415: no DHCP server
            "icmpv6 type { nd-router-advert, nd-redirect } drop",  # RFC 4861: no router
            "ether type { ip, arp, ip6 } accept",
            "drop",
        ]
    only = ["type filter hook prerouting priority -250; policy accept;", f"iifname != {port} accept"]
    # Asked for by name: of a frame with a VLAN tag the rules below would see what is inside.
    only += ["ether type { 8021q, 8021ad } drop", f"ether saddr != {mac} drop"]
    return _table("bridge", table_of(key), {"from_guest": [*only, *rules]})


def of_node(bridge: str, network: IPv4Network, *, refuse: Sequence[str] = (), bridges_talk: bool = False) -> str:
    """What holds for all guests: not to each other, not to this host, out through its address.

    `bridge`: the node's own, whose name the tables have, too. `refuse`: networks no guest may reach. `bridges_talk`:
    guests on one of the site's bridges may reach each other.
    """
    between = [] if bridges_talk else [f'iifname "{PORT_PREFIX}*" oifname "{PORT_PREFIX}*" drop']
    switched = {"between": ["type filter hook forward priority -250; policy accept;", *between]}
    never = ", ".join(dict.fromkeys((*NEVER, *refuse)))
    ours = f'"{bridge}"'
    inet = {
        "to_this_host": [
            "type filter hook input priority -10; policy accept;",
            f"iifname != {ours} accept",
            "ct state established,related accept",
            "icmp type echo-request limit rate 10/second accept",
            "drop",
        ],
        "through": [
            "type filter hook forward priority -10; policy accept;",
            f"iifname {ours} oifname {ours} drop",
            f"iifname {ours} ip daddr {{ {never} }} drop",
            f"iifname {ours} accept",
            f"oifname != {ours} accept",
            "ct state established,related accept",
            "drop",  # nobody outside begins to speak to a guest
        ],
        "as_this_host": [
            "type nat hook postrouting priority 100; policy accept;",
            f"ip saddr {network} oifname != {ours} masquerade",
        ],
    }
    return _table("bridge", bridge, switched) + _table("inet", bridge, inet)


def gone(key: str) -> str:
    """Take the guest's own table away; it need not be there."""
    return _remove("bridge", table_of(key))


def node_gone(bridge: str) -> str:
    """Take the node's tables away; they need not be there."""
    return _remove("bridge", bridge) + _remove("inet", bridge)


def _table(family: str, name: str, chains: dict[str, list[str]]) -> str:
    """As it shall be, whatever is there: in one transaction, so that there is no moment without it."""
    lines = [f"table {family} {name} {{"]
    for chain, rules in chains.items():
        lines += [f"  chain {chain} {{", *(f"    {rule}" for rule in rules), "  }"]
    return _remove(family, name) + "\n".join([*lines, "}"]) + "\n"


def _remove(family: str, name: str) -> str:
    return f"add table {family} {name}\ndelete table {family} {name}\n"


def _short(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:10]
