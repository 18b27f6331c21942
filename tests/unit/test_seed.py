"""What a guest is told: lines of known formats, and nothing that could be read as another line or as a command."""

from __future__ import annotations

import json

import pytest

from lrms_vm import keys, seed
from lrms_vm.account import Account
from lrms_vm.errors import ConfigError
from lrms_vm.overlay import hypervisor_ids

ALICE = Account("alice", 1001, 1002, (("physics", 1002), ("domain users", 2000)), "/home/alice")
PAIR = keys.make_pair()
RANDOM = bytes(range(64))


def files(account: Account = ALICE, shares: tuple[str, ...] = ("/work/my dir",)) -> dict[str, bytes]:
    return seed.seed_files("lrms_vm-slurm-12_3.Node.1", account, PAIR, shares, program=b"\x7fELF", randomness=RANDOM)


def test_seed_holds_what_the_guest_needs() -> None:
    made = files()
    assert made["lrms_vm/passwd"] == b"alice:x:1001:1002:alice:/home/alice:/bin/sh\n"
    assert made["lrms_vm/group"] == b"physics:x:1002:alice\ndomain users:x:2000:alice\n"
    assert made["lrms_vm/shares"] == b"/work/my dir\n"
    assert made["lrms_vm/version"] == b"1\n"
    assert made["lrms_vm/random"] == RANDOM
    assert made["lrms_vm/hostname"] == b"lrms-vm-slurm-12-3-node-1\n"
    assert made["lrms_vm/ssh_host_ed25519_key"].startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----\n")
    assert made["lrms_vm/authorized_keys"].startswith(b"ssh-ed25519 AAAA")
    assert PAIR.user_private not in made.values()  # the user's half stays outside
    assert "lrms_vm/root" not in made and "lrms_vm/launcher" not in made


def test_the_seed_names_the_launcher_of_the_batch_system() -> None:
    made = seed.seed_files(
        "lrms_vm-torque-12.n1", ALICE, PAIR, (), program=b"\x7fELF", randomness=RANDOM, launcher="pbsdsh"
    )
    assert made["lrms_vm/launcher"] == b"pbsdsh\n"


def test_the_seed_gives_root_inside_only_where_it_is_told_to() -> None:
    made = seed.seed_files("lrms_vm-slurm-12.n1", ALICE, PAIR, (), program=b"\x7fELF", randomness=RANDOM, root=True)
    assert made["lrms_vm/root"] == b"1\n"


def test_user_data_is_a_cloud_config_without_any_value_of_the_job() -> None:
    made = files()
    first, _, rest = made["user-data"].partition(b"\n")
    assert first == b"#cloud-config"
    assert json.loads(rest)["users"] == []
    assert made["user-data"] == files(Account("bob", 5, 5, (("bob", 5),), "/b"), ())["user-data"]
    assert json.loads(made["meta-data"])["instance-id"] == "lrms_vm-slurm-12_3.Node.1"


@pytest.mark.parametrize("bad", ["", "a:b", "a\nroot:x:0:0::/:/bin/sh", "a\0b", "a,b", "a\u2028b", "a\x1bb"])
@pytest.mark.parametrize("where", ["name", "home", "group"])
def test_an_account_that_would_be_two_lines_or_fields_is_refused(bad: str, where: str) -> None:
    account = Account(
        bad if where == "name" else "alice",
        1,
        1,
        ((bad if where == "group" else "g", 1),),
        bad if where == "home" else "/home/alice",
    )
    with pytest.raises(ConfigError) as caught:
        files(account)
    assert caught.value.code == "account-unusable"


@pytest.mark.parametrize("bad", ["/a\n/etc", "", "/a\0"])
def test_a_share_that_would_be_two_lines_is_refused(bad: str) -> None:
    with pytest.raises(ConfigError):
        files(shares=(bad,))


def test_keys_are_fresh_and_fit_each_other() -> None:
    other = keys.make_pair()
    assert len({PAIR.host_private, PAIR.user_private, other.host_private, other.user_private}) == 4
    assert PAIR.known_hosts.startswith(b"guest ssh-ed25519 ")
    assert b"PRIVATE" not in repr(PAIR).encode()


def test_hypervisor_user_is_a_name_or_a_number() -> None:
    assert hypervisor_ids("+64055:+108") == (64055, 108)
    assert hypervisor_ids("root:root") == (0, 0)
    for bad in ("nobody-of-that-name:root", "+x:root", "root", ":"):
        with pytest.raises(ConfigError):
            hypervisor_ids(bad)
