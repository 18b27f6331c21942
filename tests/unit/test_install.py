from __future__ import annotations

from pathlib import Path

import pytest

from lrms_vm import install
from lrms_vm.errors import ConfigError, UsageError


def targets(root: Path) -> install.SlurmTargets:
    return install.SlurmTargets(root / "opt", root / "etc")


def planned(root: Path, **changes: object) -> tuple[install.Planned, ...]:
    values: dict[str, object] = {
        "python": "/opt/venv/bin/python", "config": Path("/etc/lrms_vm/lrms_vm.toml"), "run_dir": Path("/run/lrms_vm"),
        "plugin": b"\x7fELF plugin", "guest": b"\x7fELF guest",
    }  # fmt: skip
    return install.plan(targets(root), **(values | changes))  # type: ignore[arg-type]


def text(files: tuple[install.Planned, ...], name: str) -> str:
    return next(file.content for file in files if file.path.name == name).decode()


def test_the_hooks_name_this_installation_and_hold_no_placeholder() -> None:
    files = planned(Path("/x"))
    assert "exec /opt/venv/bin/python -I -m lrms_vm --config /etc/lrms_vm/lrms_vm.toml prologue --lrms slurm" in text(
        files, "slurm.prolog"
    )
    assert "[ -e /run/lrms_vm/jobs/" in text(files, "slurm.epilog")
    for name in ("slurm.prolog", "slurm.epilog", "lrms-vm-exec"):
        assert not any(f"@{word}@" in text(files, name) for word in ("PYTHON", "CONFIG", "RUN_DIR"))
        assert text(files, name).startswith("#!/")


def test_exec_is_isolated_python() -> None:
    assert text(planned(Path("/x")), "lrms-vm-exec").startswith("#!/opt/venv/bin/python -I\n")


def test_the_plugin_is_required_and_told_where_everything_is() -> None:
    assert text(planned(Path("/x")), "lrms_vm.conf") == (
        "required /x/opt/lib/lrms_vm.so exec=/x/opt/libexec/lrms-vm-exec verdicts=/run/lrms_vm/verdicts\n"
    )


def test_a_sites_own_job_submit_is_to_call_ours_and_is_never_written() -> None:
    here = targets(Path("/x"))
    assert here.job_submit not in {file.path for file in planned(Path("/x"))}
    assert "function slurm_job_submit" in text(planned(Path("/x")), "lrms_vm.lua")
    alone = install.job_submit_lines(here, None)
    assert alone[0].split() == ["ln", "-s", "/x/opt/lib/lrms_vm.lua", "/x/etc/job_submit.lua"]
    beside = "\n".join(install.job_submit_lines(here, "function slurm_job_submit() return slurm.SUCCESS end"))
    assert 'dofile("/x/opt/lib/lrms_vm.lua")' in beside and "ln -s" not in beside
    assert install.job_submit_lines(here, f"{beside}\n") == ()


@pytest.mark.parametrize("python", ["/a b/python", "/a'b", "relative", "/x\n", "/" + "x" * 300, "/$(id)"])
def test_a_path_that_shell_or_plugstack_would_misread_is_refused(python: str) -> None:
    with pytest.raises(UsageError):
        planned(Path("/x"), python=python)


def test_installing_twice_changes_nothing_and_undo_leaves_nothing(tmp_path: Path) -> None:
    files = planned(tmp_path)
    (tmp_path / "etc" / "plugstack.conf.d").mkdir(parents=True)
    theirs = tmp_path / "etc" / "plugstack.conf.d" / "other.conf"
    theirs.write_text("optional other.so\n")
    assert {verb for verb, _ in install.changes(files)} == {"new"}
    install.apply(files)
    assert {verb for verb, _ in install.changes(files)} == {"same"}
    assert (tmp_path / "opt/libexec/slurm.prolog").stat().st_mode & 0o777 == 0o755
    (tmp_path / "opt/libexec/slurm.prolog").write_text("old")
    assert [verb for verb, _ in install.changes(files)].count("change") == 1
    install.apply(files)
    assert len(install.undo(targets(tmp_path))) == 8
    assert install.undo(targets(tmp_path)) == []
    assert not (tmp_path / "opt").exists()
    assert theirs.exists()


def test_a_link_in_a_files_place_is_replaced_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("theirs")
    files = planned(tmp_path)
    (tmp_path / "opt/lib").mkdir(parents=True)
    (tmp_path / "opt/lib/lrms_vm.so").symlink_to(victim)
    install.apply(files)
    assert victim.read_text() == "theirs"
    assert not (tmp_path / "opt/lib/lrms_vm.so").is_symlink()


def test_an_interpreter_others_can_change_or_not_reach_is_refused(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("")
    python.chmod(0o777)
    with pytest.raises(ConfigError):
        install.check_python(str(python))


def test_the_sources_come_with_the_package() -> None:
    for name in ("spank/lrms_vm.c", "spank/Makefile", "prologue/slurm.prolog", "epilogue/slurm.epilog"):
        assert (install.SOURCES / name).is_file()
