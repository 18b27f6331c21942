"""Teardown: undo everything that was made for a job on this node, by record and by name; say what is still there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lrms_vm import cache, cgroups, journal, provenance, record
from lrms_vm.domain import NAME_PREFIX
from lrms_vm.errors import LrmsVmError, NodeError
from lrms_vm.guest import Hypervisor
from lrms_vm.paths import JobPlaces, Places
from lrms_vm.values import dataclass

KEEP_HISTORY = 1000
MAX_USER_FILE_BYTES = 1 << 16
PF_KTHREAD = 0x00200000  # include/linux/sched.h
EXEC_LOOKS = 100


@dataclass(frozen=True)
class Leftover:
    """Something of a job that teardown could not remove."""

    what: str
    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.what} {self.where}: {self.why}"


@contextlib.contextmanager
def locked(places: Places, key: str, *, deadline: float) -> Iterator[None]:
    """One prologue, epilogue or reap per job at a time on this node. Raises `NodeError` past the deadline."""
    path = places.job_locks / f"{key}.lock"
    while True:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise NodeError(f"{path}: cannot make: {error.strerror}", code="state-unwritable") from error
        if _try_lock(fd, path):
            break
        os.close(fd)
        if time.monotonic() >= deadline:
            raise NodeError(f"{path}: held by another prologue or epilogue of the same job", code="job-locked")
        time.sleep(0.02)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while held: whoever opened it meanwhile finds it gone and opens anew
        os.close(fd)


def teardown(
    key: str,
    *,
    places: Places,
    hypervisor: Hypervisor,
    deadline: float,
    on_step: Callable[[str], None] | None = None,
) -> list[Leftover]:
    """Undo everything that carries `key`; return what could not be undone.

    Safe to call twice, after a crash, and when the prologue never finished: what is gone counts as undone. One failure
    does not stop the rest. Does not raise for a failed step: the caller decides what a non-empty list means.
    `deadline` is a `time.monotonic()` value. The caller holds `locked`. `on_step` is called with each step's name
    before it is taken: the crash tests end the process there.
    """
    job = places.job(key)
    started = time.monotonic()
    try:
        noted = record.read(job.record)
    except NodeError as error:
        return [Leftover("record", str(job.record), str(error))]  # what else there is to undo nobody knows
    leftovers: list[Leftover] = []

    def undo(what: str, where: str, step: Callable[[], None]) -> None:
        if on_step is not None:
            on_step(what)
        try:
            step()
        except (LrmsVmError, OSError) as error:
            leftovers.append(Leftover(what, where, str(error)))

    undo("verdict", str(places.verdict(key)), lambda: _remove_file(places.verdict(key)))
    undo("attach", key, lambda: end_attach(key, deadline=deadline))

    def destroy() -> None:
        hypervisor.destroy(NAME_PREFIX + key, deadline=deadline)

    undo("domain", NAME_PREFIX + key, destroy)
    if any(leftover.what == "domain" for leftover in leftovers):
        return leftovers  # its disks and its record stay while the guest may: the next teardown needs them
    undo("network", key, lambda: _unplug(places, key, deadline))
    undo("disks", str(job.disk), lambda: _remove_tree(job.disk))
    if "domain" in noted.steps and not noted.complete:
        # A daemon that hung may take the prologue's create after our destroy. From here on it would find no disks.
        undo("domain", NAME_PREFIX + key, destroy)
        if any(leftover.what == "domain" for leftover in leftovers):
            return leftovers
    undo("lease", key, lambda: cache.release(places, key))
    if noted.steps:
        undo("history", key, lambda: _write_history(places, key, job, noted, (time.monotonic() - started) * 1e3))
    undo("cgroup", key, lambda: _remove_cgroups(key))
    undo("run directory", str(job.run), lambda: _remove_tree(job.run))
    return leftovers


def read_history(places: Places, key: str) -> dict[str, Any]:
    """What was kept of an ended job; empty where nothing was."""
    try:
        values = json.loads((places.history / f"{key}.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def lasted_s(history: Mapping[str, Any]) -> float:
    """How long a job had this node, by what was kept of it.

    >>> lasted_s({"started_at": 1000, "ended_at": 900, "lasted_s": 60.5})
    60.5

    An older version kept two moments, and the clock may have been set between them: never negative.

    >>> lasted_s({"started_at": 1000, "ended_at": 900})
    0.0
    """
    began, ended, lasted = (_seconds(history.get(name)) for name in ("started_at", "ended_at", "lasted_s"))
    return lasted or max(0.0, ended - (began or ended))


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e12 else 0.0


def keys_on(node: str, *, places: Places, hypervisor: Hypervisor, deadline: float) -> set[str]:
    """The keys of everything on this node that anybody's teardown would have to undo."""
    domains = hypervisor.names(deadline=deadline)
    names = {name.removeprefix(NAME_PREFIX) for name in domains if name.startswith(NAME_PREFIX)}
    return {name for name in names if _node_of(name) == node} | keys_in_directories(node, places=places)


def keys_in_directories(node: str, *, places: Places) -> set[str]:
    """The keys of what jobs have on this node's disks; costs no hypervisor."""
    names = {path.name for directory in (places.jobs, places.disks) for path in _entries(directory)}
    files = [*_entries(places.verdicts), *(path for path in _entries(places.networks) if path.suffix == ".json")]
    names |= {path.name.removesuffix(".json") for path in files if not path.name.startswith(".")}
    names |= {path.stem for path in _entries(places.job_locks)}  # of who was killed before there was anything else
    return {name for name in names if _node_of(name) == node}


def _node_of(key: str) -> str:
    """Of `Allocation.key`: job ids have no dot, node names may."""
    return key.partition(".")[2]


def lost_in_reboot(key: str, *, places: Places, hypervisor: Hypervisor, deadline: float) -> bool:
    """Whether a job had a guest here and a reboot took it: that empties run_dir, and the disks are still there. Every
    other way makes run's directory before the disks and removes it after them. For certain only under `locked`.
    """
    job = places.job(key)
    if job.run.exists() or not job.disk.exists():
        return False
    return not hypervisor.is_active(NAME_PREFIX + key, deadline=deadline)


def end_attach(key: str, *, deadline: float) -> None:
    """End the processes that connect the job to its guest, found by the mark in their environment, never by user."""
    while pids := attach_processes(key):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() >= deadline:
            raise NodeError(f"processes {sorted(pids)} do not end", code="process-stuck")
        time.sleep(0.01)


def attach_processes(key: str) -> set[int]:
    """Pids of live processes whose environment carries this job's mark."""
    mark = f"LRMS_VM_KEY={key}".encode()
    found = set()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            if mark in _environment(Path(entry.path)).split(b"\0") and _lives(Path(entry.path)):
                found.add(int(entry.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # ended while we looked, or a kernel thread
    return found


def _environment(process: Path) -> bytes:
    """What a process was started with. In the middle of an execve(2) it has neither words nor variables (1 look in 20
    met one that did nothing else): then it is looked at again."""
    for _ in range(EXEC_LOOKS):
        environment = (process / "environ").read_bytes()
        if environment or not _lives(process):
            return environment
        if (process / "cmdline").read_bytes():
            return (process / "environ").read_bytes()  # both are there at once
        time.sleep(0.001)
    return b""


def _lives(process: Path) -> bool:
    """Neither ended nor a kernel thread: proc(5) stat, 3 and 9."""
    fields = (process / "stat").read_bytes().rpartition(b")")[2].split()
    return fields[0] not in (b"Z", b"X") and not int(fields[6]) & PF_KTHREAD


def _try_lock(fd: int, path: Path) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except (BlockingIOError, FileNotFoundError):
        return False


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []


def _unplug(places: Places, key: str, deadline: float) -> None:
    marker = places.networks / f"{key}.json"
    marker.with_name(f".{marker.name}.new").unlink(missing_ok=True)
    if marker.exists():
        from lrms_vm import network  # few jobs have one, and no other need load it

        network.unplug(places, key, deadline=deadline)


def _remove_cgroups(key: str) -> None:
    cgroups.remove(key)
    cgroups.remove_libvirts(key)


def _remove_file(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_name(f".{path.name}.new").unlink(missing_ok=True)


def _remove_tree(path: Path) -> None:
    # rmtree works by directory descriptors on Linux: a user who swaps names in user/ for links gains nothing
    if not shutil.rmtree.avoids_symlink_attacks:
        raise NodeError("this Python cannot remove directories safely", code="python-unsafe")
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def _write_history(places: Places, key: str, job: JobPlaces, noted: record.Noted, teardown_ms: float) -> None:
    """Keep the job's phases, provenance and what its guest took; the newest `KEEP_HISTORY` of them.

    Where that cannot be written, the log has it, and nothing is left behind: the node serves on.
    """
    from lrms_vm import counters  # a prologue needs none

    begin, verified = noted.steps.get("begin", {}), noted.steps.get("verified", {})
    phases = dict(noted.phases_ms)
    for path in (job.user.ready, job.user.payload):
        phases |= _user_times_ms(path, uid=begin.get("uid", -1))
    phases["teardown"] = round(teardown_ms, 2)
    lasted = noted.lasted_s(time.monotonic())
    history: dict[str, Any] = {
        "version": record.VERSION,
        "key": key,
        **{name: begin[name] for name in ("job_id", "node", "lrms", "user", "uid", "started_at") if name in begin},
        "ended_at": time.time(),
        **({} if lasted is None else {"lasted_s": round(lasted, 3)}),
        "image": verified.get("image", {}),
        "complete": noted.complete,
        "phases_ms": phases,
        "used": cgroups.measure(key).facts,
        **{name: verified[name] for name in ("cache", "fetched_bytes") if name in verified},
        **({"prologue_s": noted.steps["done"]["seconds"]} if "seconds" in noted.steps.get("done", {}) else {}),
    }
    if history["image"]:
        words = provenance.words(key, str(begin.get("user", "")), history["image"], used=history["used"])
        journal.write("info", "ended", words)
    path = places.history / f"{key}.json"
    fresh = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh.write_text(json.dumps(history))
        fresh.replace(path)
        counters.job_ended(places, history)
        others = sorted((other for other in _entries(path.parent) if other != path), key=_changed_at)
        for old in others[: max(0, len(others) + 1 - KEEP_HISTORY)]:  # `path` is the newest, whatever the clock says
            old.unlink(missing_ok=True)
    except (LrmsVmError, OSError) as error:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        journal.say("warning", key, f"{path}: not kept: {error}")


def _changed_at(path: Path) -> float:
    """time.time() of its last change; the end of time for what another epilogue has just taken away."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return float("inf")


def _user_times_ms(path: Path, *, uid: int) -> dict[str, float]:
    """Times the user's side noted. Shown, never believed: numbers under names we know, from the user's own file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return {}  # the guest never got that far
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != uid:
            return {}
        try:
            values: Any = json.loads(file.read(MAX_USER_FILE_BYTES))
        except (ValueError, RecursionError):
            return {}
    if not isinstance(values, dict):
        return {}
    return {
        name: float(values[name])
        for name in ("guest_up", "shares", "payload")
        if isinstance(values.get(name), int | float) and 0 <= values[name] < 1e12
    }
