"""Every stable code of the package, with what it is raised as and what it says, read from the source.

A code is what an error is given as `code=`. Where that is not a literal, the module has a table: there every literal
of a code's form is one, but for `NOT_CODES`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lrms_vm import errors

PACKAGE = Path(errors.__file__).parent
KINDS: dict[str, type[errors.LrmsVmError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.LrmsVmError)
}
OTHER_KINDS = {"sealed_json.damaged": "SiteError", "_DefectError": "RequestError", "damaged": "SiteError"}
TABLES = {"fetch_http", "attach", "trust_state"}  # codes that go through another module's hands
NOT_CODES = {"qemu-argv", "xen-xl", "utf-8"}
_FORM = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+", re.ASCII)


@dataclass
class Code:
    """What the source says of one."""

    kinds: set[str] = field(default_factory=set)
    messages: set[str] = field(default_factory=set)  # with `…` for what is filled in


def collect(package: Path = PACKAGE) -> dict[str, Code]:
    """By code."""
    found: dict[str, Code] = {}
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text(), filename=str(path))
        has_table = path.stem in TABLES
        for call, value in _given(tree):
            kind = ast.unparse(call.func)
            literals = [node.value for node in ast.walk(value) if isinstance(node, ast.Constant) and _is_code(node)]
            if isinstance(value, ast.Constant) and value.value:
                literals = [value.value]
            raised = OTHER_KINDS.get(kind, kind)
            has_table |= not literals and raised in KINDS
            for code in map(str, literals):
                one = found.setdefault(code, Code())
                if raised in KINDS:
                    one.kinds.add(raised)
                    one.messages |= {_said(call)} - {""}
        if has_table:
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and _is_code(node) and node.value not in NOT_CODES:
                    found.setdefault(str(node.value), Code())
    return found


def _given(tree: ast.AST) -> Iterator[tuple[ast.Call, ast.expr]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg == "code":
                    yield node, keyword.value


def _is_code(node: ast.Constant) -> bool:
    return isinstance(node.value, str) and _FORM.fullmatch(node.value) is not None


def _said(call: ast.Call) -> str:
    """The message as far as it is written there, and the hint."""
    hint = next((_text(keyword.value) for keyword in call.keywords if keyword.arg == "hint"), "")
    message = _text(call.args[0]) if call.args else ""
    bare = message.replace("…", "").strip(" :()")
    return f"{message} ({hint})" if bare and hint.strip("…") else message if bare else ""


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return "…"
