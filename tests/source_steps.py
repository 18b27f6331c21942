"""The named steps of prologue and teardown, read from the source: what the crash tests must cover."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from lrms_vm import record

SOURCE = Path(record.__file__).parent


def noted() -> set[str]:
    """The first argument of every `<record>.note(...)` below lrms_vm/."""
    return {
        _literal(call, path)
        for path in SOURCE.rglob("*.py")
        for call in _calls(path)
        if isinstance(call.func, ast.Attribute) and call.func.attr == "note"
    }


def undone() -> list[str]:
    """The first argument of every `undo(...)` of teardown.py, in its order; what is undone twice is named once."""
    path = SOURCE / "teardown.py"
    calls = [call for call in _calls(path) if isinstance(call.func, ast.Name) and call.func.id == "undo"]
    return list(dict.fromkeys(_literal(call, path) for call in sorted(calls, key=lambda call: call.lineno)))


def _calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def _literal(call: ast.Call, path: Path) -> str:
    first = call.args[0] if call.args else None
    assert isinstance(first, ast.Constant) and isinstance(first.value, str), (
        f"{path}:{call.lineno}: a step's name must be written out, so that the crash matrix can know it"
    )
    return first.value
