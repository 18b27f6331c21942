"""The keys of one job: who the guest is and who may enter it. Made for each guest, gone with it.

Ed25519 in OpenSSH's own formats (PROTOCOL.key of openssh-portable, sshd(8) for the one-line files).
"""

from __future__ import annotations

from dataclasses import field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from lrms_vm.values import dataclass

HOST_ALIAS = "guest"  # HostKeyAlias of the ssh_config that channel.py writes


@dataclass(frozen=True)
class KeyPair:
    """Two pairs, as the four files that need them. Nothing private shows in a repr, so in no log either."""

    host_private: bytes = field(repr=False)  # the guest's ssh_host_ed25519_key
    known_hosts: bytes  # the user's: this guest and no other
    user_private: bytes = field(repr=False)  # the user's id_ed25519
    authorized_keys: bytes  # the guest's


def make_pair() -> KeyPair:
    """Make both pairs, from the kernel's randomness."""
    host, user = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    return KeyPair(
        host_private=_private(host),
        known_hosts=HOST_ALIAS.encode() + b" " + _public(host) + b"\n",
        user_private=_private(user),
        authorized_keys=_public(user) + b" lrms_vm\n",
    )


def _private(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
