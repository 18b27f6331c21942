"""Real bridges, addresses and nftables, in name spaces: a node, two guests on it, and a machine outside.

A guest here is a name space whose interface has the name that the hypervisor would give its own: the rules cannot tell
the difference. What it does, root in a real guest could.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lrms_vm import network, network_rules
from tests.guest_in_namespace import REPOSITORY

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="makes name spaces: needs root"),
    pytest.mark.skipif(not Path(network.NFT).exists(), reason="needs nftables"),
]
KEYS = ("slurm-1.n1", "slurm-2.n1")
OUTSIDE, NODE = "198.51.100.7", "198.51.100.1"  # RFC 5737
# argv: run_dir VERB KEY KIND STOP_BEFORE; ends by SIGKILL before the n-th program it would start
PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
from lrms_vm import network
from lrms_vm.paths import Places
run_dir, verb, key, kind, stop = sys.argv[1:]
left = [int(stop)]
def counted(run):
    def call(*args, **more):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return run(*args, **more)
    return call
if "XENSTORE_RM" in os.environ:
    network.DOM0, network.XENSTORE_RM = Path("/"), os.environ["XENSTORE_RM"]
network.run = counted(network.run)
network._write = counted(network._write)
network._sysctl = counted(network._sysctl)
places = Places(Path(run_dir), Path(run_dir))
config = SimpleNamespace(places=places, nat_bridge="lrms_vmT", nat_subnet="10.208.0.0/22",
                         nat_refuse=("203.0.113.0/24",), bridge_guests_talk=False)
deadline = time.monotonic() + 20
if verb == "plug":
    made = network.plug(key, kind, config=config, note=lambda facts: None, deadline=deadline)
    print(json.dumps([str(made.address), made.mac, str(made.gateway)] if made else []))
else:
    network.unplug(places, key, deadline=deadline)
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@dataclass
class Node:
    """Name spaces `<name>`, `<name>o` outside, and one for each guest."""

    name: str
    run_dir: str
    guests: dict[str, list[str]] = field(default_factory=dict)  # key: address, mac, gateway

    def inside(self, space: str, *argv: str, **more: object) -> subprocess.CompletedProcess[str]:
        words = ["ip", "netns", "exec", space, *argv]
        return subprocess.run(words, capture_output=True, text=True, timeout=60, **more)  # type: ignore[call-overload,no-any-return]

    def call(self, verb: str, key: str, kind: str = "nat", stop: int = 0) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-c", PROGRAM, self.run_dir, verb, key, kind, str(stop)]
        return self.inside(self.name, *argv, cwd=REPOSITORY)

    def plug(self, key: str, kind: str = "nat", bridge: str = "lrms_vmT") -> None:
        """What the prologue does, and what the hypervisor and the guest do then."""
        done = self.call("plug", key, kind)
        assert done.returncode == 0, done.stderr
        self.guests[key] = json.loads(done.stdout) or ["192.0.2.9", network_rules.mac_of(key), "192.0.2.1"]
        address, mac, gateway = self.guests[key]
        space, port = self.space(key), network_rules.port_of(key)
        ip("netns", "add", space)
        ip("-n", self.name, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("-n", self.name, "link", "set", port, "master", bridge, "up")
        ip("-n", space, "link", "set", "eth0", "address", mac, "up")
        ip("-n", space, "address", "add", f"{address}/22", "dev", "eth0")
        ip("-n", space, "route", "add", "default", "via", gateway)

    def unplug(self, key: str) -> None:
        ip("netns", "delete", self.space(key))
        subprocess.run(["ip", "-n", self.name, "link", "delete", network_rules.port_of(key)], capture_output=True)
        done = self.call("unplug", key)
        assert done.returncode == 0, done.stderr

    def space(self, key: str) -> str:
        return self.name + key.replace("slurm-", "g").partition(".")[0]

    def state(self) -> tuple[str, str, list[str]]:
        """nftables, whether packets are forwarded, and the interfaces."""
        rules = self.inside(self.name, "nft", "list", "ruleset").stdout
        forward = self.inside(self.name, "cat", "/proc/sys/net/ipv4/ip_forward").stdout
        links = json.loads(self.inside(self.name, "ip", "-j", "link").stdout)
        return rules, forward, sorted(link["ifname"] for link in links)


@pytest.fixture
def node() -> Iterator[Node]:
    with tempfile.TemporaryDirectory(prefix="lrms-") as run_dir:
        made = Node("lv" + uuid.uuid4().hex[:6], run_dir)
        outside = made.name + "o"
        try:
            for space in (made.name, outside):
                ip("netns", "add", space)
                ip("-n", space, "link", "set", "lo", "up")
            ip("-n", made.name, "link", "add", "up0", "type", "veth", "peer", "name", "up0", "netns", outside)
            for space, address in ((made.name, NODE), (outside, OUTSIDE)):
                ip("-n", space, "address", "add", f"{address}/24", "dev", "up0")
                ip("-n", space, "link", "set", "up0", "up")
            ip("-n", outside, "address", "add", "203.0.113.7/32", "dev", "lo")
            ip("-n", made.name, "route", "add", "203.0.113.0/24", "via", OUTSIDE)
            ip("-n", outside, "route", "add", "10.208.0.0/22", "via", NODE)  # who knows the way to guests
            yield made
        finally:
            spaces = [made.name, outside, *(made.space(key) for key in KEYS)]
            for space in spaces:
                subprocess.run(["ip", "netns", "delete", space], capture_output=True)


SERVER = """
import socket, sys
with socket.create_server(("0.0.0.0", 7777)) as server:
    print("up", flush=True)
    while True:
        peer, address = server.accept()
        with peer:
            peer.sendall(address[0].encode())
"""


class Service:
    """A program that tells whoever connects to its port under which address he comes."""

    def __init__(self, space: str) -> None:
        argv = ["ip", "netns", "exec", space, sys.executable, "-c", SERVER]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Service:
        assert self.process.stdout is not None and self.process.stdout.readline() == "up\n"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


CLIENT = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], 7777), 1.5, (sys.argv[2], 0) if sys.argv[2:] else None) as peer:
        print(peer.recv(100).decode())
except OSError as error:
    print(type(error).__name__)
"""


def seen_by(node: Node, space: str, where: str, source: str = "") -> str:
    """Connect from there; what the service saw, or how it failed."""
    words = [where, source] if source else [where]
    return node.inside(space, sys.executable, "-c", CLIENT, *words).stdout.strip()


def test_a_guest_reaches_the_outside_as_its_node_and_nobody_there_reaches_the_guest(node: Node) -> None:
    node.plug(KEYS[0])
    guest = node.space(KEYS[0])
    with Service(node.name + "o"):
        assert seen_by(node, guest, OUTSIDE) == NODE
        assert seen_by(node, guest, "203.0.113.7") == "TimeoutError"  # the site refuses it
    with Service(guest):
        assert seen_by(node, node.name + "o", node.guests[KEYS[0]][0]) == "TimeoutError"
        assert seen_by(node, node.name, node.guests[KEYS[0]][0]) == node.guests[KEYS[0]][2]  # the node itself may


def test_a_guest_reaches_none_of_its_nodes_services_under_any_address(node: Node) -> None:
    node.plug(KEYS[0])
    with Service(node.name):
        assert seen_by(node, node.name + "o", NODE) == OUTSIDE
        for address in (node.guests[KEYS[0]][2], NODE):
            assert seen_by(node, node.space(KEYS[0]), address) == "TimeoutError"


def test_guests_do_not_reach_each_other(node: Node) -> None:
    for key in KEYS:
        node.plug(key)
    one, two = (node.space(key) for key in KEYS)
    address = node.guests[KEYS[1]][0]
    with Service(two):
        assert seen_by(node, one, address) in ("TimeoutError", "OSError")  # OSError: not even an ARP answer
        ip("-n", one, "route", "add", f"{address}/32", "via", node.guests[KEYS[0]][2])  # then by way of the node
        assert seen_by(node, one, address) in ("TimeoutError", "OSError")


@pytest.mark.parametrize("what", ["address", "mac"])
def test_a_guest_with_another_address_than_its_own_is_heard_by_nobody(node: Node, what: str) -> None:
    node.plug(KEYS[0])
    guest = node.space(KEYS[0])
    with Service(node.name + "o"):
        assert seen_by(node, guest, OUTSIDE) == NODE
        if what == "mac":
            ip("-n", guest, "link", "set", "eth0", "address", "02:00:00:00:00:99")
            assert seen_by(node, guest, OUTSIDE) in ("TimeoutError", "OSError")
        else:
            ip("-n", guest, "address", "add", "10.208.3.200/22", "dev", "eth0")
            assert seen_by(node, guest, OUTSIDE, "10.208.3.200") in ("TimeoutError", "OSError")
        assert node.inside(node.name, "nft", "list", "ruleset").returncode == 0


# From the guest: frames that say they are somebody else's. On the bridge: what arrives of them.
FRAMES = """
import socket, struct, sys, time
mac = bytes.fromhex(sys.argv[1].replace(":", ""))
ours, gateway = socket.inet_aton(sys.argv[2]), socket.inet_aton(sys.argv[3])
everybody, other = b"\\xff" * 6, b"\\x02\\0\\0\\0\\0\\x99"
def arp(sender_mac, sender_ip): return struct.pack(">HHBBH", 1, 0x800, 6, 4, 2) + sender_mac + sender_ip + everybody + gateway
v6 = b"\\x60\\0\\0\\0\\0\\x10\\x3a\\xff" + bytes.fromhex("fe80" + "0" * 28) + bytes.fromhex("ff02" + "0" * 27 + "1")
def ipv4(source): return b"\\x45\\0\\0\\x1c\\0\\1\\0\\0\\x40\\x11\\0\\0" + source + gateway + b"\\0\\7\\0\\7\\0\\x08\\0\\0"
frames = [everybody + mac + b"\\x08\\x06" + arp(mac, gateway), everybody + mac + b"\\x08\\x06" + arp(other, ours),
  everybody + other + b"\\x08\\x06" + arp(other, ours), everybody + mac + b"\\x86\\xdd" + v6 + b"\\x86\\0\\0\\0" + b"\\0" * 12,
  everybody + mac + b"\\x08\\0" + ipv4(b"\\x0a\\xd0\\3\\x63"), everybody + mac + b"\\x81\\0\\0\\1\\x08\\0" + ipv4(ours),
  everybody + mac + b"\\x88\\xcc" + b"lldp" * 16, everybody + mac + b"\\x08\\x06" + arp(mac, ours)]
out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
out.bind(("eth0", 0))
for number, frame in enumerate(frames):
    out.send(frame.ljust(60, b"\\0")[:-2] + bytes([0xfe, number]))
    time.sleep(0.05)
"""
EARS = """
import socket, sys, time
ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
ear.bind((sys.argv[1], 0))
ear.settimeout(0.2)
print("up", flush=True)
end, heard = time.monotonic() + 4, set()
while time.monotonic() < end:
    try:
        frame = ear.recv(2048)
    except TimeoutError:
        continue
    if frame[-2:-1] == b"\\xfe":
        heard.add(frame[-1])
print(sorted(heard))
"""


def heard_of(node: Node, key: str, bridge: str) -> list[int]:
    """Which of FRAMES the bridge itself got."""
    argv = ["ip", "netns", "exec", node.name, sys.executable, "-c", EARS, bridge]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as ears:
        assert ears.stdout is not None and ears.stdout.readline() == "up\n"
        address, mac, gateway = node.guests[key]
        done = node.inside(node.space(key), sys.executable, "-c", FRAMES, mac, address, gateway)
        assert done.returncode == 0, done.stderr
        return list(json.loads(ears.stdout.read()))


def test_of_what_a_guest_sends_only_what_is_its_own_passes(node: Node) -> None:
    node.plug(KEYS[0])
    assert heard_of(node, KEYS[0], "lrms_vmT") == [7]  # its own ARP


def test_on_a_bridge_of_the_site_a_guest_is_itself_and_no_router_or_server(node: Node) -> None:
    ip("-n", node.name, "link", "add", "br0", "type", "bridge")
    ip("-n", node.name, "link", "set", "br0", "up")
    node.plug(KEYS[0], "bridge:br0", "br0")
    heard = heard_of(node, KEYS[0], "br0")
    assert 7 in heard and not {1, 2, 3, 5, 6} & set(heard)  # 0 and 4: which addresses are its own, the site knows
    node.unplug(KEYS[0])
    assert "br0" in node.state()[2] and node.state()[0] == ""


def test_a_bridge_that_is_not_there_is_the_nodes_fault(node: Node) -> None:
    done = node.call("plug", KEYS[0], "bridge:br9")
    assert done.returncode != 0 and "there is no bridge br9" in done.stderr
    assert node.call("unplug", KEYS[0]).returncode == 0
    assert node.state()[0] == ""


def test_the_last_guest_takes_everything_along_and_no_other_does(node: Node) -> None:
    before = node.state()
    for key in KEYS:
        node.plug(key)
    assert node.guests[KEYS[0]][0] != node.guests[KEYS[1]][0]
    node.unplug(KEYS[0])
    with Service(node.name + "o"):
        assert seen_by(node, node.space(KEYS[1]), OUTSIDE) == NODE
    node.unplug(KEYS[1])
    assert node.state() == before
    assert list((Path(node.run_dir) / "networks").iterdir()) == []


@pytest.mark.parametrize("verb", ["plug", "unplug"])
def test_killed_before_any_step_nothing_is_left_after_the_next_teardown(node: Node, verb: str) -> None:
    before = node.state()
    for stop in range(1, 30):
        if verb == "unplug":
            assert node.call("plug", KEYS[0]).returncode == 0
        killed = node.call(verb, KEYS[0], stop=stop).returncode == -9
        assert node.call("unplug", KEYS[0]).returncode == 0
        assert node.state() == before, f"killed before step {stop}"
        assert node.call("unplug", KEYS[0]).returncode == 0  # twice does no harm
        if not killed:
            break
    assert 3 < stop < 29


def test_a_second_prologue_of_the_job_has_the_same_network(node: Node) -> None:
    first, second = (node.call("plug", KEYS[0]) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0)
    assert node.state()[0].count("chain from_guest") == 1
    assert node.call("unplug", KEYS[0]).returncode == 0


def test_in_dom0_what_xens_script_wrote_for_the_interface_goes_with_it(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, program = tmp_path / "said", tmp_path / "xenstore-rm"
    program.write_text(f'#!/bin/sh\necho "$@" >>{said}\n')
    program.chmod(0o755)
    monkeypatch.setenv("XENSTORE_RM", str(program))
    assert node.call("plug", KEYS[0]).returncode == 0 and not said.exists()
    assert node.call("unplug", KEYS[0]).returncode == 0
    assert said.read_text() == f"/local/domain/{network_rules.port_of(KEYS[0])}\n"
    program.write_text("#!/bin/sh\nexit 1\n")  # xenstored is gone: the next teardown finds everything to do it again
    assert node.call("plug", KEYS[0]).returncode == 0
    assert node.call("unplug", KEYS[0]).returncode != 0
    assert list((Path(node.run_dir) / "networks").glob("*.json"))
