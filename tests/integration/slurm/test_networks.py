"""A guest with a network: out through its node and nowhere else. The rules themselves: contract/test_network.py."""

from __future__ import annotations

import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo import site
from demo.cluster import Cluster
from demo.layout import NODES
from lrms_vm import network_rules as rules
from tests.contract.test_network import Service, ip
from tests.integration.slurm.conftest import Desk

pytestmark = pytest.mark.guest

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
BRIDGES = ("lrms_test0", "lrms_test1")
OUTSIDE, NODE = "198.51.100.7", "198.51.100.1"  # RFC 5737
SCRIPT = r"""
cat >connect.py <<'END'
import socket, sys
where, port, source = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
try:
    with socket.create_connection((where, port), 3, (source[0], 0) if source else None) as peer:
        print(peer.recv(100).decode() or "nothing")
except OSError as error:
    print(type(error).__name__)
END
address=$(python3 -c 'import socket; s = socket.socket(2, 2); s.connect(("198.51.100.7", 9)); print(s.getsockname()[0])')
echo "address $address"
echo "outside $(python3 connect.py 198.51.100.7 7777)"
for host in $HOSTS; do echo "host $host $(python3 connect.py $host $PORT)"; done
lrms-vm-root python3 -c '
import fcntl, socket, struct
s = socket.socket(2, 2)
fcntl.ioctl(s, 0x8916, struct.pack("16sHH4s8s", b"eth0", 2, 0, socket.inet_aton("10.208.3.9"), b""))' # SIOCSIFADDR
echo "as another $(python3 connect.py 198.51.100.7 7777)"
"""


@dataclass(frozen=True)
class Hosts:
    """This machine, as guests may try it: its addresses, and a port where it answers."""

    addresses: tuple[str, ...]
    port: int


@pytest.fixture(scope="module")
def networks(cluster: Cluster) -> Iterator[None]:
    """Both nodes give "nat"; they are on one machine, so each has a bridge and a subnet of its own. Root inside.

    Each puts the machine's forwarding back to what it found, the second what the first had made of it: so we do.
    """
    forwarding = FORWARDING.read_text()
    for number, node in enumerate(NODES):
        path = cluster.layout.config(node)
        lines = [
            'networks_allowed = ["none", "nat"]',
            f'nat_bridge = "{BRIDGES[number]}"',
            f'nat_subnet = "10.208.{4 * number}.0/22"',
        ]
        path.write_text(path.read_text().replace("version = 1\n", "\n".join(["version = 1", *lines, ""]), 1))
    policy = cluster.layout.etc / "trust.toml"
    policy.write_text(policy.read_text() + 'tier = "open"\n\n[tiers.open]\nroot = true\nnetwork = "any"\n')
    yield
    site.configure(cluster.layout)
    FORWARDING.write_text(forwarding)


@pytest.fixture(scope="module")
def outside() -> Iterator[None]:
    """A machine beyond this one."""
    space = "lo" + uuid.uuid4().hex[:6]
    ip("netns", "add", space)
    try:
        ip("link", "add", space, "type", "veth", "peer", "name", "up0", "netns", space)
        ip("address", "add", f"{NODE}/24", "dev", space)
        ip("link", "set", space, "up")
        ip("-n", space, "address", "add", f"{OUTSIDE}/24", "dev", "up0")
        ip("-n", space, "link", "set", "up0", "up")
        with Service(space):
            yield
    finally:
        subprocess.run(["ip", "netns", "delete", space], check=True)
        subprocess.run(["ip", "link", "delete", space], capture_output=True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with socket.create_server(("0.0.0.0", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                with peer:
                    peer.sendall(b"REACHED")

        threading.Thread(target=answer, daemon=True).start()
        found = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()
        own = [address for address in found if "." in address]
        yield Hosts((*own, "10.208.0.1", "10.208.4.1"), server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)


def test_a_guest_goes_out_through_its_node_and_reaches_no_service_of_it(
    desk: Desk, networks: None, outside: None, hosts: Hosts
) -> None:
    assert NODE in hosts.addresses
    words = ("--mem=900", "--vm-image=minimal", "--vm-network=nat")
    head = f"HOSTS='{' '.join(hosts.addresses)}'\nPORT={hosts.port}\n"
    job = desk.end(desk.sbatch(*words, script=head + SCRIPT))
    said = [line.split() for line in desk.output(job).splitlines()]
    assert (job.state, job.exit_code) == ("COMPLETED", "0:0"), job.output()
    assert said[0][1].startswith("10.208."), job.output()
    assert ["outside", NODE] in said, job.output()
    tried = {words[1]: words[2] for words in said if words[0] == "host"}
    assert set(tried) == set(hosts.addresses)
    assert "REACHED" not in tried.values(), tried
    assert said[-1][:2] == ["as", "another"] and said[-1][2] in ("TimeoutError", "OSError"), job.output()
    assert nothing_of_the_network(job.job_id) == []


def test_a_guest_that_is_not_to_have_a_network_has_none(desk: Desk, networks: None) -> None:
    job = desk.end(desk.sbatch("--mem=900", "--vm-image=minimal", script="ls /sys/class/net; ls /etc/resolv.conf\n"))
    assert desk.output(job).split()[0] == "lo", job.output()
    assert nothing_of_the_network(job.job_id) == []


def nothing_of_the_network(job_id: int) -> list[str]:
    """What is still there of a job's guests, and the nodes' bridges."""
    keys = [f"slurm-{job_id}.{node}" for node in NODES]
    names = {*BRIDGES, *(name(key) for key in keys for name in (rules.port_of, rules.table_of))}
    links = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout.split()
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout.split()
    return sorted(names & {*links, *tables})
