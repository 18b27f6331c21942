"""What the guest's program makes of a seed: real program, private name spaces. Needs root."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest_in_namespace import PROGRAM, REPOSITORY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes name spaces: needs root")

GOOD = {
    "version": "1\n",
    "random": "r" * 64,
    "hostname": "slurm-7-n1\n",
    "passwd": "eve:x:4711:4712:Eve:/data/users/eve:/bin/tcsh\n",
    "group": "hep:x:4712:eve\nwheel:x:0:eve\natlas:x:20:eve\nbad line\n",
    "ssh_host_ed25519_key": "key\n",
    "authorized_keys": "ssh-ed25519 AAAA\n",
    "shares": "/data/run 7\n/data/../etc\nrelative\n",
}
# An image that knows the uid under another name and the user under another uid; the channel is at its end at once.
SETUP = """\
set -e
mount -t tmpfs none /mnt; mkdir /mnt/etc; mount --bind /mnt/etc /etc
mount -t tmpfs none /run; mount -t tmpfs none /home; mount -t tmpfs none /usr/local; mkdir /usr/local/bin
printf 'root:x:0:0:root:/root:/bin/sh\\nold:x:4711:4711::/home/old:/bin/sh\\neve:x:99:99::/:/bin/false\\n' > /etc/passwd
printf 'root:x:0:\\ndialout:x:20:\\nhep:x:99:other\\n' > /etc/group
printf 'root:*:1::::::\\neve:!:1::::::\\n' > /etc/shadow
mkdir -p "$3"; mount -t tmpfs none "$3"
timeout 0.5 "$1" boot "$2" - < /dev/null || test $? = 124
for f in /etc/passwd /etc/group /etc/shadow /etc/hostname /run/lrms_vm/home; do echo "== $f"; cat $f; done
echo "== ls"; stat -c '%A %u %g %n' "$3" "$3"/* "$3"/users/eve /run/lrms_vm/tasks /run/lrms_vm/sshd_config
hostname
"""


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> Iterator[Path]:
    subprocess.run(["make", "-s", "-C", str(REPOSITORY / "guest")], check=True)
    with tempfile.TemporaryDirectory(prefix="lrms-", dir="/tmp") as directory:
        yield Path(directory)


def boot(seed: Path, **changed: str) -> subprocess.CompletedProcess[str]:
    data = seed / "data"
    files = GOOD | changed
    for name, text in files.items():
        (seed / name).write_text(text.replace("/data", str(data)))
    words = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    return subprocess.run(
        [*words, "sh", "-c", SETUP, "sh", str(PROGRAM), str(seed), str(data)],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        timeout=30,
    )


def test_the_user_s_name_and_uid_mean_the_job_s_user_and_nobody_else(seed: Path) -> None:
    done = boot(seed)
    home = seed / "data/users/eve"
    parts = dict(part.split("\n", 1) for part in done.stdout.split("== ")[1:])
    assert parts["/etc/passwd"] == f"root:x:0:0:root:/root:/bin/sh\neve:x:4711:4712:Eve:{home}:/bin/sh\n", done.stderr
    assert parts["/etc/group"] == "root:x:0:\nhep:x:4712:eve\natlas:x:20:eve\n"
    assert parts["/etc/shadow"] == "root:*:1::::::\neve:*:19000:0:99999:7:::\n"  # "!" would lock sshd out
    assert parts["/run/lrms_vm/home"] == f"{home}\n"[:-1]
    assert parts["ls"].endswith("slurm-7-n1\n")
    assert f"drwx------ 4711 4712 {home}\n" in parts["ls"]
    assert f"drwx------ 4711 4712 {seed}/data/run 7\n" in parts["ls"]
    assert "drwxrwxrwt 0 0 /run/lrms_vm/tasks\n" in parts["ls"]
    assert "-rw------- 0 0 /run/lrms_vm/sshd_config\n" in parts["ls"]
    assert "a group line of the seed is not usable" in done.stderr
    assert done.stderr.count("no mount point") == 2


def test_the_kernel_takes_the_random_bytes_of_the_seed(seed: Path) -> None:
    assert "random" not in boot(seed).stderr


@pytest.mark.parametrize("text", ["", "r" * 63, "r" * 65])
def test_a_guest_without_random_bytes_starts_and_says_so(seed: Path, text: str) -> None:
    done = boot(seed, random=text)
    assert "== /etc/passwd" in done.stdout
    assert f"boot: {seed}/random: not 64 bytes" in done.stderr


@pytest.mark.parametrize(
    "name, text",
    [
        ("version", "2\n"),
        ("passwd", "root:x:0:0::/root:/bin/sh\n"),
        ("passwd", "eve:x:00:1::/home/eve:/bin/sh\n"),
        ("passwd", "eve:x:4711:4712::relative:/bin/sh\n"),
        ("passwd", "eve:x:4711:4712::/home/../etc:/bin/sh\n"),
        ("passwd", "e ve:x:4711:4712::/home/eve:/bin/sh\n"),
        ("passwd", "-eve:x:4711:4712::/home/eve:/bin/sh\n"),
        ("passwd", "../eve:x:4711:4712::/home/eve:/bin/sh\n"),
        ("passwd", "eve:x:-1:4712::/home/eve:/bin/sh\n"),
        ("passwd", "eve:x:4294967295:4712::/home/eve:/bin/sh\n"),
        ("passwd", ""),
        ("hostname", "a b\n"),
        ("hostname", "x" * 100),
    ],
)
def test_a_seed_that_makes_no_sense_starts_nothing(seed: Path, name: str, text: str) -> None:
    done = boot(seed, **{name: text})
    assert done.returncode != 0
    assert "boot: the seed" in done.stderr
    assert "== /etc/passwd" not in done.stdout


AS_ROOT = """\
set -e
mount -t tmpfs none /mnt; cp -r /etc/passwd /etc/group /etc/shadow /mnt; mkdir -p /mnt/etc; mount --bind /mnt/etc /etc
echo '# mount_max = 1000' > /etc/fuse.conf
mount -t tmpfs none /run; mount -t tmpfs none /home; mount -t tmpfs none /usr/local; mkdir /usr/local/bin
mkdir -p "$3"; mount -t tmpfs none "$3"
cp "$1" /usr/local/bin/lrms-vm-root  # as a saved image may have it
timeout 0.5 "$1" boot "$2" - < /dev/null || test $? = 124
cat /etc/fuse.conf
as() { setpriv --reuid "$1" --regid "$2" --clear-groups sh -c 'lrms-vm-root id -u; echo "$(id -u) $?"'; }
set +e
PATH=/usr/local/bin:$PATH
as 4711 4712; as 4713 4713
"""


def root_inside(seed: Path, **more: str) -> list[str]:
    for name, text in (GOOD | more).items():
        (seed / name).write_text(text.replace("/data", str(seed / "data")))
    words = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    done = subprocess.run(
        [*words, "sh", "-c", AS_ROOT, "sh", str(PROGRAM), str(seed), str(seed / "data")],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")


def test_the_user_is_root_inside_where_the_seed_says_so_and_nobody_else_is(seed: Path) -> None:
    assert root_inside(seed, root="1\n") == [
        *("# mount_max = 1000", "", "user_allow_other"),
        *("0", "4711 0"),
        *("4713 127", ""),  # not for others: dash calls it not found
    ]


def test_without_that_there_is_no_way_to_root_whatever_the_image_had(seed: Path) -> None:
    assert root_inside(seed) == ["# mount_max = 1000", "4711 127", "4713 127", ""]


EARLY = """\
set -e
mount -t tmpfs none /mnt; cp -r /etc/passwd /etc/group /etc/shadow /mnt; mkdir -p /mnt/etc; mount --bind /mnt/etc /etc
mount -t tmpfs none /run; mount -t tmpfs none /home; mount -t tmpfs none /usr/local; mkdir /usr/local/bin
mount -t proc proc /proc
mkdir -p "$3"; mount -t tmpfs none "$3"
"$1" early "$2" < /dev/null
test -e /run/lrms_vm/early
cat /sys/class/net/lo/flags
channel() { for p in /proc/[0-9]*; do case $(readlink $p/exe) in "$1") echo ${p#/proc/};; esac; done | sort -n | tail -1; }
sleep 0.2
first=$(channel "$1"); kill -9 $first; sleep 1; second=$(channel "$1")
echo $first $second $(cut -d' ' -f19 /proc/$second/stat)
"""


def test_started_early_it_keeps_the_channel_s_program_running(seed: Path) -> None:
    data = seed / "data"
    for name, text in GOOD.items():
        (seed / name).write_text(text.replace("/data", str(data)))
    words = ["unshare", "--mount", "--uts", "--net", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    done = subprocess.run(
        [*words, "sh", "-c", EARLY, "sh", str(PROGRAM), str(seed), str(data)],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    flags, numbers = done.stdout.splitlines()
    first, second, nice = map(int, numbers.split())
    assert int(flags, 16) & 1  # IFF_UP
    assert second > first
    assert nice == -10
