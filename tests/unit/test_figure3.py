"""figure3's pure parts: what is booted, what is run, and how what the machines said becomes a table."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from figure3 import archive, boots, payloads, results
from figure3.boots import BOOTS, Files
from figure3.payloads import PAYLOADS, ROWS, TURNS
from figure3.results import Measured, ResultError, Run

FILES = Files(Path("/f/vmlinuz"), Path("/f/xen.elf"), Path("/f/initrd"), held_mib=700)
FINGERPRINT = "0x1.ac96ff0e863cbp+10"


def _argv(name: str) -> list[str]:
    return boots.qemu_argv(BOOTS[name], FILES, console=Path("/c"))


def _line(payload: str, turn: int, ns: int = 1000, *, ticks: int | None = None, status: int = 0) -> str:
    said = {"payload": payload, "turn": turn, "elapsed_ns": ns, "ticks": ns if ticks is None else ticks}
    return "figure3: " + json.dumps({**said, "user_us": 1, "system_us": 0, "status": status})


def _console(ns: int = 1000, **of_jets: int) -> str:
    lines = [_line(p.name, turn, ns) for turn in range(1, TURNS + 1) for p in PAYLOADS]
    lines[0] = _line("jets", 1, ns, **of_jets)
    return "\r\n".join(["SeaBIOS", *lines, f"figure3: jets {FINGERPRINT}", "figure3: end of native"])


def _run(boot: str, ns: int) -> Run:
    return replace(results.parse(boot, _console(ns)), boot=boot)


def test_the_boots_differ_only_in_what_is_booted() -> None:
    def machine(name: str) -> list[str]:
        argv = _argv(name)
        return argv[3 : argv.index("-kernel")]

    assert machine("native") == machine("dom0") == machine("xen")


def test_nothing_in_the_machine_takes_its_time_from_the_host() -> None:
    argv = " ".join(_argv("xen"))
    for wanted in ("thread=single", "sleep=off", "clock=vm", "-nodefaults", "-smp 1"):
        assert wanted in argv
    for device in ("-drive", "-netdev", "-device", "rng"):
        assert device not in argv


def test_every_linux_has_the_same_mitigations_and_layout() -> None:
    for name in BOOTS:
        assert boots.LINUX in " ".join(_argv(name))
    assert boots.LINUX in boots.guest_cfg()


def test_every_payload_belongs_to_a_row_and_needs_no_quoting() -> None:
    assert {payload.row for payload in PAYLOADS} == set(ROWS)
    for word in (word for payload in PAYLOADS for word in (payload.name, *payload.argv)):
        assert word.replace("/", "").replace(".", "").replace("-", "").isalnum()


def test_the_generated_file_is_the_same_every_time() -> None:
    assert payloads.generated_c() == payloads.generated_c()
    assert payloads.generated_c().count("double f") == payloads.FUNCTIONS


def test_an_archive_is_read_back_by_its_own_headers(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"x" * 4099)
    out = io.BytesIO()
    archive.write(out, {"init": (archive.PROGRAM, b"#!/bin/sh\n"), "root.img": (archive.DATA, disk)})
    data, found, at = out.getvalue(), {}, 0
    while at < len(data):
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        start = -(-(at + 110 + fields[11]) // 4) * 4
        found[name] = data[start : start + fields[6]]
        at = -(-(start + fields[6]) // 4) * 4
    assert found == {"init": b"#!/bin/sh\n", "root.img": b"x" * 4099, "TRAILER!!!": b""}


def test_a_machines_console_becomes_a_run() -> None:
    run = results.parse("native", _console())
    assert len(run.measured) == len(PAYLOADS) * TURNS
    assert run.fingerprint == FINGERPRINT
    assert run.of("jets") == Measured("jets", TURNS, 1000, 1000, 1, 0)
    assert results.from_json(json.loads(json.dumps(results.to_json(run)))) == run


@pytest.mark.parametrize(
    ("console", "why"),
    [
        ("", "missing: jets 1"),
        (_console().replace(_line("fork", TURNS, 1000), ""), f"missing: fork {TURNS}"),
        (_console(status=139), "jets ended with 139"),
        (_console(ns=1_000_000, ticks=1_010_000), "not the machine's time"),
        (_console() + "\nfigure3: failed: xl create", "failed: xl create"),
        (_console().replace(FINGERPRINT, ""), "fingerprint"),
        (_console().replace('"status"', '"state"'), "cannot read"),
        (_console() + "\nfigure3: jets 0x1.0p+1", "one fingerprint"),
    ],
    ids=["nothing", "cut", "failed-payload", "clock", "failed-step", "no-jets", "garbled", "two-jets"],
)
def test_a_machine_that_did_not_do_it_is_not_a_result(console: str, why: str) -> None:
    with pytest.raises(ResultError, match=why):
        results.parse("native", console)


def test_relative_performance_is_the_talks_and_the_spread_is_over_boots() -> None:
    runs = [_run("native", 1000), _run("native", 1000), _run("xen", 2000), _run("xen", 2100)]
    cells = {(cell.name, cell.boot): cell for cell in results.cells(runs)}
    assert cells["jets", "native"].relative == 1.0
    assert cells["jets", "native"].spread == 0.0
    assert cells["jets", "xen"].relative == 0.5
    assert cells["jets", "xen"].spread == pytest.approx(0.05)
    assert cells["io", "native"].time_ns == 2000  # of write and read
    assert "0.500" in results.table(list(cells.values()), ["native", "xen"])


def test_jets_that_differ_make_no_table() -> None:
    runs = [_run("native", 1000), replace(_run("xen", 2000), fingerprint="0x1.0p+1")]
    with pytest.raises(ResultError, match="not the same everywhere"):
        results.cells(runs)
