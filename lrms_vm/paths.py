"""Every file and directory we ever make, drawn once.

    state_dir  /var/lib/lrms_vm            0755 root      survives a reboot; a local disk
      store/sha256/ab/<hex>/               0755 root      verified images, see cache.py
      ingest/  locks/  leases/             0700 root      see cache.py
      signatures/  quarantine/  pins/      0700 root      see sidefiles.py, store.py, pins.py
      scrub.json                           0600 root      where the scrub stopped, see scrub.py
      lists/<name>.list                    0644 root      subscribed image lists, see lists.py
      trust/                               0700 root      what must not go back, see trust_state.py
      kernels/<sha256>.json                0600 root      stamps of the site's kernels, see site_kernel.py
      jobs/<key>/                          0711 root      per-job disks, gone after the epilogue
        overlay.qcow2                      0600 hypervisor's user
        seed.iso                           0600 hypervisor's user
        boot/                              0700 root      kernel and initrd out of the image, see pygrub.py
      history/<key>.json                   0600 root      phases and outcome of ended jobs, newest 1000
      retries/<key>                        0600 root      how often we sent a job back, see retries.py
      metrics/                             0700 root      what the node has counted, see counters.py
    run_dir    /run/lrms_vm                0755 root      gone at reboot, like the guests themselves
      verdicts/<key>.json                  0440 root:gid  what the SPANK plugin and `exec` believe
      networks/<key>.json                  0600 root      what guests with a network have, see network.py
      locks/<key>.lock                     0600 root      one prologue or epilogue per job at a time
      jobs/<key>/                          0711 root
        record.jsonl                       0600 root      what teardown must undo, written before each step
        domain.xml                         0600 root      what was given to libvirt
        channel.sock                       0600 user      qemu's end of the guest channel
        console.log                        0400 user      the guest's console
        user/                              0700 user      keys, shared connection, what attach says

<key> is `Allocation.key`: <lrms>-<job id>.<node>.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lrms_vm.values import dataclass

NAME_PREFIX = "lrms_vm-"  # of what carries a job's key where others have names too: domains, cgroups


@dataclass(frozen=True)
class Places:
    """The two roots of a node, and what hangs from them."""

    state_dir: Path
    run_dir: Path

    @property
    def store(self) -> Path:
        return self.state_dir / "store"

    @property
    def ingest(self) -> Path:
        return self.state_dir / "ingest"

    @property
    def cache_locks(self) -> Path:
        return self.state_dir / "locks"

    @property
    def leases(self) -> Path:
        return self.state_dir / "leases"

    @property
    def signatures(self) -> Path:
        return self.state_dir / "signatures"

    @property
    def lists(self) -> Path:
        return self.state_dir / "lists"

    @property
    def trust(self) -> Path:
        return self.state_dir / "trust"

    @property
    def quarantine(self) -> Path:
        return self.state_dir / "quarantine"

    @property
    def pins(self) -> Path:
        return self.state_dir / "pins"

    @property
    def scrub(self) -> Path:
        return self.state_dir / "scrub.json"

    @property
    def history(self) -> Path:
        return self.state_dir / "history"

    @property
    def retries(self) -> Path:
        return self.state_dir / "retries"

    @property
    def metrics(self) -> Path:
        return self.state_dir / "metrics"

    @property
    def disks(self) -> Path:
        return self.state_dir / "jobs"

    @property
    def verdicts(self) -> Path:
        return self.run_dir / "verdicts"

    @property
    def jobs(self) -> Path:
        return self.run_dir / "jobs"

    @property
    def networks(self) -> Path:
        return self.run_dir / "networks"

    @property
    def job_locks(self) -> Path:
        return self.run_dir / "locks"

    def verdict(self, key: str) -> Path:
        return self.verdicts / f"{key}.json"

    def job(self, key: str) -> JobPlaces:
        return JobPlaces(run=self.jobs / key, disk=self.disks / key)


@dataclass(frozen=True)
class JobPlaces:
    """Everything that exists only for one job on one node."""

    run: Path
    disk: Path

    @property
    def overlay(self) -> Path:
        return self.disk / "overlay.qcow2"

    @property
    def seed(self) -> Path:
        return self.disk / "seed.iso"

    @property
    def boot(self) -> Path:
        return self.disk / "boot"

    @property
    def record(self) -> Path:
        return self.run / "record.jsonl"

    @property
    def domain_xml(self) -> Path:
        return self.run / "domain.xml"

    @property
    def channel(self) -> Path:
        return self.run / "channel.sock"

    @property
    def console(self) -> Path:
        return self.run / "console.log"

    @property
    def user(self) -> UserPlaces:
        return UserPlaces(self.run / "user")


@dataclass(frozen=True)
class UserPlaces:
    """The part of a job's directory that belongs to its user; root never reads a decision from it."""

    root: Path

    @property
    def private_key(self) -> Path:
        return self.root / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        return self.root / "known_hosts"

    @property
    def ssh_config(self) -> Path:
        return self.root / "ssh_config"

    @property
    def control_socket(self) -> Path:
        """The shared ssh connection."""
        return self.root / "ctl"

    @property
    def ready(self) -> Path:
        """Written by attach when guest, connection and shares are up."""
        return self.root / "ready"

    @property
    def failed(self) -> Path:
        """Written by attach instead of `ready`: why the guest never came up."""
        return self.root / "failed"

    @property
    def attaching(self) -> Path:
        """A FIFO that attach holds open until it has written one of the two."""
        return self.root / "attaching"

    @property
    def payload(self) -> Path:
        """Written by exec when a payload ended: how long it took. Shown, never believed."""
        return self.root / "payload"

    @property
    def passwd(self) -> Path:
        """The one line of passwd(5) that a share's server sees."""
        return self.root / "passwd"

    @property
    def attach_log(self) -> Path:
        return self.root / "attach.log"


def below(path: str, shares: Sequence[str]) -> bool:
    """Whether `path` is one of `shares` or in one, by name."""
    clean = os.path.normpath(path) if path.startswith("/") else ""
    return any(clean == share or clean.startswith(share.rstrip("/") + "/") for share in map(os.path.normpath, shares))
