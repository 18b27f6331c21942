"""What is generated of the documentation is there, whole, and as the source says."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest

from lrms_vm import cli
from lrms_vm.config import Config, Kernel, Subscription
from lrms_vm.image import ImageEntry
from manual import man, roff, troubleshooting
from manual.codes import KINDS, collect

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text()
ENTRY = re.compile(
    r"^\*\*`([a-z0-9-]+)`\*\* \(([^)]+)\): (.+?)\. \*(User|Admin|Builder|Site|Whoever[^:]*):\* (.+)$", re.M
)


def shown(page: str) -> str:
    """What a reader of the manual page sees of roff's text."""
    page = page.replace("\\fB", "").replace("\\fR", "")
    return page.replace("\\-", "-").replace("\\(ga", "`").replace("\\e", "\\").replace("\\&", "")


def test_the_troubleshooting_page_is_what_the_source_says() -> None:
    assert troubleshooting.page() == PAGE, "run `make pages`; a new code wants its line in manual/codes.txt first"


def test_it_has_every_code_and_no_other() -> None:
    entries = [found[1] for found in ENTRY.finditer(PAGE)]
    assert sorted(entries) == sorted(set(entries)), "one of them twice"
    assert set(entries) == set(collect())
    assert PAGE.count("\n**`") == len(entries), "an entry of another form"


def test_what_people_wrote_is_about_codes_that_are_there() -> None:
    written = {code for codes in troubleshooting._own_words()[0].values() for code in codes}
    assert written - set(collect()) == set(), "manual/codes.txt has codes that nothing raises any more"


def test_each_entry_has_blame_exit_code_cause_and_remedy() -> None:
    blames = {(kind.blame, str(kind.exit_code)) for kind in KINDS.values()}
    for found in ENTRY.finditer(PAGE):
        code, whose, cause, _, remedy = found.groups()
        assert {tuple(one.rsplit(" ", 1)) for one in whose.split(", ")} <= blames, code
        assert cause.strip() and remedy.strip(". "), code


def test_a_code_is_found_wherever_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text('raise NodeError(f"{path}: gone", hint="look", code="a-b")\n')
    (tmp_path / "two.py").write_text('x = {"c-d": 1}\ny = kind("text", code=x)\nraise SiteError("", code=y)\n')
    (tmp_path / "three.py").write_text('z = {"not-one": 1}\nraise GuestLost("", code="e-f" if z else "g-h")\n')
    found = collect(tmp_path)
    assert set(found) == {"a-b", "c-d", "e-f", "g-h"}
    assert (found["a-b"].kinds, found["a-b"].messages) == ({"NodeError"}, {"…: gone (look)"})


def test_the_command_s_page_has_every_verb_and_option() -> None:
    page = shown(man.command())
    for verb in cli.VERBS:
        parser = man._child(cli._parser(verb), verb)
        inner = man._children(parser)
        for name, one in inner.items() if inner else [("", parser)]:
            section = page.partition(f".SS {f'{verb} {name}'.strip()}\n")[2].partition("\n.S")[0]
            assert section, f"{verb} {name}"
            options = {word for action in one._actions for word in action.option_strings} - {"-h", "--help"}
            assert {word for word in options if word not in section} == set(), f"{verb} {name}"


def test_the_settings_page_has_every_key_and_says_something_of_it() -> None:
    page = shown(man.settings())
    for kind in (Config, Kernel, ImageEntry, Subscription):
        for one in fields(kind):
            if one.name not in ("source", "name", "listed"):
                assert one.name in page, f"{kind.__name__}.{one.name}"
    silent = set(re.findall(r"\.TP\n(\w+)(?: = [^\n]*)?\n\n", page))
    assert silent == set(), "say in examples/lrms_vm.toml what they are"


def test_the_policy_s_page_has_every_key() -> None:
    source = (ROOT / "lrms_vm/trust/policy.py").read_text()
    keys = {
        node.args[0].value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "table"
        and node.func.attr != "problem"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }
    assert len(keys) > 40
    page = shown(man.policy())
    assert {str(key) for key in keys if not re.search(rf"\b{key}\b", page)} == set()


@pytest.mark.parametrize("text", [".TH forged", "'x", "a\\fBb", "--long", "`q`", "a\n.b"])
def test_no_text_is_a_request_of_roff(text: str) -> None:
    written = roff.escaped(text)
    assert not any(line.startswith((".", "'")) for line in written.split("\n"))
    assert shown(written) == text
