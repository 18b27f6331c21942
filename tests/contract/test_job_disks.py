"""The real qemu-img and genisoimage: what is on the disks, whose they are, and what a hostile place does to them."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lrms_vm import keys, overlay, seed
from lrms_vm.account import Account
from lrms_vm.config import Config
from lrms_vm.domain import Domain
from lrms_vm.errors import ConfigError, NodeError

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user"),
    pytest.mark.skipif(not Path(overlay.QEMU_IMG).exists(), reason="needs qemu-utils"),
    pytest.mark.skipif(not Path(seed.GENISOIMAGE).exists(), reason="needs genisoimage"),
]
CONFIG = Config(guest_program=str(Path(sys.executable).resolve()))
RANDOM = bytes(64)
ALICE = Account("alice", 1001, 1001, (("alice", 1001),), "/home/alice")


@pytest.fixture
def job(tmp_path: Path) -> Domain:
    base = tmp_path / "base"
    base.write_bytes(b"QFI\xfb" + bytes(1 << 20))  # a raw image that begins like a qcow2
    disk = tmp_path / "disk"
    disk.mkdir(mode=0o711)
    nothing = dict.fromkeys(Domain.__dataclass_fields__, "")
    return replace(
        Domain(**nothing),  # type: ignore[arg-type]
        name="lrms_vm-slurm-1.n1",
        base_path=str(base),
        overlay_path=str(disk / "overlay.qcow2"),
        seed_path=str(disk / "seed.iso"),
        run_as="+12345:+23456",
    )


def make_seed(job: Domain, pair: keys.KeyPair | None = None) -> None:
    seed.make(job, ALICE, pair or keys.make_pair(), ["/work"], config=CONFIG, timeout_s=20)


def only_the_hypervisors(path: str) -> bool:
    status = os.lstat(path)
    return (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12345, 23456, 0o600)


def test_overlay_takes_its_base_as_raw_whatever_it_looks_like(job: Domain) -> None:
    overlay.make(job, timeout_s=20)
    assert only_the_hypervisors(job.overlay_path)
    info = subprocess.run(
        ["qemu-img", "info", "--output=json", job.overlay_path], capture_output=True, check=True, timeout=20
    )
    values = json.loads(info.stdout)
    assert (values["format"], values["backing-filename-format"]) == ("qcow2", "raw")
    assert values["backing-filename"] == job.base_path
    assert values["virtual-size"] == 1049088  # of the file, rounded up to a sector, not what its first bytes claim


def test_seed_reads_back_with_its_label_names_and_modes(job: Domain, tmp_path: Path) -> None:
    pair = keys.make_pair()
    make_seed(job, pair)
    assert only_the_hypervisors(job.seed_path)
    content = Path(job.seed_path).read_bytes()
    assert content[0x8028 : 0x8028 + 32].rstrip() == b"cidata"  # ECMA-119 8.4.7, volume identifier
    out = tmp_path / "out"
    subprocess.run(
        ["xorriso", "-osirrox", "on", "-indev", job.seed_path, "-extract", "/", str(out)],
        capture_output=True, check=True, timeout=30,
    )  # fmt: skip
    found = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    program = Path(CONFIG.guest_program).read_bytes()
    wanted = seed.seed_files(job.name, ALICE, pair, ["/work"], program=program, randomness=RANDOM)
    made = {name: path.read_bytes() for name, path in found.items()}
    randomness = made["lrms_vm/random"]
    assert made == wanted | {"lrms_vm/random": randomness}
    assert len(randomness) == len(RANDOM) and randomness != RANDOM  # each job its own
    assert stat.S_IMODE(found["lrms_vm/guest"].stat().st_mode) == 0o500
    assert stat.S_IMODE(found["lrms_vm/ssh_host_ed25519_key"].stat().st_mode) == 0o400
    assert found["lrms_vm/guest"].stat().st_uid == 0
    assert pair.user_private not in content


def test_nothing_but_the_two_disks_is_left(job: Domain) -> None:
    overlay.make(job, timeout_s=20)
    make_seed(job)
    assert sorted(os.listdir(Path(job.seed_path).parent)) == ["overlay.qcow2", "seed.iso"]


def test_a_seed_that_cannot_be_made_leaves_no_key_behind(job: Domain) -> None:
    shutil.copy("/bin/true", job.seed_path)  # something is there already: never written over
    with pytest.raises(NodeError):
        make_seed(job)
    assert os.listdir(Path(job.seed_path).parent) == ["seed.iso"]
    Path(job.seed_path).unlink()
    target = Path(job.seed_path).with_name("elsewhere")
    Path(job.seed_path).symlink_to(target)
    with pytest.raises(NodeError):
        make_seed(job)
    assert not target.exists()


def test_a_guest_program_that_is_none_is_refused(job: Domain, tmp_path: Path) -> None:
    for program in (tmp_path / "absent", Path("/etc/passwd")):
        with pytest.raises(NodeError) as caught:
            seed.make(
                job, ALICE, keys.make_pair(), [], config=replace(CONFIG, guest_program=str(program)), timeout_s=20
            )
        assert caught.value.code == "guest-program"


def test_a_hypervisor_user_that_is_not_there_is_the_sites_mistake(job: Domain) -> None:
    with pytest.raises(ConfigError):
        overlay.make(replace(job, run_as="no-such-user:root"), timeout_s=20)
    assert not Path(job.overlay_path).exists()


def test_keys_are_what_openssh_reads(tmp_path: Path) -> None:
    pair = keys.make_pair()
    for private, public in ((pair.user_private, pair.authorized_keys), (pair.host_private, pair.known_hosts[6:])):
        path = tmp_path / "key"
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(private)
        said = subprocess.run(["ssh-keygen", "-y", "-f", str(path)], capture_output=True, check=True, timeout=20)
        assert said.stdout.split()[:2] == public.split()[:2]
