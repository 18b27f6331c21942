"""One answer of `lrms-vm doctor`."""

from __future__ import annotations

from lrms_vm.values import dataclass


@dataclass(frozen=True)
class Finding:
    """`remedy` is what to do, empty where nothing is wrong."""

    check: str
    ok: bool
    found: str
    remedy: str = ""


def answer(check: str, ok: bool, found: str, remedy: str) -> Finding:
    return Finding(check, ok, found, "" if ok else remedy)
