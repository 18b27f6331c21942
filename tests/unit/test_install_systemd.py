"""What `lrms-vm install` and its undo say to systemctl, against a systemd that knows only what was ever loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from lrms_vm import install_systemd
from lrms_vm.errors import NodeError
from lrms_vm.install_systemd import METRICS, TIMERS, SystemdTargets


class Systemd:
    """Exit 5 for stopping what is not loaded; a running timer whose file is gone fails (both seen with 252)."""

    def __init__(self, active: Sequence[str], *, gone: Sequence[str] = ()) -> None:
        self.active = set(active)
        self.gone = set(gone)  # whose files were removed
        self.failed: set[str] = set()

    def run(self, argv: Sequence[str], **_: object) -> bytes:
        words = list(argv[1:])
        if words[0] == "list-units":
            return "".join(f"{name} loaded active waiting A timer\n" for name in sorted(self.active)).encode()
        if words[0] == "start":
            self.active.add(words[1])
        elif words[0] == "daemon-reload":
            self.failed |= self.active & self.gone
        elif words[0] == "stop":
            if words[1] not in self.active:
                raise NodeError(f"exit 5: Failed to stop {words[1]}: Unit not loaded.", code="command-failed")
            self.active.remove(words[1])
        return b""


@pytest.fixture
def targets(tmp_path: Path) -> SystemdTargets:
    (tmp_path / "etc/systemd/system/timers.target.wants").mkdir(parents=True)
    return SystemdTargets(tmp_path / "etc", tmp_path / "lib", tmp_path / "exporter")


def settled(targets: SystemdTargets, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(install_systemd.command, "run", systemd.run)
    return install_systemd.settle(targets)


def test_enabled_timers_are_started_and_nothing_is_left_to_do(
    targets: SystemdTargets, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in TIMERS:
        targets.unit(f"timers.target.wants/{name}").symlink_to(targets.unit(name))
    systemd = Systemd([METRICS])  # of a node_exporter that is gone
    assert settled(targets, systemd, monkeypatch) == []
    assert systemd.active == set(TIMERS)


def test_an_undo_stops_what_runs_and_does_not_ask_for_what_was_never_loaded(
    targets: SystemdTargets, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd = Systemd(TIMERS, gone=TIMERS)
    assert settled(targets, systemd, monkeypatch) == []
    assert systemd.active == systemd.failed == set()


def test_what_systemctl_refuses_is_to_be_done_by_hand(targets: SystemdTargets, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(argv: Sequence[str], **_: object) -> bytes:
        raise NodeError("no answer", code="command-timeout")

    monkeypatch.setattr(install_systemd.command, "run", refuse)
    said = install_systemd.settle(targets)
    assert "by hand: systemctl daemon-reload (no answer)" in said
