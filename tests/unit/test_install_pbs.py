from __future__ import annotations

from pathlib import Path

import pytest

from lrms_vm import install, install_pbs
from lrms_vm.errors import NodeError, UsageError


def targets(root: Path) -> install_pbs.TorqueTargets:
    return install_pbs.TorqueTargets(root / "opt", root / "torque", root / "bin")


def planned(root: Path, python: str = "/opt/venv/bin/python") -> tuple[install.Planned, ...]:
    return install_pbs.plan_torque(
        targets(root), python=python, config=Path("/etc/x.toml"), run_dir=Path("/run/lrms_vm"), guest=b"\x7fELF"
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "torque" / "mom_priv").mkdir(parents=True)
    return tmp_path


def put(root: Path) -> None:
    install_pbs.keep_site_hooks(targets(root))
    install.apply(planned(root))


def test_the_moms_hooks_are_as_pbs_mom_wants_them(root: Path) -> None:
    put(root)
    for name in ("prologue", "prologue.parallel", "epilogue", "epilogue.parallel"):
        state = (root / "torque/mom_priv" / name).lstat()
        assert (state.st_mode & 0o7777, state.st_uid) == (0o500, 0)
    assert not (root / "torque/mom_priv/epilogue.precancel").exists()


def test_no_placeholder_stays_and_each_hook_is_known_as_ours(root: Path) -> None:
    for file in planned(root):
        text = file.content.decode("utf-8", "replace")
        for name in ("PYTHON", "CONFIG", "RUN_DIR", "EXEC", "COMMANDS", "SITE", "MOM_PRIV", "PROLOGUE", "WAIT_S"):
            assert f"@{name}@" not in text
        assert text.startswith("#!") or file.path.name == "lrms-vm-guest"
        if file.path.parent.name == "mom_priv":
            assert install_pbs.OURS in file.content


def test_installing_twice_changes_nothing_and_keeps_no_hook_of_ours(root: Path) -> None:
    put(root)
    assert install_pbs.site_hooks(targets(root)) == []
    put(root)
    assert {verb for verb, _ in install.changes(planned(root))} == {"same"}
    assert not (root / "opt/site").exists()


def test_a_new_version_of_ours_is_not_taken_for_the_sites(root: Path) -> None:
    put(root)
    install_pbs.keep_site_hooks(targets(root))
    install.apply(planned(root, python="/opt/other/bin/python"))
    assert not (root / "opt/site").exists()


def test_the_sites_own_hooks_are_kept_called_and_put_back(root: Path) -> None:
    own = root / "torque/mom_priv/prologue"
    own.write_text("#!/bin/sh\necho site\n")
    own.chmod(0o500)
    put(root)
    kept = root / "opt/site/prologue"
    assert kept.read_text() == "#!/bin/sh\necho site\n"
    assert str(kept) in own.read_text()
    put(root)
    assert kept.read_text() == "#!/bin/sh\necho site\n"
    restored, removed = install_pbs.undo_torque(targets(root))
    assert restored == [own]
    assert own.read_text() == "#!/bin/sh\necho site\n"
    assert own.stat().st_mode & 0o777 == 0o500
    assert len(removed) == 9
    assert not (root / "opt").exists()
    assert install_pbs.undo_torque(targets(root)) == ([], [])
    assert own.exists()


def test_a_hook_the_site_put_there_later_is_kept_too(root: Path) -> None:
    own = root / "torque/mom_priv/epilogue"
    own.write_text("first")
    put(root)
    own.unlink()
    own.write_text("second")
    put(root)
    assert (root / "opt/site/epilogue").read_text() == "second"
    assert (root / "opt/site/epilogue.before").read_text() == "first"


def test_a_link_in_a_hooks_place_is_not_guessed_about(root: Path) -> None:
    (root / "torque/mom_priv/prologue").symlink_to("/bin/true")
    with pytest.raises(NodeError):
        install_pbs.keep_site_hooks(targets(root))


def test_a_path_that_the_shell_would_cut_is_refused(root: Path) -> None:
    with pytest.raises(UsageError):
        planned(root, python="/a b/python")


def test_the_openpbs_hook_names_this_installation(tmp_path: Path) -> None:
    where = install_pbs.OpenPbsTargets(tmp_path)
    files = install_pbs.plan_openpbs(
        where, python="/opt/venv/bin/python", config=Path("/etc/x.toml"), run_dir=Path("/run/lrms_vm"), guest=b""
    )
    text = next(file.content for file in files if file.path == where.hook).decode()
    assert "PYTHON = '/opt/venv/bin/python'\n" in text
    assert "ALARM_S = 300\n" in text
    assert '"@' not in text
    compile(text, "hook", "exec")
    said = "\n".join(install_pbs.openpbs_instructions(where))
    assert all(f"event+={name}" in said for name in ("execjob_begin", "execjob_launch", "exechost_startup"))
