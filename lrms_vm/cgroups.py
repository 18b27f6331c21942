"""Holds guests in control groups: makes them, puts the hypervisor's process in, reads and removes them.

Where they are and what is written into them is cgroup_paths.py's, which is pure. Whatever cannot be done, or does not
read back, is a `NodeError`; whether a guest may run all the same is the site's word (`confine`), and then it is said
in the log and in the job's record.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from lrms_vm import cgroup_paths, journal
from lrms_vm.cgroup_paths import Group, Hierarchy, Setting, Usage
from lrms_vm.errors import NodeError
from lrms_vm.request import Allocation
from lrms_vm.values import dataclass

MOUNTINFO = Path("/proc/self/mountinfo")
PROC = Path("/proc")
LOCK_TIMEOUT_S = 5.0
REMOVE_TIMEOUT_S = 5.0
POLL_S = 0.01
MAX_TEXT_BYTES = 1 << 16
_HINT = 'the site may set confine = "if-possible"; see docs/confinement.md'


@dataclass(frozen=True)
class Confinement:
    """How this node holds its guests. `mountinfo` is a parameter for tests on a tree of their own."""

    required: bool = True
    mountinfo: Path = MOUNTINFO

    def hold(
        self, allocation: Allocation, *, memory_mib: int, cpus: int, note: Callable[[list[str], str], None]
    ) -> Held | None:
        """Make the job's groups with these limits. `note` is called once, before anything is made: with the paths, or
        with none and the reason. None: there are none, and the site lets the guest run. Raises `NodeError`."""
        noted = False
        try:
            groups = plan(hierarchies(self.mountinfo), allocation)
            note([group.path for group in groups], "")
            noted = True
            for group in groups:
                make(group, cgroup_paths.settings(group, memory_mib=memory_mib, cpus=cpus))
            return Held(allocation.key, groups, memory_mib, cpus, self.required)
        except NodeError as error:
            if not noted:
                note([], str(error))
            if self.required:
                raise
            _not_confined(allocation.key, error)
            return None


@dataclass(frozen=True)
class Held:
    """The groups of one guest, made and limited."""

    key: str
    groups: tuple[Group, ...]
    memory_mib: int
    cpus: int
    required: bool

    @property
    def memory_path(self) -> str:
        """The directory where the kernel counts the guest's memory; its user may look."""
        return next(group.path for group in self.groups if "memory" in group.controllers)

    def enter(self, pid: int) -> None:
        """Put the hypervisor's process in, all its threads; make sure that it is in, bounded and can be chosen when
        memory runs out. To be called before the guest's first instruction. Raises `NodeError`."""
        try:
            for group in self.groups:
                _write(group.path, "cgroup.procs", str(pid))
                if str(pid) not in _read(group.path, "cgroup.procs").split():
                    raise NodeError(f"{group.path}: process {pid} is not in it", hint=_HINT, code="cgroup-failed")
                check(group, cgroup_paths.settings(group, memory_mib=self.memory_mib, cpus=self.cpus))
            reset_oom_score(pid)
        except NodeError as error:
            if self.required:
                raise
            _not_confined(self.key, error)


def hierarchies(mountinfo: Path = MOUNTINFO) -> tuple[Hierarchy, ...]:
    """Those mounted here that count memory or cpus. Raises `NodeError`."""
    try:
        found = cgroup_paths.parse_mounts(mountinfo.read_text())
    except OSError as error:
        raise NodeError(f"{mountinfo}: cannot read: {error.strerror}", code="cgroup-missing") from error
    known = []
    for one in found:
        if one.version == 2:
            has = set(_read(one.mount, "cgroup.controllers", absent="").split())
            one = replace(one, controllers=frozenset(has & cgroup_paths.WANTED))
        if one.controllers:
            known.append(one)
    return tuple(known)


def plan(found: tuple[Hierarchy, ...], allocation: Allocation) -> tuple[Group, ...]:
    """One group a hierarchy, in the job's own where the batch system has one. Raises `NodeError` ("cgroup-missing")."""
    groups = []
    for one in found:
        if not os.access(one.mount, os.W_OK):
            continue  # read-only, as in a container
        root, below = next(pair for pair in cgroup_paths.parents(one, allocation) if os.path.isdir(pair[0]))
        path = f"{root}/{below}/{cgroup_paths.group_name(allocation.key)}"
        groups.append(Group(path, root, one.version, one.controllers))
    bounded: set[str] = set().union(*(group.controllers for group in groups))
    if missing := [name for name in ("memory", "cpu") if name not in bounded]:
        raise NodeError(
            f"no writable cgroup file system here bounds {' and '.join(missing)}: nothing would hold a guest",
            hint=_HINT,
            code="cgroup-missing",
        )
    return tuple(groups)


def make(group: Group, settings: tuple[Setting, ...]) -> None:
    """The directories from the root on, and the limits. One that is there is used. Raises `NodeError`."""
    with _locked(group.root):
        for directory in _between(group):
            if group.version == 2:
                _enable(os.path.dirname(directory), group.controllers)
            try:
                os.mkdir(directory, 0o755)
            except FileExistsError:
                continue
            except OSError as error:
                raise _failed(directory, "cannot make", error) from error
    for one in settings:
        try:
            _write(group.path, one.file, one.text)
        except NodeError:
            if one.exact:
                raise
    check(group, settings)


def check(group: Group, settings: tuple[Setting, ...]) -> None:
    """Read the limits back. Raises `NodeError` ("cgroup-failed")."""
    for one in settings:
        if one.exact and not cgroup_paths.holds(one, found := _read(group.path, one.file)):
            raise NodeError(
                f"{group.path}/{one.file}: reads {found.strip()!r:.60} after {one.text!r} was written",
                hint=_HINT,
                code="cgroup-failed",
            )


def reset_oom_score(pid: int) -> None:
    """What slurmd or libvirtd were spared by, a guest must not inherit: it would never be the one that is ended."""
    try:
        file = PROC / str(pid) / "oom_score_adj"
        file.write_text("0")
        if file.read_text().strip() != "0":
            raise NodeError(f"{file}: does not read 0 after it was written", code="cgroup-failed")
    except OSError as error:
        raise _failed(f"/proc/{pid}/oom_score_adj", "cannot write", error) from error


def find(key: str, mountinfo: Path = MOUNTINFO) -> list[Group]:
    """The groups of a guest that are there, by name: no record is needed."""
    groups = []
    for one in hierarchies(mountinfo):
        for root_pattern, below in cgroup_paths.patterns(one, key):
            for root in glob.glob(root_pattern):
                found = glob.glob(f"{glob.escape(root)}/{below}")
                groups += [Group(path, root, one.version, one.controllers) for path in found]
    return groups


def measure(key: str, mountinfo: Path = MOUNTINFO) -> Usage:
    """What the kernel has counted for a guest so far; the groups outlive its processes."""
    texts: dict[str, str] = {}
    for group in find(key, mountinfo):
        for name in cgroup_paths.USAGE_FILES[group.version]:
            if name not in texts and (text := _read(group.path, name, absent="")):
                texts[name] = text
    return cgroup_paths.usage(texts)


def remove(key: str, mountinfo: Path = MOUNTINFO) -> None:
    """The guest's groups, and what was made above them where nobody else is in it. Raises `NodeError`: still used."""
    for group in find(key, mountinfo):
        _remove(group.path, _rmdir)
        with _locked(group.root):
            for directory in reversed(_between(group)[:-1]):
                if not _rmdir(directory):
                    break  # another job's


def remove_libvirts(key: str, mountinfo: Path = MOUNTINFO) -> None:
    """What libvirt made for the guest's domain, and a libvirtd that was killed and started again forgets where there is
    no systemd: empty groups, once the domain has ended. Raises `NodeError`: still used."""
    try:
        mounts = cgroup_paths.mount_points(mountinfo.read_text())
    except OSError:
        return
    for mount in mounts:
        for path in glob.glob(f"{glob.escape(mount)}/machine/qemu-*"):
            if cgroup_paths.is_libvirts(os.path.basename(path), key):
                _remove(path, _rmdir_whole)


def _remove(path: str, is_gone: Callable[[str], bool]) -> None:
    """Try as long as its processes may still be ending. Raises `NodeError`."""
    deadline = time.monotonic() + REMOVE_TIMEOUT_S
    while not is_gone(path):
        if time.monotonic() > deadline:
            inside = _read(path, "cgroup.procs", absent="").split()
            raise NodeError(f"{path}: still has processes {inside[:5]}", code="cgroup-stuck")
        time.sleep(POLL_S)


def _not_confined(key: str, error: NodeError) -> None:
    journal.say("warning", key, f"guest is NOT confined to its job: {error.code}: {error.message}")


def _between(group: Group) -> list[str]:
    """Every directory below the root up to the group's own, from the top."""
    below = group.path.removeprefix(group.root + "/").split("/")
    return [f"{group.root}/{'/'.join(below[: count + 1])}" for count in range(len(below))]


def _enable(directory: str, controllers: frozenset[str]) -> None:
    """v2: let the groups below count these (cgroup-v2.rst, "Enabling and Disabling")."""
    have = _read(directory, "cgroup.subtree_control").split()
    if missing := sorted(controllers - set(have)):
        _write(directory, "cgroup.subtree_control", " ".join(f"+{name}" for name in missing))


def _rmdir(directory: str) -> bool:
    """Whether it is gone."""
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        raise _failed(directory, "cannot remove", error) from error
    return True


def _rmdir_whole(path: str) -> bool:
    """Whether it is gone, with the groups below it."""
    return all(_rmdir(directory) for directory, _, _ in os.walk(path, topdown=False))


@contextlib.contextmanager
def _locked(root: str) -> Iterator[None]:
    """As Slurm does (common_cgroup_lock): nobody removes a directory in which another is about to make one."""
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _failed(root, "cannot open", error) from error
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise NodeError(f"{root}: locked by somebody else", code="cgroup-failed") from None
                time.sleep(POLL_S)
        yield
    finally:
        os.close(fd)


def _write(directory: str, file: str, text: str) -> None:
    """One write(2): the kernel reads each as a whole."""
    try:
        fd = os.open(f"{directory}/{file}", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise _failed(f"{directory}/{file}", f"cannot write {text!r}", error) from error


def _read(directory: str, file: str, *, absent: str | None = None) -> str:
    """`absent`: what an unreadable file says; else it is a `NodeError`."""
    try:
        with open(f"{directory}/{file}", "rb") as opened:
            return opened.read(MAX_TEXT_BYTES).decode("ascii", "replace")
    except OSError as error:
        if absent is not None:
            return absent
        raise _failed(f"{directory}/{file}", "cannot read", error) from error


def _failed(where: str, what: str, error: OSError) -> NodeError:
    return NodeError(f"{where}: {what}: {error.strerror}", hint=_HINT, code="cgroup-failed")
