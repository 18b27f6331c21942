from __future__ import annotations

import binascii
import os
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrms_vm import environment
from lrms_vm.environment import TASK_VARIABLE, pack, parse, payload_environment, unpack
from lrms_vm.errors import RequestError
from lrms_vm.paths import below
from lrms_vm.payload import console_tail, description
from lrms_vm.verdict import READY, Verdict

VERDICT = Verdict(
    state=READY,
    key="slurm-7.n1",
    uid=1000,
    user_name="eve",
    home="/home/eve",
    env_names=("JAVA_HOME", "LRMS_VM_SRUN"),
    image={"name": "hep", "digest": "sha256:ab"},
)


def test_ordinary_variables_and_exported_functions_pass_byte_by_byte() -> None:
    job = {b"BASH_FUNC_f%%": b"() {  echo 'x';\n}", b"A.B": b"\xff=\n", b"SLURM_JOB_ID": b"7", b"LANG": b"de_DE.UTF-8"}
    assert payload_environment(job, VERDICT).items() >= job.items()


@pytest.mark.parametrize(
    "name",
    ["LD_PRELOAD", "TMPDIR", "PYTHONPATH", "SSH_AUTH_SOCK", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "ENV"],
)
def test_what_describes_the_host_stays_there(name: str) -> None:
    assert name.encode() not in payload_environment({name.encode(): b"x"}, VERDICT)


def test_home_user_and_path_are_the_guest_s() -> None:
    made = payload_environment(
        {b"HOME": b"/h", b"USER": b"u", b"LOGNAME": b"u", b"PATH": b"/opt", b"SHELL": b"/s"}, VERDICT
    )
    assert (made[b"HOME"], made[b"USER"], made[b"LOGNAME"]) == (b"/home/eve", b"eve", b"eve")
    assert made[b"PATH"] == environment.GUEST_PATH
    assert b"SHELL" not in made


def test_vm_env_adds_back_by_name_but_never_ours() -> None:
    made = payload_environment({b"JAVA_HOME": b"/j", b"CLASSPATH": b"c", b"LRMS_VM_SRUN": b"/forged"}, VERDICT)
    assert made[b"JAVA_HOME"] == b"/j"
    assert b"CLASSPATH" not in made
    assert b"LRMS_VM_SRUN" not in made


def test_a_step_from_a_guest_has_that_guest_s_values_but_its_own_step_s() -> None:
    packed = pack({b"PATH": b"/guest", b"MINE": b"1", b"SLURM_PROCID": b"0", b"PMI_RANK": b"0", b"LRMS_VM_SRUN": b"/s"})
    made = payload_environment({TASK_VARIABLE: packed, b"SLURM_PROCID": b"3", b"MINE": b"host"}, VERDICT)
    assert (made[b"PATH"], made[b"MINE"], made[b"SLURM_PROCID"]) == (b"/guest", b"1", b"3")
    assert not {b"PMI_RANK", b"LRMS_VM_SRUN", TASK_VARIABLE} & set(made)


@given(
    st.dictionaries(
        st.binary(min_size=1).filter(lambda n: not set(n) & {0, 61}), st.binary().filter(lambda v: 0 not in v)
    )
)
def test_pack_and_unpack_agree(variables: dict[bytes, bytes]) -> None:
    assert unpack(pack(variables)) == variables


@given(st.binary())
def test_unpack_takes_anything_without_surprise(text: bytes) -> None:
    try:
        unpack(text)
    except RequestError as error:
        assert error.code == "environment-unreadable"


def test_a_bomb_is_refused_without_being_unpacked() -> None:
    with pytest.raises(RequestError):
        unpack(binascii.b2a_base64(zlib.compress(b"\0" * (64 << 20)), newline=False))


def test_an_environment_too_large_to_take_along_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        pack({b"X": os.urandom(200_000).replace(b"\0", b"1")})
    assert caught.value.code == "environment-too-large"


def test_entries_without_a_name_are_dropped() -> None:
    assert parse(b"A=1\0=x\0B\0C==\0") == {b"A": b"1", b"C": b"="}


def test_the_description_is_nul_terminated_fields() -> None:
    before = os.umask(0o027)
    try:
        assert description("/w", {b"A": b"1"}, [b"sh", b""]) == b"27\0/w\x001\0A=1\0sh\0\0"
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    "path, expected",
    [
        ("/a/b", True),
        ("/a/b/c", True),
        ("/a/bc", False),
        ("/a/b/../c", False),
        ("b", False),
        ("", False),
        ("/a", False),
    ],
)
def test_below_compares_whole_names(path: str, expected: bool) -> None:
    assert below(path, ("/a/b/",)) is expected


def test_the_console_s_end_is_printable(tmp_path_factory: pytest.TempPathFactory) -> None:
    console = tmp_path_factory.mktemp("job") / "console.log"
    console.write_bytes(b"\n".join(b"line %d \x1b]0;title\x07\xff" % i for i in range(100)))
    lines = console_tail(console)
    assert len(lines) == 40
    assert lines[-1].startswith("line 99 ]0;title")
    assert all(line.isprintable() for line in lines)


def test_a_console_that_was_rotated_shows_what_was_before(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    console.with_name("console.log.0").write_text("last words\n")
    lines = console_tail(console)
    assert lines[0] == "last words"
    assert "no console" in lines[1]
    assert console_tail(tmp_path / "none") == [f"(no console: {tmp_path / 'none'}: No such file or directory)"]
