"""Puts hooks, plugin and guest program in place for a batch system. `plan` says what, as values; `apply` does it.

    <prefix>/lib/lrms_vm.so                  the SPANK plugin, built against this machine's Slurm
    <prefix>/lib/lrms_vm.lua                 for the controller's job_submit.lua, alone or called by the site's own
    <prefix>/libexec/slurm.prolog            for slurm.conf Prolog=
    <prefix>/libexec/slurm.epilog            for slurm.conf Epilog=
    <prefix>/libexec/slurm.health            for slurm.conf HealthCheckProgram=
    <prefix>/libexec/lrms-vm-exec            what the plugin puts in the payload's place
    <prefix>/libexec/lrms-vm-guest           our half in the guest
    <slurm conf>/plugstack.conf.d/lrms_vm.conf   loads the plugin

The site's own slurm.conf is never touched: its lines are printed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import lrms_vm
from lrms_vm import command, installed
from lrms_vm.errors import ConfigError, NodeError, UsageError
from lrms_vm.installed_from import SOURCES
from lrms_vm.lrms.slurm import vm_features
from lrms_vm.values import dataclass

BUILD_TIMEOUT_S = 180.0
MAX_SHEBANG = 250  # execve(2): BINPRM_BUF_SIZE is 256
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._/+@-]*", re.ASCII)  # plugstack.conf and #! split at blanks

EXEC = """\
#!{python} -I
# The SPANK plugin runs this as the job's user in place of the payload: lrms-vm-exec exec --verdict FILE ... -- ARGV
import sys

from lrms_vm.cli import main

sys.exit(main())
"""


@dataclass(frozen=True)
class Planned:
    """A file that shall be there, root's, with exactly this content; or a symbolic link."""

    path: Path
    content: bytes
    mode: int = 0o755
    link: str = ""  # what it names


class Targets(Protocol):
    """Everything an installation puts in place; `undo` removes it from the last to the first."""

    @property
    def prefix(self) -> Path: ...

    @property
    def all(self) -> tuple[Path, ...]: ...


@dataclass(frozen=True)
class SlurmTargets:
    """Where everything goes."""

    prefix: Path
    slurm_conf_dir: Path

    @property
    def plugin(self) -> Path:
        return self.prefix / "lib" / "lrms_vm.so"

    @property
    def lua(self) -> Path:
        return self.prefix / "lib" / "lrms_vm.lua"

    @property
    def prolog(self) -> Path:
        return self.prefix / "libexec" / "slurm.prolog"

    @property
    def epilog(self) -> Path:
        return self.prefix / "libexec" / "slurm.epilog"

    @property
    def health(self) -> Path:
        return self.prefix / "libexec" / "slurm.health"

    @property
    def exec(self) -> Path:
        return self.prefix / "libexec" / "lrms-vm-exec"

    @property
    def guest(self) -> Path:
        return self.prefix / "libexec" / "lrms-vm-guest"

    @property
    def plugstack(self) -> Path:
        return self.slurm_conf_dir / "plugstack.conf.d" / "lrms_vm.conf"

    @property
    def job_submit(self) -> Path:
        """The site's own, if it has one: slurmctld reads one of this name only. Never written by us."""
        return self.slurm_conf_dir / "job_submit.lua"

    @property
    def all(self) -> tuple[Path, ...]:
        hooks = (self.prolog, self.epilog, self.health)
        return (self.plugin, self.lua, *hooks, self.exec, self.guest, self.plugstack)


def plan(
    targets: SlurmTargets, *, python: str, config: Path, run_dir: Path, plugin: bytes, guest: bytes
) -> tuple[Planned, ...]:
    """Every file of a Slurm node. Raises `UsageError` for a path that its reader would cut in two."""
    check_plain(python, config, run_dir, *targets.all)
    names = {"PYTHON": python, "CONFIG": str(config), "RUN_DIR": str(run_dir)}
    names["SLURM_CONF_DIR"] = str(targets.slurm_conf_dir)
    return (
        Planned(targets.plugin, plugin),
        Planned(targets.lua, (SOURCES / "spank" / "job_submit.lua").read_bytes(), 0o644),
        Planned(targets.prolog, hook("prologue/slurm.prolog", names)),
        Planned(targets.epilog, hook("epilogue/slurm.epilog", names)),
        Planned(targets.health, hook("prologue/slurm.health", names)),
        Planned(targets.exec, EXEC.format(python=python).encode()),
        Planned(targets.guest, guest),
        Planned(targets.plugstack, plugstack_line(targets, run_dir).encode(), 0o644),
    )


def check_plain(*paths: str | Path) -> None:
    """Raises `UsageError` for a path that its reader would cut in two."""
    for path in map(str, paths):
        if _PLAIN_PATH.fullmatch(path) is None or len(path) > MAX_SHEBANG:
            raise UsageError(
                f"{path[:80]!r} cannot be written into the batch system's files",
                hint="no blanks or quotes",
                code="path-unusable",
            )


def hook(source: str, names: dict[str, str]) -> bytes:
    """A hook file with its @NAMES@ filled in, quoted for the shell."""
    text = (SOURCES / source).read_text()
    for name, value in names.items():
        text = text.replace(f"@{name}@", shlex.quote(value))
    return text.encode()


def plugstack_line(targets: SlurmTargets, run_dir: Path) -> str:
    """plugstack.conf(5), spank(8): `required`, since a node without the plugin would run VM jobs on the host."""
    return f"required {targets.plugin} exec={targets.exec} verdicts={run_dir / 'verdicts'}\n"


def slurm_conf_lines(targets: SlurmTargets) -> tuple[str, ...]:
    """slurm.conf(5). Alloc: the prologue runs at allocation; DeferBatch: the script waits for all nodes' prologues."""
    return (
        f"Prolog={targets.prolog}",
        f"Epilog={targets.epilog}",
        "PrologFlags=Alloc,DeferBatch",
        "BatchStartTimeout=900    # at least prologue_timeout_s of lrms_vm.toml",
        "SchedulerParameters=nohold_on_prolog_fail    # added to what is there",
    )


def scheduling_lines(targets: SlurmTargets, *, node: str, hypervisor: str, guests: int) -> tuple[str, ...]:
    """slurm.conf(5) and gres.conf(5), for a site that counts guests and has jobs find a node by its hypervisor.

    A gres without a file needs no gres.conf of its own (measured: docs/slurm.md).
    """
    return (
        "GresTypes=vm                     # added to what is there",
        f"NodeName={node} ... Gres=vm:{guests} Features={','.join(vm_features(hypervisor))}    # added to its line",
        f"HealthCheckProgram={targets.health}",
        "HealthCheckInterval=300",
        f"gres.conf, only if there is one: NodeName={node} Name=vm Count={guests}",
    )


def job_submit_lines(targets: SlurmTargets, own: str | None) -> tuple[str, ...]:
    """What the controller does for jobs by DRMAA and REST. `own`: the text of the site's job_submit.lua, if it has one.

    There is one such file, so a site's own is never replaced: it is to call ours.
    """
    if own is not None and ("lrms_vm.job_submit" in own or str(targets.lua) in own):
        return ()
    if own is None:
        return (
            f"    ln -s {targets.lua} {targets.job_submit}",
            "    and in slurm.conf: JobSubmitPlugins=lua      # added to what is there; then scontrol reconfigure",
        )
    return (
        f"    {targets.job_submit} is your own and stays as it is: at its top",
        f'        dofile("{targets.lua}")',
        "    and first in its slurm_job_submit",
        "        local code = lrms_vm.job_submit(job_desc)",
        "        if code ~= slurm.SUCCESS then return code end",
    )


def node_settings(targets: SlurmTargets) -> tuple[str, ...]:
    """What the node's lrms_vm.toml must say."""
    return (f'guest_program = "{targets.guest}"', f'spank_plugin = "{targets.plugin}"')


# ---- effects


def program(part: str, target: str) -> bytes:
    """One of our C programs: as a package brought it, where that fits this machine, else built here.

    A SPANK plugin of another Slurm than the installed one would be refused by slurmd, and with it every job.
    Raises `NodeError`.
    """
    brought = Path(sys.prefix) / "built" / target
    try:
        content = brought.read_bytes()
        if part != "spank" or brought.with_name(f"{target}.slurm").read_text().strip() == _slurm_release():
            return content
    except FileNotFoundError:
        pass
    return built(part, target)


def _slurm_release() -> str:
    """Of the installed Slurm, e.g. "22.05"; "" where nothing says. slurmd needs no configuration to tell."""
    for argv in (["slurmd", "-V"], ["scontrol", "--version"]):
        try:
            said = command.run(argv, timeout_s=20.0).decode("utf-8", "replace")
        except NodeError:
            continue
        if found := re.search(r"\b(\d+\.\d+)\.\d", said):
            return found[1]
    return ""


def built(part: str, target: str) -> bytes:
    """Make a C program from the packaged sources in a directory of its own. Raises `NodeError` with a remedy."""
    for tool in ("make", "gcc"):
        if shutil.which(tool, path=command.PATH) is None:
            raise NodeError(f"{tool} is missing", hint="apt install gcc make libc6-dev", code="compiler-missing")
    with tempfile.TemporaryDirectory(prefix="lrms_vm-build-") as name:
        place = Path(name) / part
        shutil.copytree(SOURCES / part, place, ignore=shutil.ignore_patterns("*.so", "*.o", "test_*", target))
        try:
            command.run(["make", "-C", str(place), target], timeout_s=BUILD_TIMEOUT_S)
        except NodeError as error:
            hint = "apt install libslurm-dev, or give a built one with --plugin" if part == "spank" else ""
            raise NodeError(f"cannot build {target}: {error.message}", hint=hint, code="build-failed") from error
        return (place / target).read_bytes()


def check_python(python: str = sys.executable) -> None:
    """The payload's half runs as the job's user, the hooks as root, from this very installation.

    So users must be able to reach and read it, and nobody but root to change it. Raises `ConfigError`.
    """
    for start in (Path(python), Path(python).resolve(), Path(lrms_vm.__file__).resolve()):
        for path in (start, *start.parents):
            state = path.stat()
            sticky = stat.S_ISDIR(state.st_mode) and state.st_mode & stat.S_ISVTX
            if state.st_uid != 0 or (state.st_mode & 0o022 and not sticky):
                raise ConfigError(
                    f"{path}: owner {state.st_uid}, mode {stat.S_IMODE(state.st_mode):o}: not only root can change it, "
                    "and root's hooks would run it",
                    hint="install lrms_vm into a virtual environment that root owns",
                    code="python-unsafe",
                )
            wanted = 0o005 if stat.S_ISREG(state.st_mode) and path.suffix != ".py" else 0o001
            if path.suffix == ".py":
                wanted = 0o004
            if state.st_mode & wanted != wanted:
                raise ConfigError(
                    f"{path}: mode {stat.S_IMODE(state.st_mode):o}: users cannot get there, and exec runs as they",
                    hint=f"chmod o+rX {path}, or install elsewhere",
                    code="python-unreachable",
                )


def changes(files: Iterable[Planned]) -> list[tuple[str, Planned]]:
    """What `apply` would do: ("new" | "change" | "same", file)."""
    return [(_difference(file), file) for file in files]


def _difference(file: Planned) -> str:
    try:
        state = file.path.lstat()
        if file.link:
            return "same" if stat.S_ISLNK(state.st_mode) and os.readlink(file.path) == file.link else "change"
        same = stat.S_ISREG(state.st_mode) and file.path.read_bytes() == file.content
    except FileNotFoundError:
        return "new"
    return "same" if same and (stat.S_IMODE(state.st_mode), state.st_uid) == (file.mode, os.geteuid()) else "change"


def apply(files: Iterable[Planned], *, note: Path | None = None) -> None:
    """Write what differs. Each file is replaced whole: slurmd may have the old plugin mapped. Raises `NodeError`.

    What was there before is noted in `note` first.
    """
    found = changes(files)
    to_do = [file for verb, file in found if verb != "same"]
    if note is not None:
        same = [file.path for verb, file in found if verb == "same"]
        installed.prepare(note, [file.path for file in to_do], same=same)
    for file in to_do:
        fresh = file.path.with_name(f".{file.path.name}.new")
        try:
            file.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            fresh.unlink(missing_ok=True)
            if file.link:
                fresh.symlink_to(file.link)
            else:
                _write(fresh, file)
            fresh.replace(file.path)
        except OSError as error:
            raise NodeError(f"{file.path}: cannot write: {error.strerror}", code="install-failed") from error


def _write(path: Path, file: Planned) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb") as out:
        out.write(file.content)
        os.fchmod(fd, file.mode)


def undo(targets: Targets) -> list[Path]:
    """Remove what `apply` wrote without a note, the last first: what the batch system reads goes first.

    Returns what was there. Raises `NodeError`.
    """
    removed = []
    for path in reversed(targets.all):
        try:
            path.unlink()
            removed.append(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise NodeError(f"{path}: cannot remove: {error.strerror}", code="install-failed") from error
    noted = (targets.prefix / "installed").is_dir()  # then `installed` knows which directories were ours
    for directory in () if noted else (targets.prefix / "lib", targets.prefix / "libexec", targets.prefix):
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()
    return removed
