"""A real Torque, a guest that really boots, payloads in it, refusals, faults, and nothing left."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shutil
import subprocess
import time

import pytest

from demo import site, users, validation
from demo.layout import USER
from demo.programs import wait_until
from demo.run import IMAGE, JOB_SCRIPT
from tests.integration.torque.conftest import BOOT_S, Desk
from tests.integration.torque.torque_alone import NODE

WHERE = "test -d /run/lrms_vm/tasks && echo in the guest || echo ON THE HOST\n"
pytestmark = pytest.mark.guest


def test_an_ordinary_job_is_untouched(desk: Desk) -> None:
    assert desk.end(desk.qsub(script=WHERE + "id -un; exit 3\n", image=None)) == (3, f"ON THE HOST\n{USER}\n")
    assert desk.said("err") == ""


def test_a_script_runs_in_the_guest_with_its_arguments_and_exit_code(desk: Desk) -> None:
    script = WHERE + 'id -un; cd "$PBS_O_WORKDIR"; pwd; printf "%s|" "$@"; exit 7\n'
    name = desk.qsub("-F", "a 'b  c'", script=script)
    assert desk.end(name) == (7, f"in the guest\n{USER}\n{desk.directory}\na|b  c|")


def test_an_image_in_the_jobs_variables(desk: Desk) -> None:
    name = desk.qsub("-v", "VM_IMAGE=minimal,VM_MEMORY=500M", script=WHERE, image=None)
    assert desk.end(name) == (0, "in the guest\n")


def test_an_array_has_a_guest_for_each_task(desk: Desk) -> None:
    array = desk.qsub("-t", "1-2", script=WHERE + "exit $PBS_ARRAYID\n", start=False)
    for task in ("1", "2"):
        name = array.replace("[]", f"[{task}]")
        desk.torque.run(name)
        assert desk.end(name)[0] == int(task)


def test_a_script_in_the_guest_starts_tasks_by_pbsdsh(desk: Desk) -> None:
    """The node's own pbsdsh runs them, through the job starter: in the guest, with the job's environment."""
    boot_id, here = "cat /proc/sys/kernel/random/boot_id", '"$PBS_O_WORKDIR"'
    script = f"""\
cd {here}; {boot_id} >lead; export MINE=theirs
pbsdsh sh -c '{boot_id} >{here}/task.$PBS_VNODENUM; echo "task ${{MINE-none}} ${{PBS_JOBCOOKIE-none}}"'; echo rc $?
said=$(pbsdsh -o -n 1 -e MINE,NEW=2 sh -c 'echo "$PBS_VNODENUM $PBS_TASKNUM $MINE $NEW"; exit 9' 2>problem); echo rc $? "$said"
printf '0\\n1\\n' | while read -r n; do pbsdsh -sn "$n" true; echo loop $n $?; done
pbsdsh -n 9 true 2>nodes; echo rc $?
pbsdsh --host=x true 2>refused; echo rc $?
pbsdsh -o sh -c "head -c 100000 /dev/zero | tr '\\\\0' x" | wc -c
pbsdsh -o -h {desk.torque.host} sh -c 'echo at $PBS_VNODENUM'
"""
    code, output = desk.end(desk.qsub("-l", "nodes=1:ppn=2", script=script))
    lines = output.splitlines()
    assert code == 0, desk.said("err")
    assert sorted(lines[:3]) == ["rc 0", "task none none", "task none none"], output
    assert re.fullmatch(r"rc 0 1 [0-9]+ theirs 2", lines[3]), output
    assert lines[4:] == ["loop 0 0", "loop 1 0", "rc 1", "rc 64", "200000", "at 0"]
    said = {name: (desk.directory / name).read_text() for name in ("lead", "task.0", "task.1", "problem", "nodes")}
    assert said["task.0"] == said["task.1"] == said["lead"]
    assert "task 1 exit status 9" in said["problem"]
    assert "only 2 nodes available" in said["nodes"]


def test_pbsdsh_and_its_tasks_end_with_the_job(desk: Desk) -> None:
    text = 'trap "echo told >told; exit 5" TERM; echo up >up; while :; do sleep 0.2; done'
    script = f"""cd "$PBS_O_WORKDIR"; pbsdsh sh -c 'cd "$PBS_O_WORKDIR"; {text}' & wait; wait\n"""
    name = desk.qsub(script=script)
    wait_until("the task runs", (desk.directory / "up").exists, timeout_s=BOOT_S)
    desk.torque.ask("qdel", "-W", "15", name)
    desk.torque.wait(name, "C", timeout_s=60)
    wait_until("the task was told", (desk.directory / "told").exists, timeout_s=20)
    desk.nothing_left(name)


def test_a_deleted_job_ends_its_payload_and_leaves_nothing(desk: Desk) -> None:
    trap = 'cd "$PBS_O_WORKDIR"; trap "sleep 1; echo tidied > end; exit 3" TERM; echo up > up; '
    name = desk.qsub(script=trap + "while :; do sleep 0.2; done\n")
    wait_until("the payload is up", (desk.directory / "up").exists, timeout_s=BOOT_S)
    desk.torque.ask("qdel", "-W", "15", name)  # the server's own kill_delay of 2 s is 1 to 2 s
    assert desk.end(name)[0] == 3
    assert (desk.directory / "end").read_text() == "tidied\n"


def test_a_refused_image_aborts_the_job_with_the_reason_as_its_comment(desk: Desk) -> None:
    name = desk.qsub(script="echo RAN\n", image="no-such-image")
    fields = desk.torque.wait(name, "C", timeout_s=60)
    assert fields["exit_status"] == "-2"
    assert fields["comment"].startswith("lrms_vm: image-unknown: ")
    desk.nothing_left(name)
    assert "state = free" in desk.torque.node()


def test_the_nodes_fault_takes_it_out_and_the_job_waits(desk: Desk) -> None:
    link = desk.torque.layout.libvirt_socket("torque")
    link.rename(link.with_suffix(".away"))
    try:
        name = desk.qsub(script="echo RAN\n")
        desk.torque.wait(name, "Q", "H", timeout_s=60)
        assert "offline" in desk.torque.node()
        assert "note = lrms_vm: " in desk.torque.node()
    finally:
        link.with_suffix(".away").rename(link)
    desk.torque.ask("qdel", name)


def test_a_vm_job_past_our_prologue_does_not_run(desk: Desk) -> None:
    typed = desk.torque.home / "mom_priv" / "prologue.other"
    typed.write_text("#!/bin/sh\nexit 0\n")
    typed.chmod(0o500)
    try:
        assert desk.end(desk.qsub("-T", "other", script="echo RAN\n")) == (78, "")
    finally:
        typed.unlink()


def test_an_interactive_job_is_a_terminal_in_the_guest(desk: Desk) -> None:
    ours, theirs = pty.openpty()
    words = [desk.torque.commands / "qsub", "-I", "-l", "other=vm:minimal", "-v", "VM_MEMORY=500M"]
    client = desk.torque.client()
    environ = {**client.environment, **desk.torque.environment, "TERM": "dumb"}
    qsub = subprocess.Popen(
        client.argv(words), stdin=theirs, stdout=theirs, stderr=theirs, cwd=desk.directory, env=environ,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    said = ""

    def read_until(what: str) -> re.Match[str]:
        nonlocal said
        deadline = time.monotonic() + BOOT_S
        while (found := re.search(what, said)) is None:
            assert time.monotonic() < deadline, said
            with contextlib.suppress(OSError):  # EIO: it ended
                if select.select([ours], [], [], 1)[0]:
                    said += os.read(ours, 4096).decode(errors="replace")
        return found

    try:
        name = read_until(r"waiting for job (\S+) to start")[1]
        desk.torque.run(name)
        read_until(r"ready\s")
        typed = b"tty; test -d /run/lrms_vm/tasks && echo inside-$((40 + 2)); id -un; "
        os.write(ours, typed + b"pbsdsh -o sh -c 'echo task-$((40 + 2)) in $(ls /run/lrms_vm/tasks | wc -l)'; exit 4\n")
        read_until(f"/dev/pts/[0-9]+\\s+inside-42\\s+{USER}\\s+task-42 in [1-9]")
        read_until(f"job {re.escape(name)} completed")
        qsub.wait(60)
    finally:
        qsub.kill()
        os.close(ours)
    desk.torque.wait(name, "C", timeout_s=60)
    desk.nothing_left(name)


def test_the_hep_payload_in_its_guest(desk: Desk) -> None:
    layout = desk.torque.layout
    site.make_images(layout, [IMAGE])
    site.configure(layout, [NODE], plugin=False)
    user = users.find(USER)
    path = desk.directory / "jets.py"
    shutil.copy(JOB_SCRIPT.parent / "jets.py", path)
    shutil.chown(path, user.uid, user.gid)
    script = 'cd "$PBS_O_WORKDIR" && exec python3 jets.py --events 100 --out jets.json\n'
    code, output = desk.end(desk.qsub("-l", f"other=vm:{IMAGE}", script=script, image=None))
    assert code == 0, output + desk.said("err")
    result = desk.directory / "jets.json"
    assert validation.compare(result, validation.run_outside(layout, like=result)).identical
