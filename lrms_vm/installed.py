"""What an installation changes, noted before it is changed, so that its undo leaves exactly what was there before.

    <prefix>/installed/<lrms>.json     what was not there (files, directories), and of what was there where its copy is
    <prefix>/installed/<lrms>.<n>      the copies

The note is made once and grows: a second installation adds what is new in it. `prefix` itself is noted like the rest:
where it is not there yet it comes with its note inside, and goes with it, by one rename each.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Container, Sequence
from dataclasses import asdict, field
from pathlib import Path

from lrms_vm.errors import ConfigError, NodeError
from lrms_vm.values import dataclass

VERSION = 1
MAX_BYTES = 1 << 20


@dataclass
class Note:
    """What was there before. Paths are texts: they are JSON."""

    was: dict[str, str] = field(default_factory=dict)  # path, in the order of writing: where its copy is, "" for none
    directories: list[str] = field(default_factory=list)  # were not there, the outer ones first


def at(prefix: Path, lrms: str) -> Path:
    """Where the note of one batch system's installation is."""
    return prefix / "installed" / f"{lrms}.json"


def read(note: Path) -> Note | None:
    """None where nothing was noted. Raises `ConfigError` for a note that this version cannot follow."""
    try:
        values = json.loads(note.read_bytes()[:MAX_BYTES])
        version = values.pop("version")
        if version != VERSION:
            raise ValueError(f"version {version!r}, this lrms_vm knows {VERSION}")
        return Note(**values)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NodeError(f"{note}: cannot read: {error.strerror}", code="install-failed") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{note}: not a note of an installation by this version: {error}",
            hint="undo it with the version that made it",
            code="installed-unreadable",
        ) from error


def prepare(note: Path, paths: Sequence[Path], *, same: Sequence[Path] = ()) -> None:
    """Note what is where the installation will write; call it before. Raises `NodeError`, `ConfigError`.

    `same`: what it has no need to write. Where another batch system's installation made that, it is ours as well.
    """
    known = read(note) or Note()
    before = asdict(known)
    for path in (note, *paths, *same):
        for other in _others(note):
            _share(known, other, path)
    for path in (note, *paths):
        known.directories += [where for where in _missing_parents(path) if where not in known.directories]
    try:
        if not note.parent.is_dir():
            _begin(note)
        for name in map(str, paths):
            if name in known.was:
                continue
            known.was[name] = ""
            if os.path.lexists(name):
                known.was[name] = str(note.with_name(f"{note.stem}.{len(known.was)}"))
                _copy(name, known.was[name])
        if asdict(known) != before:
            _write(note, known)
    except OSError as error:
        raise NodeError(f"{error.filename or note}: cannot note: {error.strerror}", code="install-failed") from error


def undo(note: Path, *, leave: Container[Path] = ()) -> tuple[list[Path], list[Path]]:
    """Put everything back as it was, the last first; then forget. Returns what was restored and what was removed.

    Without a note nothing was changed yet, or nothing is any more; only what was being noted goes.
    What another installation needs stays. `leave`: what somebody else has put back. Raises `NodeError`, `ConfigError`.
    """
    known = read(note) or Note()
    others = _others(note)
    restored, removed = [], []
    for name, copy in reversed(known.was.items()):
        path = Path(name)
        if path in leave or any(name in other.was for other in others):
            continue
        fresh = path.with_name(f".{path.name}.new")
        try:
            fresh.unlink(missing_ok=True)  # of an installation that was killed
            if copy:
                _copy(copy, str(fresh))
                fresh.replace(path)
                restored.append(path)
            else:
                path.unlink()
                removed.append(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise NodeError(f"{path}: cannot undo: {error.strerror}", code="install-failed") from error
    made = {*known.was.values(), *map(str, note.parent.glob(f"*{note.stem}.*"))}  # copies, drafts
    for spare in made - {"", str(note)} - {copy for other in others for copy in other.was.values()}:
        Path(spare).unlink(missing_ok=True)
    for directory in reversed(known.directories):  # as long as the note is there to tell
        with contextlib.suppress(OSError):  # somebody else's things are in it: it stays
            os.rmdir(directory)
    _forget(note, known)
    return restored, removed


def _begin(note: Path) -> None:
    """The note's directory, with a first note of it and of those above that were missing. Killed before its rename, it
    leaves a draft beside the outermost, which `undo` knows by name."""
    _remove_drafts(note)
    missing = _missing_parents(note)
    outermost = Path(missing[0])
    draft = _draft(outermost)
    inner = draft / note.relative_to(outermost)
    inner.parent.mkdir(mode=0o755, parents=True)
    _write(inner, Note(directories=missing))
    draft.rename(outermost)


def _forget(note: Path, known: Note) -> None:
    """The note goes, and with it those of its directories that were not there before and hold nothing else."""
    alone = note
    for directory in (
        note.parent,
        *(Path(one) for one in reversed(known.directories) if Path(one) in note.parents[1:]),
    ):
        if not directory.is_dir() or [path.name for path in directory.iterdir()] != [alone.name]:
            break
        alone = directory
    if alone != note:
        draft = _draft(alone)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(draft)
        alone.rename(draft)
    note.unlink(missing_ok=True)
    _remove_drafts(note)


def _draft(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.lrms_vm-new")


def _remove_drafts(note: Path) -> None:
    for directory in note.parents[:-1]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            shutil.rmtree(_draft(directory))


def _others(note: Path) -> list[Note]:
    found = (read(path) for path in sorted(note.parent.glob("*.json")) if path != note)
    return [one for one in found if one is not None]


def _share(known: Note, other: Note, path: Path) -> None:
    """Take over what another installation noted of a path and of what is above it."""
    if str(path) in other.was:
        known.was.setdefault(str(path), other.was[str(path)])
    above = [where for where in other.directories if Path(where) in path.parents and where not in known.directories]
    known.directories = sorted([*known.directories, *above], key=len)


def _missing_parents(path: Path) -> list[str]:
    return [str(where) for where in reversed(path.parents) if not where.exists()]


def _copy(path: str, copy: str) -> None:
    """Content, owner, mode and times; of a link the link."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(copy)
    shutil.copy2(path, copy, follow_symlinks=False)
    state = os.lstat(path)
    os.chown(copy, state.st_uid, state.st_gid, follow_symlinks=False)


def _write(note: Path, known: Note) -> None:
    fresh = note.with_name(f".{note.name}.new")
    with open(fresh, "w") as file:
        json.dump({"version": VERSION, **asdict(known)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(note)
