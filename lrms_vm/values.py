"""Frozen dataclasses that cost a hook little.

The standard library compiles six methods for each frozen dataclass when its module is loaded: a third of the time that
a prologue spends on loading. Here only `__init__` is compiled; the other five look at the fields when they are called,
and are the same functions for all.
"""

from __future__ import annotations

import dataclasses

TYPE_CHECKING = False  # as typing's, without loading it
if TYPE_CHECKING:
    from dataclasses import dataclass

__all__ = ["dataclass"]


class _Frozen:
    """The five methods, as functions to be lent."""

    __dataclass_fields__: dict[str, dataclasses.Field[object]]

    def __repr__(self) -> str:
        said = (f"{field.name}={getattr(self, field.name)!r}" for field in _fields(self) if field.repr)
        return f"{type(self).__qualname__}({', '.join(said)})"

    def __eq__(self, other: object) -> bool:
        return _compared(self) == _compared(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(_compared(self))

    def __setattr__(self, name: str, value: object) -> None:
        """Once: that is `__init__`."""
        if name in self.__dict__ or name not in self.__dataclass_fields__:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        self.__dict__[name] = value

    def __delattr__(self, name: str) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


def _compared(value: object) -> tuple[object, ...]:
    return tuple([getattr(value, field.name) for field in _fields(value) if field.compare])


def _fields(value: object) -> tuple[dataclasses.Field[object], ...]:
    return dataclasses.fields(value)  # type: ignore[arg-type]


_LENT = ("__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__")

if not TYPE_CHECKING:

    def dataclass(cls=None, *, frozen=False):
        """As `dataclasses.dataclass`, which has more options.

        >>> @dataclass(frozen=True)
        ... class Point:
        ...     x: int
        ...     y: int = 0
        >>> Point(1), Point(1) == Point(1, 0), Point(1) == Point(2)
        (Point(x=1, y=0), True, False)
        """
        if cls is None:
            return lambda cls: dataclass(cls, frozen=frozen)
        if not frozen:
            return dataclasses.dataclass(cls)
        if not cls.__doc__:
            cls.__doc__ = cls.__name__  # else it is made of __init__'s signature, which takes as long as all the rest
        for name in _LENT:
            if name not in cls.__dict__:
                setattr(cls, name, _Frozen.__dict__[name])
        return dataclasses.dataclass(cls, repr=False, eq=False)
