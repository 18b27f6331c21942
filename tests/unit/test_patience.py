"""How long one run of a hook waits for the batch system: the seconds that its questions share."""

from __future__ import annotations

import pytest

from lrms_vm.lrms.base import LONGEST_QUESTION_S, PATIENCE_S, Call, Patience


def test_one_question_never_gets_all_of_it() -> None:
    patience = Patience()
    assert patience.next_s == LONGEST_QUESTION_S < PATIENCE_S
    patience.spend(LONGEST_QUESTION_S)
    assert patience.next_s == pytest.approx(PATIENCE_S - LONGEST_QUESTION_S)


def test_a_hundred_questions_that_nobody_answers_take_no_longer_than_all_of_it() -> None:
    patience, waited_s = Patience(), 0.0
    for _ in range(100):
        waited_s += patience.next_s
        patience.spend(patience.next_s)
    assert waited_s == pytest.approx(PATIENCE_S) == pytest.approx(patience.spent_s)
    assert patience.next_s == 0


def test_answers_that_come_quickly_use_up_little() -> None:
    patience = Patience()
    for _ in range(1000):
        patience.spend(0.01)
    assert patience.next_s == LONGEST_QUESTION_S


@pytest.mark.parametrize(
    ("limit_s", "next_s"), [(600, LONGEST_QUESTION_S), (12, 12), (1, 1), (0.9, 0), (0, 0), (-3, 0)]
)
def test_a_hook_that_may_take_less_has_less_patience(limit_s: float, next_s: float) -> None:
    patience = Patience()
    patience.at_most(limit_s)
    assert patience.next_s == next_s


def test_what_is_too_short_for_an_answer_is_not_asked() -> None:
    patience = Patience(21)
    patience.spend(20.5)
    assert patience.next_s == 0


def test_each_run_has_its_own_and_calls_are_alike_without_it() -> None:
    spent, fresh = Call(), Call()
    spent.patience.spend(40)
    assert fresh.patience.next_s == LONGEST_QUESTION_S
    assert spent == fresh
