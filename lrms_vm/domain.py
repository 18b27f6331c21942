"""Domain: what libvirt shall start, as a value. (`describe`, `render`, `compare` below are the guest agent's to fill.)"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Domain:
    """Everything a template may use, and nothing a user wrote: numbers, our own paths, checked names."""

    name: str  # lrms_vm-<key>
    hypervisor: str  # "qemu" | "kvm" | "xen"
    memory_mib: int
    vcpus: int
    base_path: str  # the verified image: raw, read-only
    overlay_path: str  # qcow2 over base_path, for the guest to write
    seed_path: str  # raw ISO, read-only
    kernel_path: str
    initrd_path: str
    cmdline: str
    channel_path: str  # unix socket, bound by the hypervisor
    console_path: str  # file that gets the console's bytes
    network: str  # "none" | "nat" | "bridge:NAME"
    mac: str | None
    run_as: str  # "+uid:+gid" of the hypervisor process
