"""A job's variables reach root's hooks (docs/gridengine.md). None of them may name code that root runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from demo import users
from demo.layout import USER
from lrms_vm import install_gridengine
from tests.integration.gridengine.conftest import Desk

LIBRARY = """\
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
__attribute__((constructor)) static void run(void) {
    char name[4096];
    snprintf(name, sizeof name, "%s/as-%d-library", DIRECTORY, (int)getuid());
    close(open(name, O_CREAT | O_WRONLY, 0644));
}
"""


@pytest.fixture
def attack(desk: Desk) -> dict[str, str]:
    """A job's variables that would leave `as-UID-HOW` in the desk's directory wherever they are believed."""
    directory = desk.directory
    shell = f'touch "{directory}/as-$(/usr/bin/id -u)-shell"'
    (directory / "evil.c").write_text(LIBRARY)
    define = f'-DDIRECTORY="{directory}"'
    subprocess.run(
        ["gcc", "-shared", "-fPIC", define, "-o", "evil.so", "evil.c"], cwd=directory, check=True, timeout=60
    )
    (directory / "evil.cnf").write_text(
        f"openssl_conf = a\n[a]\nproviders = b\n[b]\nevil = c\n[c]\nmodule = {directory}/evil.so\nactivate = 1\n"
    )
    (directory / "evil.sh").write_text(shell + "\n")
    python = f"import os\nopen('{directory}/as-%d-python' % os.getuid(), 'w')\n"
    for name in ("sitecustomize.py", "usercustomize.py", "lrms_vm.py", "argparse.py"):
        (directory / name).write_text(python)
    for name in ("env", "python3", "sh", "id", "[", "qmod"):
        (directory / name).write_text(f"#!/bin/sh\n{shell}\n")
        (directory / name).chmod(0o755)
    user = users.find(USER)
    for path in directory.iterdir():
        os.chown(path, user.uid, user.gid)
    return {
        **dict.fromkeys(("PYTHONPATH", "PATH", "PYTHONHOME", "OPENSSL_MODULES", "GCONV_PATH"), str(directory)),
        **dict.fromkeys(("LD_PRELOAD", "LD_AUDIT"), f"{directory}/evil.so"),
        **dict.fromkeys(("BASH_ENV", "ENV", "PYTHONSTARTUP"), f"{directory}/evil.sh"),
        "LD_LIBRARY_PATH": str(directory),
        "OPENSSL_CONF": f"{directory}/evil.cnf",
        "PYTHONINSPECT": "1",
        "IFS": "/",
        "SHELLOPTS": "xtrace",
        "PS4": f"$({directory}/env)",
        "GLIBC_TUNABLES": "glibc.malloc.check=3",
        "LC_ALL": "de_DE.UTF-8",
        "LOCPATH": str(directory),
        "SGE_ROOT": str(directory),
        "PPID": "1",
        "JOB_ID": "1",
        "SGE_JOB_SPOOL_DIR": str(directory),
        "BASH_FUNC_exec%%": f"() {{ {shell}; }}",
        "BASH_FUNC_[%%": f"() {{ {shell}; }}",
    }


def as_root(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("as-0-*"))


def words(variables: dict[str, str]) -> list[str]:
    """qsub -v cuts its list at commas; each variable by an option of its own."""
    return [word for name, value in variables.items() for word in ("-v", f"{name}={value}")]


@pytest.mark.guest
def test_no_variable_of_a_job_is_code_for_root(desk: Desk, attack: dict[str, str]) -> None:
    job_id = desk.qsub(*words(attack), script="echo in the guest\n")
    assert desk.end(job_id) == (0, "in the guest\n")
    assert len(desk.history(job_id)) == 1  # of its own number: JOB_ID and SGE_JOB_SPOOL_DIR are not the user's
    assert as_root(desk.directory) == []


def test_of_a_job_that_asks_for_no_vm_neither(desk: Desk, attack: dict[str, str]) -> None:
    job_id = desk.qsub(*words(attack), script="echo $JOB_ID\n", image=None)
    code, output = desk.end(job_id)
    assert (code, output) == (0, f"{job_id}\n")
    assert as_root(desk.directory) == []


def test_that_these_tests_can_fail(desk: Desk, attack: dict[str, str]) -> None:
    """A prolog that is not isolated, in the same Grid Engine: its Python is the user's, as root."""
    naive = desk.layout.etc / "naive-prolog"
    naive.write_text("#!/usr/bin/python3\n")
    naive.chmod(0o755)
    settings = install_gridengine.queue_settings(desk.engine.targets)
    desk.engine.set_queue({"prolog": f"root@{naive}", "epilog": "NONE"})
    try:
        job_id = desk.qsub("-v", f"PYTHONPATH={attack['PYTHONPATH']}", script="true\n", image=None)
        desk.end(job_id)
    finally:
        desk.engine.set_queue(settings)
        naive.unlink()
    assert as_root(desk.directory) == ["as-0-python"]


def test_a_vm_that_no_prolog_made_does_not_run_on_the_host(desk: Desk) -> None:
    settings = install_gridengine.queue_settings(desk.engine.targets)
    desk.engine.set_queue({"prolog": "NONE"})
    try:
        job_id = desk.qsub(script="echo RAN\n")
        code, output = desk.end(job_id)
    finally:
        desk.engine.set_queue(settings)
    assert (code, output) == (78, "")
    assert "no prolog of ours" in desk.said(job_id, kind="err")


def test_a_queue_without_the_starter_runs_no_vm_job_on_the_host(desk: Desk) -> None:
    settings = install_gridengine.queue_settings(desk.engine.targets)
    desk.engine.set_queue({"starter_method": "NONE"})
    try:
        job_id = desk.qsub(script="echo RAN\n")
        desk.engine_out_of_service(job_id)
    finally:
        desk.engine.set_queue(settings)
    assert "starter_method" in desk.said(job_id, kind="err")
    assert desk.said(job_id) == ""
