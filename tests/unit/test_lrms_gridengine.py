"""`config` and `environment` as Debian's Grid Engine 8.1.9 spools them, shortened; the user renamed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrms_vm import retries
from lrms_vm.errors import ConfigError, GuestLost, LrmsVmError, NodeError, RequestError, SiteError, UsageError
from lrms_vm.lrms import gridengine
from lrms_vm.lrms.base import EPILOGUE, MAX_RETRIES, PROLOGUE, Action, Call, Outcome, outcome_of
from lrms_vm.lrms.command import Command
from lrms_vm.paths import Places

SPOOL = "/var/spool/gridengine/execd/n1"
CONFIG = f"""\
add_grp_id=65400
stdout_path=/home/physicist
h_vmem=INFINITY
h_vmem_is_consumable_job=0
h_rss=INFINITY
script_file={SPOOL}/job_scripts/42
job_owner=physicist
cwd=/home/physicist/run
starter_method=/opt/lrms_vm/libexec/gridengine.starter
pe_slots=6
host_slots=2
queue=vm.q
host=n1.example.org
job_name=job.sh
job_id=42
ja_task_id=0
njob_args=1
job_arg1=a
"""
ENVIRONMENT = b"TERM=\nVM_IMAGE=hep-jets\nVM_CPUS=1\nJOB_ID=42\nX=a\\nVM_IMAGE=other\n"


def call(config: str = CONFIG, environment: bytes = ENVIRONMENT, directory: bytes = b"42.1") -> Call:
    return Call(files={"config": config.encode(), "environment": environment, "directory": directory})


def identified(**changed: str):
    config = CONFIG
    directory = changed.pop("directory", "42.1")
    for key, value in changed.items():
        lines = [f"{key}={value}" if line.startswith(f"{key}=") else line for line in config.splitlines()]
        config = "\n".join(lines) + "\n"
    return gridengine.identify(call(config, directory=directory.encode()), uid=1001, gid=1001)


# -- the request


def test_the_request_is_read_from_the_spooled_environment() -> None:
    options, source = gridengine.parse_options(call())
    assert (options, source) == ({"vm-image": "hep-jets", "vm-cpus": "1"}, "VM_IMAGE")


def test_the_hooks_own_environment_asks_for_nothing() -> None:
    forged = replace(call(environment=b"TERM=\n"), environ={"VM_IMAGE": "x", "SGE_JOB_SPOOL_DIR": "/home/me"})
    with pytest.raises(UsageError):
        gridengine.parse_options(forged)


def test_other_variables_of_a_users_shell_ask_for_no_vm() -> None:
    with pytest.raises(UsageError):
        gridengine.parse_options(call(environment=b"VM_MEMORY=4G\nVM_CPUS=2\n"))


def test_an_empty_image_is_kept_for_the_refusal() -> None:
    assert gridengine.parse_options(call(environment=b"VM_IMAGE=\n"))[0] == {"vm-image": ""}


def test_a_variable_that_comes_twice_is_refused() -> None:
    with pytest.raises(UsageError):
        gridengine.parse_options(call(environment=b"VM_IMAGE=a\nVM_IMAGE=b\n"))


# -- the job


def test_a_jobs_share_of_this_host() -> None:
    job = identified()
    assert (job.key, job.user, job.uid) == ("gridengine-42.n1.example.org", "physicist", 1001)
    assert (job.work_dir, job.partition, job.cpus, job.memory_mib) == ("/home/physicist/run", "vm.q", 2, None)


def test_an_array_task_is_a_job_of_its_own() -> None:
    assert identified(ja_task_id="3", directory="42.3").job_id == "42-3"
    assert identified(ja_task_id="1", directory="42.1").job_id == "42-1"  # not the same as the plain job 42


@pytest.mark.parametrize(
    ("limits", "memory_mib"),
    [
        ({"h_vmem": "1.5G"}, 3072),
        ({"h_vmem": "1G", "h_rss": "500M"}, 1000),
        ({"h_vmem": "1g"}, 1907),  # 10^9 bytes a slot
        ({"h_vmem": "1G", "h_vmem_is_consumable_job": "1"}, 1024),
        ({"h_rss": "1073741824"}, 2048),
    ],
)
def test_memory_is_what_was_asked_for_per_slot(limits: dict[str, str], memory_mib: int) -> None:
    assert identified(**limits).memory_mib == memory_mib


@pytest.mark.parametrize(
    ("key", "value"),
    [("host_slots", "-1"), ("job_id", "x"), ("h_vmem", "lots"), ("ja_task_id", "5"), ("job_id", "43"),
     ("job_owner", "root"), ("job_owner", "a b"), ("job_owner", "../x")],
)  # fmt: skip
def test_settings_that_cannot_be(key: str, value: str) -> None:
    with pytest.raises(SiteError):
        identified(**{key: value})


@pytest.mark.parametrize("directory", ["", "..", "42", "42.0", "42.1.2", "x.1", "42.1\n"])
def test_a_directory_that_is_no_jobs(directory: str) -> None:
    with pytest.raises(SiteError):
        identified(directory=directory)


def test_a_missing_setting_is_the_sites_fault() -> None:
    with pytest.raises(SiteError):
        gridengine.identify(call(""), uid=1, gid=1)
    with pytest.raises(SiteError):
        gridengine.owner(call(""))


@pytest.mark.parametrize("line", ["job_owner=root", "host=n2", "cwd=/root", "job_id=7", "queue=x", "h_vmem=1G"])
def test_an_argument_that_poses_as_a_setting_is_believed_in_neither_place(line: str) -> None:
    """`qsub job.sh $'a\\njob_owner=root'`: sge_shepherd believes the last one."""
    with pytest.raises(RequestError) as error:
        gridengine.identify(call(f"{CONFIG}{line}\n"), uid=1001, gid=1001)
    assert error.value.code == "job-text-muddled"


@given(st.binary(max_size=400))
def test_whatever_stands_in_the_files(text: bytes) -> None:
    for spooled in (Call(files={"config": text, "environment": text, "directory": text[:10]}),
                    Call(files={"config": CONFIG.encode() + text, "environment": ENVIRONMENT + text, "directory": b"42.1"})):  # fmt: skip
        for read in (
            gridengine.parse_options,
            lambda c: gridengine.identify(c, uid=1, gid=1),
            gridengine.refuse_interactive,
        ):
            try:
                read(spooled)
            except LrmsVmError:
                continue


@pytest.mark.parametrize("script", gridengine.INTERACTIVE)
def test_an_interactive_job_is_refused(script: str) -> None:
    gridengine.refuse_interactive(call())
    with pytest.raises(RequestError):
        gridengine.refuse_interactive(call(CONFIG.replace(f"{SPOOL}/job_scripts/42", script)))


# -- what it is told


@pytest.mark.parametrize(
    ("outcome", "retries", "exit_code", "actions", "otherwise"),
    [
        (Outcome.READY, 0, 0, (), None),
        (Outcome.REQUEST, 0, 100, (), None),
        (Outcome.CONFIG, 0, 100, (), None),
        (Outcome.SITE, MAX_RETRIES - 1, 99, (Action.COUNT,), 100),
        (Outcome.SITE, MAX_RETRIES, 100, (), None),
        (Outcome.NODE, 0, 99, (Action.TAKE_OUT, Action.COUNT), 1),
        (Outcome.NODE, MAX_RETRIES, 100, (Action.TAKE_OUT,), None),
    ],
)
def test_the_prologs_table(
    outcome: Outcome, retries: int, exit_code: int, actions: tuple[Action, ...], otherwise: int | None
) -> None:
    told = gridengine.outcome(PROLOGUE, outcome, retries=retries)
    assert (told.exit_code, told.actions, told.otherwise) == (exit_code, actions, otherwise)


@pytest.mark.parametrize("outcome", [Outcome.READY, Outcome.LEFTOVERS])
@pytest.mark.parametrize("retries", [0, 99])
def test_an_epilog_ends_well_whatever_it_found(outcome: Outcome, retries: int) -> None:
    assert gridengine.outcome(EPILOGUE, outcome, retries=retries).exit_code == 0


def test_blame_becomes_an_outcome() -> None:
    blamed = {
        RequestError: Outcome.REQUEST, UsageError: Outcome.REQUEST, SiteError: Outcome.SITE, ConfigError: Outcome.CONFIG,
        NodeError: Outcome.NODE, LrmsVmError: Outcome.CONFIG, GuestLost: Outcome.CONFIG,
    }  # fmt: skip
    assert {kind: outcome_of(kind("x")) for kind in blamed} == blamed
    assert outcome_of(None) is Outcome.READY


def test_a_counter_outlives_a_process_and_is_forgotten(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path / "run")
    assert retries.count(places, "k") == 0
    retries.add(places, "k")
    retries.add(places, "k")
    assert retries.count(places, "k") == 2
    retries.forget_old(places, now=(tmp_path / "retries" / "k").stat().st_mtime + retries.FORGET_AFTER_S + 1)
    assert retries.count(places, "k") == 0
    retries.forget(places, "k")


# -- what stands in the payload's place


def started(*argv: str, mode: str = "unix_behavior") -> Command:
    environ = {
        "JOB_ID": "42", "SGE_JOB_SPOOL_DIR": f"{SPOOL}/active_jobs/42.1",
        "SGE_STARTER_SHELL_PATH": "/bin/bash", "SGE_STARTER_SHELL_START_MODE": mode,
    }  # fmt: skip
    return gridengine.command(argv, environ)


def test_a_script_is_copied_into_the_guest() -> None:
    script = f"{SPOOL}/job_scripts/42"
    assert started(script, "a", "b c") == Command((script, "a", "b c"), 0)
    for mode in ("posix_compliant", "script_from_stdin"):
        assert started(script, "a", mode=mode) == Command(("/bin/bash", script, "a"), 1)


def test_a_command_is_the_guests_own() -> None:
    assert started("/bin/echo", "a  b", mode="posix_compliant") == Command(("/bin/echo", "a  b"))
    assert started(f"{SPOOL}/job_scripts/41") == Command((f"{SPOOL}/job_scripts/41",))
    with pytest.raises(UsageError):
        started()


def test_the_words_for_its_commands() -> None:
    assert gridengine.disable_argv("/usr/bin/qmod", "n1") == ["/usr/bin/qmod", "-d", "*@n1"]
    assert gridengine.load_report("n1", capable=False) == "begin\nn1:vm_capable:0\nend\n"
