from __future__ import annotations

from pathlib import Path

import pytest

from lrms_vm.channel import environment, guest_command, session_argv, ssh_config
from lrms_vm.errors import NodeError
from lrms_vm.paths import UserPlaces

USER = UserPlaces(Path("/run/lrms_vm/jobs/slurm-7.n1/user"))
PROGRAM = "/opt/lrms_vm/libexec/lrms-vm-guest"


def test_the_ssh_configuration_pins_everything() -> None:
    text = ssh_config(USER, "eve", program=PROGRAM)
    assert "    StrictHostKeyChecking yes\n" in text
    assert '    UserKnownHostsFile "/run/lrms_vm/jobs/slurm-7.n1/user/known_hosts"\n' in text
    assert f"    ProxyCommand {PROGRAM} connect /run/lrms_vm/jobs/slurm-7.n1/channel.sock\n" in text


def test_the_configuration_names_the_address_and_notices_sooner_that_nobody_is_there() -> None:
    def made(**how: object) -> str:
        return ssh_config(USER, "eve", program=PROGRAM, **how)  # type: ignore[arg-type]

    text = made(place="tcp:10.208.0.5:1022")
    assert f"    ProxyCommand {PROGRAM} connect tcp:10.208.0.5:1022\n" in text
    assert "ServerAliveCountMax 45\n" in text
    assert "ServerAliveCountMax 120\n" in made()
    assert "ServerAliveCountMax 7\n" in made(silent_s=7)
    assert "ServerAliveCountMax 45\n" in made(place="tcp:10.208.0.5:1022", silent_s=120)


def test_the_program_s_path_is_one_word_of_the_proxy_command() -> None:
    text = ssh_config(USER, "eve", program="/opt/a b/100%/guest")
    assert "    ProxyCommand '/opt/a b/100%%/guest' connect /run/" in text


@pytest.mark.parametrize("name", ['e"ve', "eve\nProxyCommand evil", "${HOME}"])
def test_a_name_that_would_change_the_configuration_is_refused(name: str) -> None:
    with pytest.raises(NodeError):
        ssh_config(USER, name, program=PROGRAM)


def test_a_percent_sign_is_itself() -> None:
    assert '    User "100%%"\n' in ssh_config(USER, "100%", program=PROGRAM)


def test_a_session_never_connects_by_itself() -> None:
    assert "ProxyCommand=/bin/false" in session_argv(USER, "true")


@pytest.mark.parametrize("word", ["", "a b", "$(id)", "é", "a\n", "'x'"])
def test_only_plain_words_reach_the_login_shell(word: str) -> None:
    with pytest.raises(ValueError, match="plain word"):
        guest_command("task", word)


def test_ssh_s_own_processes_are_marked_with_the_job() -> None:
    assert environment("slurm-7.n1")["LRMS_VM_KEY"] == "slurm-7.n1"
    assert "LRMS_VM_KEY" not in environment(None)
