"""`lrms-vm install --lrms=slurm` on real files: said, done, done once, undone; and systemd reads its units."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from lrms_vm import cli, install_systemd, installed, installed_from
from lrms_vm.config import Config

PROGRAM = [sys.executable, "-m", "lrms_vm"]


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything below `root`: kind, mode, owner, content; of files the time as well."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        state = path.lstat()
        entry: tuple[object, ...] = (oct(state.st_mode), state.st_uid, state.st_gid)
        if path.is_symlink():
            entry += (os.readlink(path),)
        elif path.is_file():
            entry += (hashlib.sha256(path.read_bytes()).hexdigest(), state.st_mtime_ns)
        found[str(path.relative_to(root))] = entry
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A node of a site that has things of its own in some of our places."""
    (tmp_path / "etc/slurm/plugstack.conf.d").mkdir(parents=True)
    (tmp_path / "etc/slurm/slurm.conf").write_text("ClusterName=c\n")
    theirs = tmp_path / "etc/slurm/plugstack.conf.d/lrms_vm.conf"
    theirs.write_text("optional other.so\n")
    theirs.chmod(0o640)
    os.chown(theirs, 1234, 4321)
    os.utime(theirs, (1, 1))
    (tmp_path / "opt/lib").mkdir(parents=True)  # empty, and there: it stays
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    (tmp_path / "etc/systemd/system/lrms-vm-lists.timer").symlink_to("/dev/null")  # masked
    return tmp_path


def words_of(root: Path) -> list[str]:
    return [
        *("--config", str(root / "etc/lrms_vm.toml"), "install", "--lrms=slurm", "--prefix"),
        *(str(root / "opt"), "--slurm-conf-dir", str(root / "etc/slurm")),
        *("--systemd=yes", "--systemd-dir", str(root / "etc"), "--plugin", "/bin/true", "--guest", "/bin/true"),
    ]


def run(root: Path, *words: str) -> str:
    done = subprocess.run([*PROGRAM, *words_of(root), *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_dry_run_says_what_an_installation_does_and_does_nothing(root: Path) -> None:
    before = tree(root)
    said = run(root, "--dry-run")
    assert tree(root) == before
    lines = [line for line in said.splitlines() if line.startswith(("new ", "change "))]
    assert [line for line in run(root).splitlines() if line.startswith(("new ", "change "))] == lines
    changed = {path for path, entry in tree(root).items() if before.get(path) != entry}
    files = {path for path in changed if not (root / path).is_dir() or (root / path).is_symlink()}
    announced = {str(Path(line.split()[1]).relative_to(root)) for line in lines}
    assert files - announced == {
        str(path.relative_to(root)) for path in (root / "opt/installed").iterdir()
    }  # its own note and copies
    assert announced <= files


def test_a_second_installation_changes_nothing(root: Path) -> None:
    run(root)
    before = tree(root)
    said = run(root)
    assert tree(root) == before
    assert not [line for line in said.splitlines() if line.startswith(("new ", "change "))]


@pytest.mark.parametrize("times", [1, 2])
def test_undone_everything_is_as_it_was(root: Path, times: int) -> None:
    before = tree(root)
    for _ in range(times):
        run(root)
    run(root, "--undo", "--dry-run")
    assert (root / "opt/lib/lrms_vm.so").exists()
    run(root, "--undo")
    assert tree(root) == before
    run(root, "--undo")
    assert tree(root) == before


def test_what_was_changed_by_hand_since_is_undone_as_well(root: Path) -> None:
    before = tree(root)
    run(root)
    (root / "opt/libexec/slurm.prolog").write_text("#!/bin/sh\n")
    (root / "etc/slurm/plugstack.conf.d/lrms_vm.conf").unlink()
    run(root, "--undo")
    assert tree(root) == before


@pytest.mark.parametrize("theirs", ["theirs", "libexec/theirs", "installed/theirs"])
def test_a_strangers_file_in_a_prefix_of_ours_stays_and_the_rest_goes(root: Path, theirs: str) -> None:
    prefix = root / "new/prefix"
    run(root, "--prefix", str(prefix))
    (prefix / theirs).write_text("theirs")
    run(root, "--prefix", str(prefix), "--undo")
    assert [str(path.relative_to(prefix)) for path in prefix.rglob("*") if not path.is_dir()] == [theirs]
    assert not (root / "etc/systemd/system/timers.target.wants").exists()


def test_undone_without_being_told_where_it_all_is(root: Path) -> None:
    before = tree(root)
    run(root)
    argv = [*PROGRAM, "install", "--lrms=slurm", "--undo", "--prefix", str(root / "opt")]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    assert tree(root) == before
    plugin, plugstack = str(root / "opt/lib/lrms_vm.so"), str(root / "etc/slurm/plugstack.conf.d/lrms_vm.conf")
    assert said.index(plugstack + ",") < said.index(plugin)  # what names it goes first


def test_a_strangers_file_in_our_directory_stays_and_so_does_the_directory(root: Path) -> None:
    run(root)
    (root / "opt/libexec/theirs").write_text("")
    run(root, "--undo")
    assert [path.name for path in (root / "opt/libexec").iterdir()] == ["theirs"]


def test_an_installation_killed_after_its_note_is_undone_all_the_same(root: Path) -> None:
    before = tree(root)
    run(root)
    for path in ("opt/lib/lrms_vm.so", "opt/libexec/slurm.epilog", "etc/tmpfiles.d/lrms_vm.conf"):
        (root / path).unlink()  # as if it had not come so far
    run(root, "--undo")
    assert tree(root) == before


def in_child(action: Callable[[], object], *, dies_after: int | None, root: Path) -> bool:
    """Do it in a child that is killed at its `dies_after`th step on a file below `root`; say whether it came through."""
    left = [dies_after]

    def step(event: str, args: tuple[object, ...]) -> None:
        if left[0] is None or not event.startswith(("open", "os.", "shutil.")):
            return
        if any(str(root) in os.fsdecode(word) for word in args if isinstance(word, str | bytes | Path)):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
                sys.addaudithook(step)
                action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return not os.WIFSIGNALED(status)


@pytest.mark.parametrize("prefix", ["opt", "srv/not/there"])
@pytest.mark.parametrize("killed", ["install", "undo"])
def test_killed_at_any_step_it_is_undone_all_the_same(root: Path, killed: str, prefix: str) -> None:
    before = tree(root)
    install_words = [*words_of(root), "--prefix", str(root / prefix)]
    undo_words = [*install_words, "--undo"]
    for count in range(1, 1000):
        if killed == "install":
            came_through = in_child(lambda: cli.main(install_words), dies_after=count, root=root)
        else:
            assert in_child(lambda: cli.main(install_words), dies_after=None, root=root)
            came_through = in_child(lambda: cli.main(undo_words), dies_after=count, root=root)
        assert in_child(lambda: cli.main(undo_words), dies_after=None, root=root)
        assert tree(root) == before, count
        if came_through:
            assert count > 50
            return
    pytest.fail("more steps than expected")


def test_doctor_is_told_when_the_hooks_are_another_version_s(root: Path, tmp_path: Path) -> None:
    run(root)
    note = installed.at(root / "opt", "slurm")
    plugin = str(root / "opt/lib/lrms_vm.so")
    config = Config(guest_program=str(root / "opt/libexec/lrms-vm-guest"), spank_plugin=plugin)
    (now,) = installed_from.findings(config)
    assert now.ok and now.check == "hooks for slurm"
    note.with_suffix(".sources").write_text("0" * 64 + "\n")
    (later,) = installed_from.findings(config)
    assert not later.ok and "another version" in later.found
    assert later.remedy == "lrms-vm install --lrms=slurm with the same options, then restart slurmd"
    note.with_suffix(".sources").unlink()  # an installation from before there was one
    assert not installed_from.of(note).ok
    run(root)
    assert installed_from.of(note).ok


def test_each_source_counts_and_what_was_built_from_them_does_not(tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    shutil.copytree(installed_from.SOURCES, sources)
    before = installed_from.digest(sources)
    (sources / "guest/lrms-vm-guest").write_text("built")
    (sources / "spank/lrms_vm.so").write_text("built")
    assert installed_from.digest(sources) == before
    for name in ("guest/boot.c", "spank/lrms_vm.c", "spank/job_submit.lua", "epilogue/slurm.epilog"):
        with (sources / name).open("a") as file:
            file.write("\n")
        assert installed_from.digest(sources) != before
        before = installed_from.digest(sources)


def test_the_note_of_a_newer_version_is_not_followed(root: Path) -> None:
    run(root)
    note = installed.at(root / "opt", "slurm")
    note.write_text(note.read_text().replace('"version": 1', '"version": 2'))
    before = tree(root)
    done = subprocess.run(
        [*PROGRAM, "install", "--lrms=slurm", "--undo", "--prefix", str(root / "opt")], capture_output=True, text=True
    )
    assert done.returncode == 78
    assert "undo it with the version that made it" in done.stderr
    assert tree(root) == before


def test_two_batch_systems_share_the_units_and_the_last_one_takes_them_along(root: Path) -> None:
    before = tree(root)
    run(root)
    run(root, "--lrms=gridengine")
    run(root, "--undo")
    assert (root / "etc/systemd/system/lrms-vm-scrub.timer").exists()
    assert not (root / "etc/systemd/system/multi-user.target.wants").exists()
    run(root, "--lrms=gridengine", "--undo")
    assert tree(root) == before


@pytest.mark.parametrize("lrms", ["torque", "openpbs", "gridengine"])
def test_other_batch_systems_are_undone_to_the_byte_as_well(root: Path, lrms: str) -> None:
    home = root / "torque/mom_priv"
    home.mkdir(parents=True)
    (home / "prologue").write_text("#!/bin/sh\necho the site's own\n")
    (home / "prologue").chmod(0o700)
    (home / "config").write_text("$logevent 255\n")
    before = tree(root)
    words = (f"--lrms={lrms}", "--pbs-home", str(root / "torque"))
    run(root, *words)
    run(root, *words)
    run(root, *words, "--undo")
    assert tree(root) == before


def test_units_that_a_package_brought_are_enabled_and_not_written_again(tmp_path: Path) -> None:
    (tmp_path / "lib/systemd/system").mkdir(parents=True)
    for name in install_systemd.UNITS:
        (tmp_path / "lib/systemd/system" / name).write_text("")
    targets = install_systemd.SystemdTargets(tmp_path / "etc", tmp_path / "lib")
    files = install_systemd.plan(targets, "slurm", python="/p", config=Path("/c"), run_dir=Path("/r"))
    assert [file.path.name for file in files if not file.link] == ["lrms_vm.conf"]
    assert {file.link for file in files if file.link} == {
        str(tmp_path / "lib/systemd/system" / name)
        for name in ("lrms-vm-reap@.service", "lrms-vm-scrub.timer", "lrms-vm-lists.timer")
    }


def test_systemd_reads_the_units_without_a_word(root: Path) -> None:
    (root / "etc/systemd/system/lrms-vm-lists.timer").unlink()
    run(root)
    units = root / "etc/systemd/system"
    verified = [units / "lrms-vm-reap@slurm.service", *(units / name for name in install_systemd.UNITS[1:])]
    verified[0].symlink_to(units / "lrms-vm-reap@.service")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *map(str, verified)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    unit = (units / "lrms-vm-reap@.service").read_text()
    assert "Before=slurmd.service" in unit
    for name in install_systemd.UNITS:
        assert "@" not in (units / name).read_text().replace("reap@", "")


def test_what_the_units_start_does_its_work_on_a_node_without_jobs(root: Path) -> None:
    (root / "etc/lrms_vm.toml").write_text(
        f"""version = 1
        state_dir = "{root}/state"
        run_dir = "{root}/run"
        policy = "{root}/etc/trust.toml"
        libvirt_uri = "test:///default"
        """
    )
    (root / "ca").mkdir()
    (root / "etc/trust.toml").write_text(f'version = 1\n[defaults]\nca_dir = "{root}/ca"\n')
    run(root)
    for name in (*(f"lrms-vm-{name}.service" for name in ("reap@", "scrub", "lists", "metrics")),):
        unit = (root / "etc/systemd/system" / name).read_text()
        command = unit.partition("ExecStart=")[2].partition("\n")[0].replace("%i", "slurm").replace("%l", "n1")
        command = command.replace(str(install_systemd.EXPORTER), str(root))
        done = subprocess.run(command.split(), capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, ""), command
    assert "lrms_vm_cache_images" in (root / "lrms_vm.prom").read_text()


def test_metrics_are_written_where_node_exporter_reads_them(tmp_path: Path) -> None:
    def links() -> set[str]:
        targets = install_systemd.SystemdTargets(tmp_path / "etc", tmp_path / "lib", tmp_path / "exporter")
        return {link.name for link in targets.links("slurm")}

    assert install_systemd.METRICS not in links()
    (tmp_path / "exporter").mkdir()
    assert install_systemd.METRICS in links()


def test_systemd_tmpfiles_makes_the_run_directory(root: Path) -> None:
    run(root)
    line = (root / "etc/tmpfiles.d/lrms_vm.conf").read_text()
    (root / "run").mkdir()
    done = subprocess.run(
        ["systemd-tmpfiles", "--create", f"--root={root}", str(root / "etc/tmpfiles.d/lrms_vm.conf")],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (root / "run/lrms_vm").stat().st_mode & 0o7777 == 0o755
    assert "/run/lrms_vm 0755 root root" in line
