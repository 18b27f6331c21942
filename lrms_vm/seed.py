"""The seed: the one disk that tells a guest who it is. ISO 9660 with Rock Ridge, labelled `cidata`.

    meta-data  user-data            for images with cloud-init and without our unit (NoCloud data source)
    network-config                  the same of a guest with an address
    lrms_vm/guest                   our static program, so that both halves always match
    lrms_vm/{hostname,passwd,group,shares,version}
    lrms_vm/random                  64 random bytes of the host's, for a kernel that has none of its own yet
    lrms_vm/root                    where the user may become root inside
    lrms_vm/launcher                the batch system's program that starts a job's tasks, where it has one
    lrms_vm/channel                 tcp PORT HOST, where the guest answers at its address
    lrms_vm/address                 MAC ADDRESS PREFIX GATEWAY DNS..., where it has a network of ours
    lrms_vm/{ssh_host_ed25519_key,authorized_keys}

Values are data, never text of a shell script or of YAML: one line of a known format each, or JSON.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from lrms_vm.command import run
from lrms_vm.domain import Domain
from lrms_vm.errors import ConfigError, NodeError
from lrms_vm.keys import KeyPair
from lrms_vm.network_rules import Address
from lrms_vm.overlay import hypervisor_ids

VERSION = "1"
LABEL = "cidata"
RANDOM_BYTES = 64  # what guest/randomness.c expects
GENISOIMAGE = "/usr/bin/genisoimage"
MOUNTED = "/run/lrms_vm/seed"  # in the guest
SHELL = "/bin/sh"  # in the guest: whatever the user's is on the host, it may not be in the image
MAX_GUEST_PROGRAM_BYTES = 16 << 20
_PACKAGED = Path(sys.prefix) / "built" / "lrms-vm-guest"
_INSTALLED = Path(__file__).resolve().parent.parent / "guest" / "lrms-vm-guest"


class Person(Protocol):
    """What the seed needs of account.Account."""

    @property
    def name(self) -> str: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def groups(self) -> tuple[tuple[str, int], ...]: ...
    @property
    def home(self) -> str: ...


class Site(Protocol):
    """What the seed needs of config.Config."""

    @property
    def guest_program(self) -> str: ...


def guest_program(config: Site) -> Path:
    """Where the program for the guest is on this node."""
    if config.guest_program:
        return Path(config.guest_program)
    return _PACKAGED if _PACKAGED.exists() else _INSTALLED


def make(
    domain: Domain,
    account: Person,
    pair: KeyPair,
    shares: Sequence[str],
    *,
    config: Site,
    timeout_s: float,
    root: bool = False,
    launcher: str = "",
    address: Address | None = None,
    channel_port: int | None = None,
) -> None:
    """Make `domain.seed_path`, 0600 and the hypervisor's. Its directory is there and only root can write it.

    `root`: whether the user may become root inside. `launcher`: what starts the job's tasks (launchers.py).
    `address`: the guest's on the node's own network; `channel_port`: where at that address it
    answers, if the channel is none of the hypervisor's.
    It holds a private key: no file of it is ever readable by anybody but root and the hypervisor's user.
    Raises `NodeError`, `ConfigError`.
    """
    uid, gid = hypervisor_ids(domain.run_as)
    program = _read_program(guest_program(config))
    files = seed_files(
        domain.name,
        account,
        pair,
        shares,
        program=program,
        randomness=os.urandom(RANDOM_BYTES),
        root=root,
        launcher=launcher,
        address=address,
    )
    if address is not None and channel_port is not None:
        files["lrms_vm/channel"] = _lines([f"tcp {channel_port} {address.gateway}"])
    target = Path(domain.seed_path)
    stage = target.with_name("seed.d")
    try:
        shutil.rmtree(stage, ignore_errors=True)
        _write_tree(stage, files)
        image = run(
            [GENISOIMAGE, "-quiet", "-R", "-V", LABEL, "-sysid", "", "-appid", "lrms_vm", str(stage)],
            timeout_s=timeout_s,
        )
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(image)
            os.fchmod(fd, 0o600)
            os.fchown(fd, uid, gid)
    except OSError as error:
        raise NodeError(f"{target}: cannot make the seed: {error.strerror}", code="state-unwritable") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def seed_files(
    name: str,
    account: Person,
    pair: KeyPair,
    shares: Sequence[str],
    *,
    program: bytes,
    randomness: bytes,
    root: bool = False,
    launcher: str = "",
    address: Address | None = None,
) -> dict[str, bytes]:
    """Pure: every file of the seed by its path. Raises `ConfigError` for an account no guest could have."""
    hostname = _hostname(name)
    user = _field("user name", account.name)
    groups = [f"{_field('group name', group)}:x:{gid}:{user}" for group, gid in account.groups]
    home = _field("home directory", account.home)
    return {
        "meta-data": _json({"instance-id": name, "local-hostname": hostname}),
        "user-data": b"#cloud-config\n" + _json(_cloud_config()),
        "lrms_vm/authorized_keys": pair.authorized_keys,
        "lrms_vm/group": _lines(groups),
        "lrms_vm/guest": program,
        "lrms_vm/hostname": _lines([hostname]),
        "lrms_vm/random": randomness,
        "lrms_vm/passwd": _lines([f"{user}:x:{account.uid}:{account.gid}:{user}:{home}:{SHELL}"]),
        "lrms_vm/shares": _lines([_line("shared directory", share) for share in shares]),
        "lrms_vm/ssh_host_ed25519_key": pair.host_private,
        "lrms_vm/version": _lines([VERSION]),
        **({"lrms_vm/root": b"1\n"} if root else {}),
        **({"lrms_vm/launcher": _lines([launcher])} if launcher else {}),
        **(_network_files(address) if address else {}),
    }


def _network_files(address: Address) -> dict[str, bytes]:
    """For our own program: a line of words. For cloud-init: network-config, version 2, whose YAML may be JSON."""
    prefix = address.network.prefixlen
    words = [address.mac, address.address, prefix, address.gateway, *address.dns]
    ethernet = {
        "match": {"macaddress": address.mac},
        "addresses": [f"{address.address}/{prefix}"],
        "routes": [{"to": "0.0.0.0/0", "via": str(address.gateway)}],
        "nameservers": {"addresses": [str(one) for one in address.dns]},
    }
    return {
        "lrms_vm/address": _lines([" ".join(map(str, words))]),
        "network-config": _json({"version": 2, "ethernets": {"guest": ethernet}}),
    }


def _cloud_config() -> Mapping[str, object]:
    """Start the same program that our own unit starts, under the same name, so that only one of the two can."""
    options = "ro,mode=0500,dmode=0500,uid=0"
    return {
        "users": [],
        "ssh_pwauth": False,
        "runcmd": [
            ["mkdir", "-p", MOUNTED],
            ["mount", "-t", "iso9660", "-o", options, f"/dev/disk/by-label/{LABEL}", MOUNTED],
            ["systemd-run", "--unit=lrms-vm-guest.service", "--property=Restart=always",
             "--property=OOMPolicy=continue", f"{MOUNTED}/lrms_vm/guest", "boot", f"{MOUNTED}/lrms_vm"],
        ],
    }  # fmt: skip


def _hostname(name: str) -> str:
    """A name for the guest's network stack and nobody else: RFC 1123 letters, one label."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63].rstrip("-") or "guest"


def _field(what: str, value: str) -> str:
    """One field of passwd(5) or group(5): no ':', no ',', nothing that ends a line."""
    if ":" in value or "," in value:
        raise ConfigError(f"{what} {value[:80]!r} has ':' or ',' in it", code="account-unusable")
    return _line(what, value)


def _line(what: str, value: str) -> str:
    if not value or not value.isprintable():
        raise ConfigError(f"{what} {value[:80]!r} is empty or does not print", code="account-unusable")
    return value


def _lines(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode() + b"\n"


def _read_program(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            program = file.read(MAX_GUEST_PROGRAM_BYTES + 1)
    except OSError as error:
        raise NodeError(
            f"{path}: cannot read the guest's program: {error.strerror}", hint="make -C guest", code="guest-program"
        ) from error
    if not program.startswith(b"\x7fELF") or len(program) > MAX_GUEST_PROGRAM_BYTES:
        raise NodeError(f"{path}: not a program of at most {MAX_GUEST_PROGRAM_BYTES} bytes", code="guest-program")
    if not mode & stat.S_IXOTH:
        raise NodeError(
            f"{path}: mode {stat.S_IMODE(mode):04o}; the job's user runs it, too, to reach the guest",
            hint=f"chmod a+rx {path}",
            code="guest-program",
        )
    return program


def _write_tree(stage: Path, files: Mapping[str, bytes]) -> None:
    """Under a directory that only root can enter, so that modes inside are those the guest shall see."""
    stage.mkdir(mode=0o700)
    (stage / "lrms_vm").mkdir(mode=0o500)
    for name, text in files.items():
        path = stage / name
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(text)
            os.fchmod(fd, 0o500 if name.endswith("/guest") else 0o400)
