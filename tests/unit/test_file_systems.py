from __future__ import annotations

from pathlib import Path

import pytest

from lrms_vm import file_systems
from lrms_vm.admission import refuse_network
from lrms_vm.errors import NodeError

TABLE = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:20 / /var/lib/lrms_vm rw - nfs4 server:/export rw,vers=4.2
24 22 0:21 / /var/lib/with\\040blank rw master:1 - fuse.sshfs host:/ rw
25 22 0:22 / /mnt rw - nfs server:/a rw
26 22 254:1 / /mnt rw - xfs /dev/vdb rw
garbage
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/var/lib/lrms_vm", "nfs4"),
        ("/var/lib/lrms_vm/store", "nfs4"),
        ("/var/lib/lrms_vm-other", "ext4"),
        ("/var/lib/with blank/x", "fuse.sshfs"),
        ("/mnt/x", "xfs"),
    ],
)
def test_the_last_mount_that_covers_a_path_counts(path: str, kind: str) -> None:
    assert file_systems.kind_at(path, TABLE) == kind


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "lustre", "ceph", "9p", "virtiofs", "fuse.sshfs", "fuse"])
def test_disks_of_other_machines_are_told(kind: str) -> None:
    assert file_systems.on_network(kind)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "fuseblk"])
def test_disks_of_this_machine_are_told(kind: str) -> None:
    assert not file_systems.on_network(kind)


def test_a_cache_on_the_network_is_refused_unless_the_site_says_that_it_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_network(tmp_path / "not" / "there" / "yet", allowed=False)
    monkeypatch.setattr("lrms_vm.admission.kind_of", lambda _: "nfs4")
    with pytest.raises(NodeError, match="on nfs4, expected a disk of this node") as caught:
        refuse_network(tmp_path, allowed=False)
    assert caught.value.code == "state-on-network"
    refuse_network(tmp_path, allowed=True)
