"""Root inside a guest that means harm: what it can reach of the host, of other jobs, of other guests. Each is tried."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from demo import hypervisor, site, users
from demo.cluster import Cluster
from demo.layout import NODES, USER
from lrms_vm.paths import JobPlaces
from tests.integration.slurm.conftest import Desk

pytestmark = pytest.mark.guest

MAX_CONSOLE_BYTES = 16 << 20  # what virtlogd keeps of one console, and its backups

# Each line is one attempt; its name and what came of it.
ATTEMPTS = r"""
root() { lrms-vm-root "$@" 2>/dev/null; }
try() { name=$1; shift; "$@" >/dev/null 2>&1 && echo "$name done" || echo "$name failed"; }
echo "uid $(root id -u)"
echo "interfaces" $(ls /sys/class/net)
try vsock root python3 -c 'import socket; s = socket.socket(40, 1); s.settimeout(3); s.connect((2, 22))'
try packets root python3 -c 'import socket; s = socket.socket(17, 3); s.bind(("eth0", 0))'
try hosts-port root python3 -c 'import socket; socket.create_connection(("192.168.122.1", 22), 3)'
try secret-of-root root cat secret-of-root
try write-secret root sh -c 'echo x >secret-of-root'
try give-to-root root chown 0:0 mine
try give-to-neighbour root chown 12345:12345 mine
try device root mknod disk b 254 0
echo "as another: $(root setpriv --reuid 12345 --regid 12345 --clear-groups sh -c 'echo x >by-another' && echo wrote)"
ln -s /etc/shadow shadow; echo "shadow: $(root cat shadow | cut -d: -f1 | sort -u | tr '\n' ' ')"
try cache root ls /var/lib/lrms_vm /var/lib/lrms_vm-demo /var/cache/lrms_vm
try hypervisor-socket root ls /run/libvirt/libvirt-sock /var/run/libvirt/qemu
echo "disks" $(ls /sys/block | grep -v loop)
try seed root sh -c 'echo x >/dev/vdb'
# A header of a qcow2 over the disk's first sector, which ext4 leaves free: with a backing file of the host.
printf 'QFI\373\0\0\0\3\0\0\0\0\0\0\1\0\0\0\0\13\0\0\0\20\0\0\0\0\0\1\0\0' >header
root dd if=header of=/dev/vda conv=notrunc status=none && root sync && echo "header written"
root timeout 4 sh -c 'yes AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA >/dev/console'
printf '\033]0;title\007\033[2J lrms-vm: everything is well\n' | root tee /dev/console >/dev/null
echo end
"""

# The channel's own program and every ssh session end; what then comes out of the port is ours to choose.
FLOOD = r"""
cat >flood.py <<'END'
import os, time, glob
mine = os.getpid()
for path in glob.glob("/proc/[0-9]*"):
    try:
        exe = os.readlink(path + "/exe")
    except OSError:
        continue
    pid = int(path[6:])
    if pid not in (1, mine) and (exe.endswith("/lrms_vm/guest") or exe.endswith("/guest (deleted)") or "sshd" in exe):
        os.kill(pid, 9)
end = time.monotonic() + 30
noise = [b"LRMS-VM ready 0\n" * 500, os.urandom(8192), b"SSH-2.0-x\r\n" * 300, b"LRMS-VM ready \n" + b"\0" * 4096]
while time.monotonic() < end:
    try:
        port = os.open(glob.glob("/dev/vport*")[0], os.O_RDWR)
        while time.monotonic() < end:
            for piece in noise:
                os.write(port, piece)
    except OSError:
        time.sleep(0.05)
END
lrms-vm-root setsid sh -c 'exec python3 flood.py </dev/null >/dev/null 2>&1' &
sleep 60
echo NOT REACHED
"""


@pytest.fixture(scope="module")
def root_inside(cluster: Cluster) -> Iterator[None]:
    """The demo's user may become root in his guests, which is as bad as an image can be."""
    policy = cluster.layout.etc / "trust.toml"
    policy.write_text(policy.read_text() + 'tier = "own"\n\n[tiers.own]\nroot = true\n')
    yield
    site.configure(cluster.layout)


def places_of(desk: Desk, job_id: int, node: str) -> JobPlaces:
    return desk.layout.places(node).job(f"slurm-{job_id}.{node}")


def test_root_in_a_guest_reaches_nothing_that_is_not_the_jobs(desk: Desk, root_inside: None) -> None:
    user = users.find(USER)
    secret = desk.directory / "secret-of-root"
    secret.write_text("the host's own\n")
    secret.chmod(0o600)
    (desk.directory / "mine").write_text("mine\n")
    os.chown(desk.directory / "mine", user.uid, user.gid)
    job_id = desk.sbatch("--mem=900", "--vm-image=minimal", script=ATTEMPTS)
    job = desk.end(job_id)
    said = dict(line.partition(" ")[::2] for line in desk.output(job).splitlines())
    assert (job.state, said.get("uid"), "end" in said) == ("COMPLETED", "0", True), job.output()
    assert said["interfaces"] == "lo"
    failed = ("vsock", "packets", "hosts-port", "secret-of-root", "write-secret", "give-to-root", "give-to-neighbour")
    assert {name: said[name] for name in failed} == dict.fromkeys(failed, "failed")
    assert [said[name] for name in ("device", "cache", "hypervisor-socket", "seed")] == ["failed"] * 4
    assert secret.read_text() == "the host's own\n"
    assert USER in said["shadow:"].split()  # the guest's own: a line of it is the job's user's, see guest/boot.c
    assert said["disks"].split() == ["sr0", "vda", "vdb"] or said["disks"].split() == ["vda", "vdb"]
    owners = {path.name: path.lstat().st_uid for path in desk.directory.iterdir() if path != secret}
    assert set(owners.values()) <= {user.uid, 0} and owners["mine"] == user.uid
    assert [name for name, uid in owners.items() if uid != user.uid and not name.endswith(".out")] == []
    assert said["header"] == "written"


def test_a_console_that_is_flooded_stays_small_on_the_host(desk: Desk, root_inside: None) -> None:
    flood = (
        "lrms-vm-root timeout 8 sh -c 'yes AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA >/dev/console'\necho x >flooded\n"
    )
    job_id = desk.sbatch("--mem=900", "--vm-image=minimal", script=flood + "while test ! -e on; do sleep 0.5; done\n")
    node = desk.started(job_id)
    desk.written("flooded")
    logs = list(places_of(desk, job_id, node).run.glob("console.log*"))
    sizes = [path.stat().st_size for path in logs]
    (desk.directory / "on").touch()
    assert desk.end(job_id).state == "COMPLETED"
    assert 0 < sum(sizes) < MAX_CONSOLE_BYTES, sizes


def test_a_guest_that_floods_the_channel_is_lost_and_hurts_nobody(desk: Desk, root_inside: None) -> None:
    job_id = desk.sbatch("--mem=900", "--vm-image=minimal", script=FLOOD)
    job = desk.end(job_id)
    assert (job.state, job.exit_code) == ("FAILED", "70:0"), job.output()
    assert "NOT REACHED" not in job.output()
    assert hypervisor.domains() == []
    for node in NODES:
        state, reason = desk.cluster.node_state(node)
        assert "DRAIN" not in state and "DOWN" not in state, reason
    after = desk.end(desk.sbatch("--vm-image=minimal", "--mem=900", script="echo well\n"))
    assert (after.state, desk.output(after)) == ("COMPLETED", "well\n")
