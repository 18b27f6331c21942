"""`lrms-vm run`: the same lifecycle with no batch system; and what the administrator's verbs say of this node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence

import pytest

from demo import hypervisor, leftovers, users
from demo.layout import USER
from demo.programs import ENVIRONMENT
from tests.integration.slurm.conftest import BOOT_S, Desk


def command(desk: Desk, *words: str) -> list[str]:
    return [str(desk.layout.command), "--config", str(desk.layout.config("n1")), *words]


def run(desk: Desk, words: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    return desk.cluster.client("root").call(words, cwd=desk.directory, timeout_s=BOOT_S)


def local_leftovers(desk: Desk, pid: int) -> list[str]:
    node = os.uname().nodename.partition(".")[0]
    return leftovers.search_key(desk.layout, "n1", f"local-{pid}.{node}")


@pytest.mark.guest
def test_a_command_in_a_guest_without_a_batch_system(desk: Desk) -> None:
    script = "id -un; test -d /run/lrms_vm/tasks && echo in the guest; cat; echo made > made; exit 7"
    words = command(desk, "run", "--vm-image=minimal", f"--user={USER}", "--", "sh", "-c", script)
    with subprocess.Popen(
        words,
        cwd=desk.directory,
        env=dict(ENVIRONMENT),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        out, err = process.communicate(b"through stdin\n", timeout=BOOT_S)
    assert process.returncode == 7, err.decode()
    assert out.decode() == f"{USER}\nin the guest\nthrough stdin\n"
    assert (desk.directory / "made").stat().st_uid == users.find(USER).uid
    assert local_leftovers(desk, process.pid) == []


@pytest.mark.guest
def test_ended_by_a_signal_while_the_guest_boots_it_leaves_nothing(desk: Desk) -> None:
    words = command(desk, "run", "--vm-image=minimal", f"--user={USER}", "--", "echo", "RAN")
    with subprocess.Popen(
        words,
        cwd=desk.directory,
        env=dict(ENVIRONMENT),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    ) as process:
        deadline = time.monotonic() + 60
        while not any(f"local-{process.pid}." in name for name in hypervisor.domains()):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert b"RAN" not in out
    assert local_leftovers(desk, process.pid) == []


def test_a_refusal_has_its_exit_code_and_one_sentence(desk: Desk) -> None:
    done = run(desk, command(desk, "run", "--vm-image=no-such", f"--user={USER}", "--", "true"))
    assert done.returncode == 77
    assert done.stderr.decode().startswith("lrms-vm: --vm-image: 'no-such' is not in the site's image list")
    assert len(done.stderr.decode().splitlines()) == 1


def test_doctor_finds_this_node_ready(desk: Desk) -> None:
    words = command(desk, "doctor", "--json")
    done = desk.cluster.client("root").call(words, timeout_s=BOOT_S, env={"SLURMD_NODENAME": "n1"})
    wrong = [finding for finding in json.loads(done.stdout) if not finding["ok"]]
    assert (done.returncode, wrong) == (0, [])


def test_doctor_on_a_host_that_slurm_calls_otherwise_says_how_to_ask(desk: Desk) -> None:
    done = run(desk, command(desk, "doctor"))
    assert done.returncode == 69
    assert "Slurm knows no node" in done.stdout.decode() and "SLURMD_NODENAME=NAME" in done.stdout.decode()


def test_images_verify_as_the_site_would(desk: Desk) -> None:
    image = str(desk.layout.images / "minimal.raw")
    policy = str(desk.layout.etc / "trust.toml")
    done = run(desk, command(desk, "image", "verify", image, "--policy", policy, "--json"))
    assert done.returncode == 0, done.stderr.decode()
    said = json.loads(done.stdout)
    assert (said["accepted"], said["rule"]) == (True, "demo-builder")
    assert "Demo Image Builder" in said["signer"]


def test_status_and_render_speak_json(desk: Desk) -> None:
    assert json.loads(run(desk, command(desk, "status", "--json")).stdout) == []
    done = run(desk, command(desk, "render", "--vm-image=minimal", "--json"))
    assert done.returncode == 0, done.stderr.decode()
    json.loads(done.stdout)
