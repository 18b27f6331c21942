"""Two ordinary users without a password, for jobs. Made where they are missing, removed only if we made them."""

from __future__ import annotations

import grp
import pwd
from dataclasses import dataclass

from demo.layout import GROUP, STRANGER, USER, Layout
from demo.programs import run


@dataclass(frozen=True)
class User:
    name: str
    uid: int
    gid: int
    home: str


def find(name: str) -> User:
    """Raises `KeyError` for a user this machine does not know."""
    entry = pwd.getpwnam(name)
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir)


def make(layout: Layout) -> None:
    """Make what is missing, and write down what that was."""
    made = layout.etc / "made-users"
    layout.home(USER).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not _known_group(GROUP):
        run(["groupadd", "--system", GROUP])
        _note(layout, f"group {GROUP}")
    for name, groups in ((USER, ["--groups", GROUP]), (STRANGER, [])):
        try:
            find(name)
        except KeyError:
            home = ["--no-create-home", "--home-dir", str(layout.home(name)), "--shell", "/bin/sh"]
            run(["useradd", "--system", "--user-group", *groups, *home, name])
            _note(layout, f"user {name}")
        user = find(name)
        if not layout.home(name).exists():
            layout.home(name).mkdir(mode=0o755)
            run(["chown", f"{user.uid}:{user.gid}", layout.home(name)])
    made.touch()


def remove(layout: Layout) -> None:
    """Remove the accounts this demo made; their files go with the demo's directory."""
    try:
        lines = (layout.etc / "made-users").read_text().splitlines()
    except FileNotFoundError:
        return
    for kind, _, name in reversed([line.partition(" ") for line in lines]):
        if kind == "user" and _known_user(name):
            run(["userdel", name])
        elif kind == "group" and _known_group(name):
            run(["groupdel", name])


def _note(layout: Layout, what: str) -> None:
    with (layout.etc / "made-users").open("a") as file:
        file.write(what + "\n")


def _known_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _known_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True
