"""One line per event, whatever the texts say."""

from __future__ import annotations

import syslog

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrms_vm import journal, logfmt

FORGED = "x\nlrms_vm[1]: level=info event=verdict job=slurm-1.n verdict=accepted"


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(syslog, "syslog", lambda _, line: lines.append(line))
    return lines


def test_a_jobs_line_has_its_key_as_a_word(log: list[str]) -> None:
    journal.say("warning", "torque-12.server.example.n1", "not requeued")
    assert log == ['level=warning event=job job=torque-12.server.example.n1 text="not requeued"']


def test_what_is_about_no_job_says_what_it_is_about(log: list[str]) -> None:
    journal.say("info", "list atlas", "removed")
    journal.say("info", "health", "drained")
    assert log == ["level=info event=list about=atlas text=removed", "level=info event=health text=drained"]


@pytest.mark.parametrize("text", [FORGED, 'a" job=slurm-1.n verdict="accepted', "\0\x1b[2J", "a\\", "\u2028\u202e", ""])
def test_no_text_forges_a_line_or_a_word(text: str, log: list[str]) -> None:
    journal.say("error", "slurm-2.n", text)
    journal.say("error", f"list {text}", "x")
    journal.say("error", text, "x")
    journal.write("error", "failed", {"job": "slurm-2.n", "image": text, "code": "image-unknown"})
    assert all(line.isascii() and line.isprintable() for line in log)
    assert logfmt.parse(log[0]) == {"level": "error", "event": "job", "job": "slurm-2.n", "text": text}
    assert [list(logfmt.parse(line)).count("verdict") for line in log] == [0, 0, 0, 0]
    assert logfmt.parse(log[3])["image"] == text


@given(st.dictionaries(st.sampled_from(["job", "user", "image", "text"]), st.text(max_size=150)))
def test_every_line_is_read_back_as_it_was_meant(words: dict[str, str]) -> None:
    line = logfmt.line(words)
    assert line.isascii() and line.isprintable()
    assert logfmt.parse(line) == words


@given(st.text(min_size=300, max_size=4000))
def test_a_long_value_is_cut_inside_its_quotes(text: str) -> None:
    line = logfmt.line({"text": text, "code": "x"})
    assert len(line) <= logfmt.MAX_VALUE_LETTERS + len("text= code=x")
    read = logfmt.parse(line)
    assert read["code"] == "x" and text.startswith(read["text"].removesuffix("..."))


@pytest.mark.parametrize("line", ["a", "a=", 'a="', "a=1  b=2", "a=1 a=2", 'a=b"c'])
def test_what_is_none_of_ours_is_not_read(line: str) -> None:
    with pytest.raises(ValueError, match="not a line of ours"):
        logfmt.parse(line)
