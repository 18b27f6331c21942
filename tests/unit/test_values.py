"""lrms_vm.values.dataclass against the standard library's, on the same classes."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, field, replace
from typing import Any

import pytest

from lrms_vm import values


def make(decorator: Callable[..., Any]) -> tuple[type[Any], type[Any]]:
    @decorator(frozen=True)
    class Point:
        x: int
        seen: list[int] = field(default_factory=list, compare=False, repr=False)
        name: str = "p"

        def __post_init__(self) -> None:
            if self.x < 0:
                raise ValueError("negative")

    @decorator(frozen=True)
    class Named(Point):
        """With a text of its own."""

        label: str = ""

        def __repr__(self) -> str:
            return f"<{self.label}>"

    return Point, Named


OURS, THEIRS = make(values.dataclass), make(dataclasses.dataclass)
Kept, _ = OURS
Kept.__qualname__ = "Kept"  # pickle finds a class by its name


@pytest.mark.parametrize("one, other", [((1,), (1, [9])), ((1,), (2,)), ((1, [], "a"), (1, [], "b")), ((1,), (1,))])
def test_values_compare_hash_and_show_as_the_standard_library_s_do(
    one: tuple[Any, ...], other: tuple[Any, ...]
) -> None:
    for ours, theirs in zip(OURS, THEIRS, strict=True):
        assert (ours(*one) == ours(*other)) is (theirs(*one) == theirs(*other))
        assert (hash(ours(*one)) == hash(ours(*other))) is (hash(theirs(*one)) == hash(theirs(*other)))
        assert repr(ours(*one)).replace("Kept", "make.<locals>.Point") == repr(theirs(*one))


def test_values_of_different_classes_are_different() -> None:
    point, named = OURS
    assert point(1) != named(1) and named(1) != point(1) and point(1) != (1, "p")


def test_what_is_made_stays_as_it_is() -> None:
    for kind in OURS:
        made = kind(1)
        for name in ("x", "name", "new"):
            with pytest.raises(FrozenInstanceError):
                setattr(made, name, 2)
            with pytest.raises(FrozenInstanceError):
                delattr(made, name)
        assert (made.x, made.name, hasattr(made, "new")) == (1, "p", False)


def test_replace_copy_and_pickle_make_equal_values() -> None:
    made = Kept(1, [2], "n")
    assert replace(made, x=3) == Kept(3, [2], "n") and replace(made, x=3).seen is made.seen
    assert copy.copy(made) == copy.deepcopy(made) == pickle.loads(pickle.dumps(made)) == made
    assert dataclasses.asdict(made) == {"x": 1, "seen": [2], "name": "n"}
    match made:
        case Kept(1, _, name):
            assert name == "n"
        case _:
            pytest.fail("not matched by position")


def test_arguments_are_checked_as_ever() -> None:
    for count in (0, 4):
        with pytest.raises(TypeError):
            Kept(*range(count))
    with pytest.raises(ValueError, match="negative"):
        Kept(-1)
    assert Kept(1).seen is not Kept(1).seen


def test_one_that_is_not_frozen_is_the_standard_library_s() -> None:
    @values.dataclass
    class Counter:
        count: int = 0

    made = Counter()
    made.count += 1
    assert made == Counter(1) and Counter.__hash__ is None
