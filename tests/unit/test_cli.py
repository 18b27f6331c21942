from __future__ import annotations

import pytest

from lrms_vm.cli import VERBS, _config_first, _verb_of, main


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (["status"], ["status"]),
        (["status", "--config", "f", "7"], ["--config", "f", "status", "7"]),
        (["--config", "f", "status"], ["--config", "f", "status"]),
        (["image", "list", "--config=f"], ["--config=f", "image", "list"]),
        (["run", "--", "prog", "--config", "theirs"], ["run", "--", "prog", "--config", "theirs"]),
        (
            ["run", "--config", "f", "--", "prog", "--config", "theirs"],
            ["--config", "f", "run", "--", "prog", "--config", "theirs"],
        ),
        (["status", "--config"], ["status", "--config"]),
    ],
)
def test_config_may_stand_behind_the_verb_but_never_comes_from_the_users_command(
    typed: list[str], read: list[str]
) -> None:
    assert _config_first(typed) == read


def test_the_verb_is_found_behind_options() -> None:
    assert _verb_of(["--config", "status", "doctor"]) == "doctor"
    assert _verb_of(["--help"]) is None


@pytest.mark.parametrize("words", [[], ["nope"], ["image"], ["image", "nope"], ["status", "--nope"]])
def test_bad_usage_ends_with_64(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(words)
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 64
    assert "lrms-vm" in capsys.readouterr().err


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help_with_an_example_or_verbs_of_its_own(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "example" in said or "VERB" in said
