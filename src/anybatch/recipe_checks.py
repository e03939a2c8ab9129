"""Bounds of settings, checked where a value is written."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from typing import Any, Literal

from anybatch.durations import Duration
from anybatch.errors import InputError

__all__ = [
    "require",
    "require_choices",
    "require_decay_rate",
    "require_not_negative",
    "require_positive",
]


def require(name: str, value: float, rule: str, holds: bool) -> None:
    """Refuse a value that is not finite or breaks its rule.

    Args:
        name: of the field.
        value: as given.
        rule: "must be > 0", say.
        holds: whether the rule is kept.

    Raises:
        InputError: it is not.
    """
    if not (math.isfinite(value) and holds):
        raise InputError(name, rule, value)


def require_choices(settings: Any) -> None:
    """Refuse a field whose value is of another type than stated, or none of its choices.

    Args:
        settings: of a dataclass; without this, a mistyped choice would act as another one, and
            "5 epochs" for a Duration would fail much later.

    Raises:
        InputError: the first such field.
    """
    cls: Any = type(settings)
    for name, members in _members(cls).items():
        value = getattr(settings, name)
        if not any(_fits(value, member) for member in members):
            raise InputError(name, f"must be {' or '.join(map(_described, members))}", repr(value))


@functools.cache
def _members(cls: type) -> dict[str, tuple[Any, ...]]:
    """The types that each field may have."""
    names = {field.name for field in dataclasses.fields(cls)}
    hints = {n: hint for n, hint in typing.get_type_hints(cls).items() if n in names}
    unions = (typing.Union, types.UnionType)
    return {
        n: typing.get_args(h) if typing.get_origin(h) in unions else (h,) for n, h in hints.items()
    }


def _fits(value: Any, member: Any) -> bool:
    if typing.get_origin(member) is Literal:
        return value in typing.get_args(member)
    if member is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if member is int and isinstance(value, bool):
        return False
    return isinstance(value, typing.get_origin(member) or member)


def _described(member: Any) -> str:
    if typing.get_origin(member) is Literal:
        return f"one of: {', '.join(map(str, typing.get_args(member)))}"
    known = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    known |= {type(None): "None", Duration: "a Duration, like anybatch.epochs(5)"}
    return (
        known.get(member) or f"a {getattr(typing.get_origin(member) or member, '__name__', member)}"
    )


def require_positive(name: str, value: float) -> None:
    """Refuse anything but a finite number > 0."""
    require(name, value, "must be > 0", value > 0)


def require_not_negative(name: str, value: float) -> None:
    """Refuse anything but a finite number >= 0."""
    require(name, value, "must be >= 0", value >= 0)


def require_decay_rate(name: str, value: float) -> None:
    """Refuse anything outside of [0, 1)."""
    require(name, value, "must be in [0, 1)", 0 <= value < 1)
