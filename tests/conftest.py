"""Two rules for all tests: in CI nothing is skipped, and unit tests reach nothing outside their own process."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
# Kept to their own process and to files below tmp_path; programs belong in contract/ and integration/.
PURE = tuple(TESTS / name for name in ("unit", "property", "golden"))
# sys.addaudithook events (docs.python.org, "Audit events table") of starting a program or talking to the network.
_FORBIDDEN = """
    subprocess.Popen os.system os.exec os.posix_spawn os.spawn os.fork os.forkpty
    socket.connect socket.bind socket.getaddrinfo
"""
FORBIDDEN = frozenset(_FORBIDDEN.split())


class StartedAProgram(AssertionError):
    """A unit test reached out of its own process."""


class _Guard:
    """An audit hook cannot be removed, but it can look away."""

    on = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event in FORBIDDEN:
            raise StartedAProgram(f"{event}{arguments!r:.200}: not in a unit test; see tests/conftest.py")


_guard = _Guard()
sys.addaudithook(_guard)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    _guard.on = any(item.path.is_relative_to(directory) for directory in PURE)
    try:
        return (yield)
    finally:
        _guard.on = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and _in_ci():
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: skipped, and in CI nothing may be: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped and _in_ci():
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid}: skipped, and in CI nothing may be: {report.longrepr}"
    return report


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")
