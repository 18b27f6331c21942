"""Arguments and variables through real shells, byte for byte: as a script, and as slurm-drmaa and pbs-drmaa quote."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrms_vm.errors import EXIT_CONFIG
from lrms_vm.submit.job_script import program, script

ECHO = "import os,sys; sys.stdout.buffer.write(b'\\0'.join([*map(os.fsencode, sys.argv[1:]), os.environb.get(b'A', b'-')]))"
SHELLS = [shell for shell in ("/bin/dash", "/bin/bash", "/bin/busybox") if Path(shell).exists()]
ODD = [
    *(
        "",
        " ",
        "'",
        '"',
        "$HOME",
        "`id`",
        "\\",
        "\\n",
        "\\042",
        "%s%d%%",
        "-n",
        "--",
        "-e x",
        "!",
        "*",
        "~",
        "#",
        "a;b|c&d",
    ),
    *(
        "\n",
        "a\n\n",
        "\r\n",
        "a\r\n#SBATCH -x\n#PBS -x\n#$ -x\n",
        "\t",
        "\x01\x7f",
        "é",
        "日本",
        "\udcff\udcfe",
        "end.",
    ),
]

argument = st.text(st.characters(exclude_characters="\0"), max_size=12) | st.binary(max_size=12).map(
    lambda data: data.replace(b"\0", b"").decode("utf-8", "surrogateescape")
)


def run(words: list[str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(words, input=stdin, capture_output=True, timeout=20, env={"PATH": os.environ["PATH"]})


def python(*arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", ECHO, *arguments]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_odd_argument_arrives(shell: str, tmp_path: Path) -> None:
    line = program(python(*ODD), environment={"A": "x\n'\n"})
    wanted = b"\0".join([*map(os.fsencode, ODD), b"x\n'\n"])
    path = tmp_path / "script"
    path.write_bytes(script(line))
    words = [shell, "sh"] if shell.endswith("busybox") else [shell]
    assert run([*words, str(path)]).stdout == wanted
    assert run([*words, "-c", line]).stdout == wanted
    quoted = f"exec /bin/sh '-c' '{line}'"  # slurm_drmaa/job.c, pbs_drmaa/submit.c
    assert run([*words, "-c", quoted]).stdout == wanted


@given(st.lists(argument, max_size=6), argument)
@settings(max_examples=60, deadline=None)
def test_any_argument_arrives(arguments: list[str], value: str) -> None:
    line = program(python(*arguments), environment={"A": value})
    done = run(["/bin/sh", "-c", line])
    assert done.stdout == b"\0".join(map(os.fsencode, [*arguments, value])), done.stderr


def test_the_directory_stdin_and_index(tmp_path: Path) -> None:
    place = tmp_path / "a 'b' $c"
    place.mkdir()
    (place / "in put").write_text("text")
    line = program(
        ["sh", "-c", "pwd; cat; echo $BULK_INDEX $1", "sh", "x"],
        environment={},
        directory=str(place),
        stdin="in put",
        index=3,
    )
    assert run(["/bin/sh", "-c", line]).stdout.decode() == f"{place}\ntext3 x\n"
    gone = program(["true"], environment={}, directory="/no/such")
    assert run(["/bin/sh", "-c", gone]).returncode == 126


@pytest.mark.parametrize("name", ["SLURM_ARRAY_TASK_ID", "SGE_TASK_ID", "PBS_ARRAYID", "PBS_ARRAY_INDEX"])
def test_the_bulks_index_is_the_systems(name: str) -> None:
    line = program(["sh", "-c", "echo $BULK_INDEX"], environment={}, bulk=True)
    done = subprocess.run(
        ["/bin/sh", "-c", line], env={"PATH": "/bin:/usr/bin", name: "5"}, capture_output=True, timeout=20
    )
    assert done.stdout == b"5\n"


def test_a_payload_that_was_to_run_in_a_guest_does_not_run_on_a_host() -> None:
    line = program(["echo", "ran"], environment={}, in_guest=True)
    done = run(["/bin/sh", "-c", line])
    assert (done.returncode, done.stdout) == (EXIT_CONFIG, b"")
    assert b"this is no guest" in done.stderr
    guest = subprocess.run(
        ["/bin/sh", "-c", line], env={"LRMS_VM_IMAGE": "a", "PATH": "/bin"}, capture_output=True, timeout=20
    )
    assert guest.stdout == b"ran\n"


@pytest.mark.parametrize("code", [0, 7, 127, 130])
def test_the_exit_code_is_the_commands(code: int) -> None:
    assert run(["/bin/sh", "-c", program(["sh", "-c", f"exit {code}"], environment={})]).returncode == code
    assert run(["/bin/sh", "-c", program(["sh", "-c", "kill -9 $$"], environment={})]).returncode == -9
