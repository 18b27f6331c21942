"""A job on two hosts: a real guest on each, and `pbsdsh` from the script in the first starts tasks in both."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator

import pytest

from demo import leftovers, site, users
from demo.hooks import GUEST
from demo.layout import USER
from demo.programs import wait_until
from tests.integration.torque import hosts
from tests.integration.torque.conftest import BOOT_S, Desk
from tests.integration.torque.torque_alone import Torque, server_name

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def pair(torque: Torque) -> Iterator[tuple[Torque, Torque]]:
    layout = torque.layout
    site.configure(layout, hosts.NAMES, plugin=False)
    for name in hosts.NAMES:
        link = layout.libvirt_socket(name)
        if not link.is_symlink():
            link.symlink_to(layout.libvirt_socket(torque.name).readlink())
    with hosts.two(layout.base / "hosts", server_name()) as inside:
        first = Torque(layout, name="tqa", host="tqa", inside=inside["tqa"])
        second = Torque(layout, name="tqb", host="tqb", inside=inside["tqb"], server="tqa")
        try:
            for one in (first, second):
                one.make_home()
                one.install(GUEST)
            first.start()
            first.qmgr("set server managers += root@tqb")
            first.qmgr("create node tqb np=4")
            second.authorize()
            second.start_mom()
            second.in_service()
            yield first, second
        finally:
            second.stop()
            first.stop()


@pytest.fixture
def desk(pair: tuple[Torque, Torque], request: pytest.FixtureRequest) -> Desk:
    directory = pair[0].layout.home(USER) / "tests" / f"torque-two-{uuid.uuid4().hex[:6]}"
    directory.mkdir(mode=0o755, parents=True)
    user = users.find(USER)
    os.chown(directory, user.uid, user.gid)
    return Desk(pair[0], directory)


def test_tasks_in_the_guests_of_both_hosts(desk: Desk, pair: tuple[Torque, Torque]) -> None:
    script = """\
cd "$PBS_O_WORKDIR"; cat /proc/sys/kernel/random/boot_id >lead; export MINE=theirs
pbsdsh -v sh -c 'cat /proc/sys/kernel/random/boot_id >"$PBS_O_WORKDIR/task.$PBS_NODENUM"'; echo rc $?
for host in tqa tqb; do
    pbsdsh -o -h $host -e MINE sh -c 'test -d /run/lrms_vm/tasks && echo "node $PBS_NODENUM $MINE"; exit 3' 2>>problem
done
pbsdsh -o -u echo each
"""
    name = desk.qsub("-l", "nodes=2:ppn=1", script=script)
    fields = desk.torque.wait(name, "C", timeout_s=2 * BOOT_S)
    assert set(re.findall(r"tq[ab]", fields["exec_host"])) == {"tqa", "tqb"}
    assert fields["exit_status"] == "0", desk.said("err")
    first, *nodes, one, two = desk.said("out").splitlines()
    assert (first, sorted(nodes), one, two) == ("rc 0", ["node 0 theirs", "node 1 theirs"], "each", "each")
    said = {name: (desk.directory / name).read_text() for name in ("lead", "task.0", "task.1", "problem")}
    assert said["task.0"] == said["lead"] != said["task.1"]
    assert said["problem"].count("exit status 3") == 2
    number = name.partition(".")[0]
    for one in pair:
        key = f"torque-{number}.{one.host}"
        wait_until("nothing is left", lambda: leftovers.search_key(one.layout, one.name, key) == [], timeout_s=20)


def test_one_refused_image_ends_the_job_on_both(desk: Desk) -> None:
    name = desk.qsub("-l", "nodes=2:ppn=1", script="echo RAN\n", image="no-such-image")
    fields = desk.torque.wait(name, "C", timeout_s=60)
    assert "image-unknown: --vm-image: no-such-image" in fields["comment"]
    assert desk.said("out") == ""
    assert "state = free" in desk.torque.node()
