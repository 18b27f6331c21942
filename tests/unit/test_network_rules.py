"""The rules as text: names fit, values are only ours, what is to hold for every guest is in them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from lrms_vm import network_rules as rules
from lrms_vm.config import parse
from lrms_vm.errors import ConfigError

SUBNET = IPv4Network("10.208.0.0/29")
KEY = "slurm-12_3.node-with-a-long-name.example.org"


def address_of(key: str) -> rules.Address:
    return rules.Address(IPv4Address("10.208.0.3"), SUBNET, rules.mac_of(key))


def test_names_fit_and_are_a_jobs_own() -> None:
    assert len(rules.port_of(KEY)) == 15
    assert rules.port_of(KEY).startswith(rules.PORT_PREFIX)
    assert len({rules.port_of(KEY + str(number)) for number in range(1000)}) == 1000
    assert rules.mac_of(KEY).startswith("02:") and len(rules.mac_of(KEY)) == 17


def test_addresses_are_given_until_there_are_none() -> None:
    taken: set[IPv4Address] = set()
    for number in range(5):
        found = rules.free_address(SUBNET, f"slurm-{number}.n", taken)
        assert found is not None and found in SUBNET
        taken.add(found)
    assert rules.gateway_of(SUBNET) not in taken
    assert not {SUBNET.network_address, SUBNET.broadcast_address} & taken
    assert rules.free_address(SUBNET, "slurm-9.n", taken) is None


def test_a_guests_rules_end_with_a_drop_and_name_only_its_port() -> None:
    for address in (address_of(KEY), None):
        text = rules.of_guest(KEY, address)
        lines = [line.strip() for line in text.splitlines()]
        assert lines[-3] == "drop"
        assert f'iifname != "{rules.port_of(KEY)}" accept' in lines
        assert rules.table_of(KEY) in lines[0]


def test_no_text_of_a_job_gets_into_the_rules() -> None:
    hostile = 'x" accept; drop } table ip evil {'
    for text in (rules.of_guest(hostile, address_of(hostile)), rules.of_guest(hostile, None), rules.gone(hostile)):
        assert "evil" not in text


def test_what_no_guest_reaches_is_in_the_nodes_rules_and_the_sites_own_too() -> None:
    text = rules.of_node("lrms_vm0", SUBNET, refuse=("192.168.0.0/16", "127.0.0.0/8"))
    assert "169.254.0.0/16" in text and "192.168.0.0/16" in text
    assert text.count("127.0.0.0/8") == 1
    assert f'iifname "{rules.PORT_PREFIX}*" oifname "{rules.PORT_PREFIX}*" drop' in text
    assert f'oifname "{rules.PORT_PREFIX}*"' not in rules.of_node("lrms_vm0", SUBNET, bridges_talk=True)


@pytest.mark.parametrize(
    "text",
    [
        'nat_subnet = "10.208.0.0"',
        'nat_subnet = "10.208.0.1/22"',
        'nat_subnet = "10.0.0.0/8"',
        'nat_subnet = "fd00::/64"',
        'nat_subnet = "10.208.0.0/22; accept"',
        'nat_refuse = ["everything"]',
        'nat_bridge = "br0; x"',
        'nat_bridge = "a-name-that-is-too-long"',
    ],
)
def test_a_network_that_is_none_is_the_sites_mistake(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f'version = 1\nnetworks_allowed = ["nat"]\n{text}'.encode(), source="lrms_vm.toml")
    assert text.split(" ")[0] in caught.value.message
