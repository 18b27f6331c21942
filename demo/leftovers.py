"""What a job left on this machine. Shares no code with teardown.py: it must find what that forgets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from demo import hypervisor
from demo.layout import NODES, Layout

CGROUPS = Path("/sys/fs/cgroup")


def search(layout: Layout, job_id: int) -> list[str]:
    """Everything on both nodes that still carries the job's key, one line each; empty when nothing is left."""
    found = []
    for node in NODES:
        found += search_key(layout, node, f"slurm-{job_id}.{node}")
    return found


def search_key(layout: Layout, node: str, key: str) -> list[str]:
    """The same for one key (`Allocation.key`)."""
    places = layout.places(node)
    name = hypervisor.DOMAIN_PREFIX + key
    found = [f"domain {name}" for domain in hypervisor.domains() if domain == name]
    found += [f"process {line}" for line in processes(key)]
    found += [f"mount {line}" for line in mounts(key)]
    found += [f"cgroup {path}" for path in cgroups(name)]
    for what, directory in (
        ("verdict", places.verdicts),
        ("record", places.jobs),
        ("disk", places.disks),
        ("lease", places.leases),
        ("lock", places.job_locks),
    ):
        found += [f"{what} {path}" for path in entries(directory) if key_in(path.name, key)]
    found += [f"download {path}" for path in entries(places.ingest)]
    return found


def key_in(text: str, key: str) -> bool:
    """Whether a name carries this key and not only one that begins alike (slurm-1.n1 is not slurm-11.n1)."""
    before, _, after = text.partition(key)
    return text != before and not before[-1:].isalnum() and not after[:1].isalnum()


def processes(key: str) -> Iterator[str]:
    """Processes of the job's guest: by their environment (attach, its ssh and sftp) or command line (qemu)."""
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
            environment = (directory / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # ended meanwhile
        if not words[0]:
            continue  # a kernel thread, or ended and not yet reaped by its parent
        if f"LRMS_VM_KEY={key}".encode() in environment or any(
            key_in(word.decode("utf-8", "replace"), key) for word in words
        ):
            yield f"{directory.name} {b' '.join(words).decode('utf-8', 'replace')[:120]}"


def mounts(key: str) -> list[str]:
    """Mount points of this machine that carry the key."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if any(key_in(word, key) for word in line.split())]


def cgroups(name: str) -> list[Path]:
    """Libvirt's, machine/qemu-N-NAME..., and ours, wherever in the tree they are."""
    wanted = name.replace("_", "")
    return [Path(path) for path, _, _ in os.walk(CGROUPS) if key_in(os.path.basename(path).replace("_", ""), wanted)]


def entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
