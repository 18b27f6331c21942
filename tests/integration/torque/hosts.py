"""Two hosts for pbs_mom on this machine: name spaces of network, mounts and host name, one file system."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from demo.programs import run

NAMES = ("tqa", "tqb")
_ADDRESSES = {"tqa": "10.99.7.1", "tqb": "10.99.7.2"}
# trqauthd's socket is in /tmp, whatever it is told: each host sees a /tmp of its own over this machine's
_SETTLE = """\
set -e
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
mount -t tmpfs none "$2/$1"
mkdir -m 1777 "$2/$1/upper" "$2/$1/work"
mount -t overlay overlay -o "lowerdir=/tmp,upperdir=$2/$1/upper,workdir=$2/$1/work" /tmp
rm -f /tmp/trqauthd-unix
mount --bind "$2/server_name" "$3"
echo ready
exec sleep infinity
"""


@contextlib.contextmanager
def two(directory: Path, server_name: Path) -> Iterator[dict[str, tuple[str, ...]]]:
    """For each host the words before a command that is to run there. `server_name`: the file that names the server."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in _ADDRESSES.items())]
    (directory / "hosts").write_text("\n".join(lines) + "\n")
    (directory / "server_name").write_text(f"{NAMES[0]}\n")
    holders: list[subprocess.Popen[bytes]] = []
    spaces = {name: f"lrms-vm-{name}" for name in NAMES}
    try:
        for space in spaces.values():
            subprocess.run(["ip", "netns", "del", space], capture_output=True)  # of a run that was killed
            run(["ip", "netns", "add", space])
        first, second = spaces.values()
        run(["ip", "link", "add", "tq0", "netns", first, "type", "veth", "peer", "name", "tq0", "netns", second])
        inside = {}
        for name, space in spaces.items():
            for words in (["addr", "add", f"{_ADDRESSES[name]}/24", "dev", "tq0"], ["link", "set", "tq0", "up"]):
                run(["ip", "-n", space, *words])
            run(["ip", "-n", space, "link", "set", "lo", "up"])
            (directory / name).mkdir(exist_ok=True)
            enter = ["nsenter", f"--net=/run/netns/{space}", "unshare", "--mount", "--uts", "--propagation", "private"]
            holder = subprocess.Popen(
                [*enter, "sh", "-c", _SETTLE, "sh", name, str(directory), str(server_name)], stdout=subprocess.PIPE
            )
            holders.append(holder)
            assert holder.stdout is not None and holder.stdout.readline() == b"ready\n", name
            inside[name] = ("nsenter", f"--target={holder.pid}", "--net", "--mount", "--uts")
        yield inside
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()
        for space in spaces.values():
            subprocess.run(["ip", "netns", "del", space], capture_output=True)
