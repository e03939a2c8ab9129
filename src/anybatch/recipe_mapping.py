"""A Recipe as nested dicts of plain values, and back, strictly.

An unknown key is refused with its path and the nearest name, a value of the wrong type is refused
and never converted (3.7 is not an int, "0.1" is not a number).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from anybatch.errors import InputError
from anybatch.recipe import Recipe, Target
from anybatch.schedules import Duration

if typing.TYPE_CHECKING:
    import cattrs

__all__ = [
    "default_choice",
    "nearest",
    "recipe_from_mapping",
    "recipe_to_mapping",
    "takes_none_as_text",
    "to_plain",
]

_TEXT_TYPES = (Duration, Target)


def recipe_from_mapping(mapping: Mapping[str, Any]) -> Recipe:
    """Build a Recipe from nested dicts, as TOML or JSON give them.

    Raises:
        InputError: unknown key (with the nearest name), wrong type, value out of bounds; always
            with the path of the key.

    Example:
        >>> recipe_from_mapping({"optimizer": {"name": "sgd", "lr": 0.1}}).optimizer.lr
        0.1
        >>> recipe_from_mapping({"optimizer": {"name": "sgd", "lrr": 0.1}})
        Traceback (most recent call last):
        anybatch.errors.InputError: optimizer.lrr must be a known key (did you mean lr?)
    """
    from cattrs import ClassValidationError

    _check_keys(Recipe, mapping, ())
    try:
        recipe: Recipe = _converter().structure(mapping, Recipe)
    except ClassValidationError as group:
        raise _first_input_error(group) from None
    return recipe


def recipe_to_mapping(recipe: Recipe) -> dict[str, Any]:
    """The Recipe as nested dicts of plain values, every default written out."""
    mapping: dict[str, Any] = to_plain(recipe)
    return mapping


def to_plain(value: Any) -> Any:
    """Any part of a recipe as plain values: durations and targets as text, choices with a name."""
    if isinstance(value, _TEXT_TYPES):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        tag = {"name": type(value).name} if _is_tagged(type(value)) else {}  # type: ignore[attr-defined]
        fields = dataclasses.fields(value)
        return tag | {f.name: to_plain(getattr(value, f.name)) for f in fields}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    return value


def default_choice(mapping: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """The choice that a recipe makes where the table at a path is not given, as plain values.

    {} where it makes none, where the table needs no name, or where the path leads nowhere.

    Args:
        mapping: a recipe, as far as it is given.
        path: of keys.

    Example:
        >>> default_choice({"preconditioner": {"name": "kfac"}}, ["preconditioner", "bound"])
        {'name': 'fisher-norm', 'largest': 0.1}
    """
    fields = {field.name: field for field in _fields_at(mapping, path[:-1])}
    if path[-1] not in fields:
        return {}
    field = fields[path[-1]]
    made = field.default_factory is not dataclasses.MISSING
    default = field.default_factory() if made else field.default
    chosen: dict[str, Any] = to_plain(default) if _is_tagged(type(default)) else {}
    return chosen


def takes_none_as_text(mapping: Mapping[str, Any], path: Sequence[str]) -> bool:
    """Whether "none" is a choice by its name, or one of the texts, that the field at a path takes.

    Args:
        mapping: a recipe, as far as it is given.
        path: of keys.
    """
    fields = _fields_at(mapping, path[:-1])
    if not any(field.name == path[-1] for field in fields):
        return path[-1] == "name" and len(path) > 1
    annotation = _hints(_table_class(mapping, path[:-1]))[path[-1]]
    return "none" in typing.get_args(annotation)


def _fields_at(mapping: Mapping[str, Any], path: Sequence[str]) -> tuple[Any, ...]:
    """Fields of the table at a path; none where it is no table, or which one is not known."""
    cls = _table_class(mapping, path)
    return () if cls is None else dataclasses.fields(cls)


def _table_class(mapping: Mapping[str, Any], path: Sequence[str]) -> Any:
    """The class that the table at a path is read as: by its name, or the only one; else None."""
    cls: Any = Recipe
    value: Any = mapping
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
        name = value.get("name") if isinstance(value, Mapping) else None
        members = [m for m in _members(_hints(cls).get(key)) if dataclasses.is_dataclass(m)]
        members = [m for m in members if m not in _TEXT_TYPES]
        named = [m for m in members if _is_tagged(m) and m.name == name]  # type: ignore[union-attr]
        if len(named or members) != 1:
            return None
        cls = (named or members)[0]
    return cls


def _is_tagged(cls: Any) -> bool:
    """Whether `name` tells the class apart in a union (a class attribute, not a field)."""
    return (
        dataclasses.is_dataclass(cls)
        and not any(f.name == "name" for f in dataclasses.fields(cls))
        and isinstance(getattr(cls, "name", None), str)
    )


def _members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone; None left out."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(a for a in typing.get_args(annotation) if a is not type(None))
    return (annotation,)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@functools.cache
def _converter() -> cattrs.Converter:
    from cattrs import Converter

    converter = Converter(forbid_extra_keys=True)
    converter.register_structure_hook(Duration, lambda value, _: _parse(Duration, value))
    converter.register_structure_hook(Target, lambda value, _: _parse(Target, value))
    for scalar in (int, float, str, bool):
        converter.register_structure_hook(scalar, _structure_scalar)
    converter.register_structure_hook_func(
        lambda annotation: any(_is_tagged(member) for member in _members(annotation)),
        lambda value, annotation: _structure_tagged(converter, value, annotation),
    )
    converter.register_structure_hook(int | typing.Literal["full"], _structure_batch_size)
    converter.register_structure_hook_func(
        lambda annotation: _origin(annotation) is typing.Literal, _structure_choice
    )
    converter.register_structure_hook_func(
        lambda annotation: _origin(annotation) is tuple,
        lambda value, annotation: _structure_tuple(converter, value, annotation),
    )
    return converter


def _origin(annotation: Any) -> Any:
    return typing.get_origin(annotation)


def _parse(cls: type[Duration] | type[Target], value: Any) -> Duration | Target:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if cls is Target and number and math.isfinite(value):
        return Target("", "", float(value))
    if not isinstance(value, str):
        raise InputError(
            "", "must be text like " + ('"5 epochs"' if cls is Duration else '"0.99"'), value
        )
    return cls.parse(value)


_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _structure_scalar(value: Any, scalar: Any) -> Any:
    right = isinstance(value, scalar) or (scalar is float and isinstance(value, int))
    if not right or (isinstance(value, bool) and scalar is not bool):
        raise InputError("", f"must be {_KINDS[scalar]}", value)
    return scalar(value)


def _structure_batch_size(value: Any, _: Any) -> Any:
    if value == "full" or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise InputError("", 'must be a whole number or "full"', value)


def _structure_choice(value: Any, annotation: Any) -> Any:
    choices = typing.get_args(annotation)
    if isinstance(value, str) and value in choices:
        return value
    hint = nearest(str(value), choices)
    raise InputError("", f"must be one of: {', '.join(choices)}", value, hint=hint)


def _structure_tuple(converter: cattrs.Converter, value: Any, annotation: Any) -> Any:
    from cattrs import ClassValidationError, IterableValidationNote

    if not isinstance(value, (list, tuple)):
        raise InputError("", "must be a list", value)
    kind, items = typing.get_args(annotation)[0], []
    for number, item in enumerate(value):
        try:
            items.append(converter.structure(item, kind))
        except Exception as error:
            error.add_note(IterableValidationNote(f"item {number}", number, kind))
            raise ClassValidationError("in a list", [error], tuple) from None
    return tuple(items)


def _structure_tagged(converter: cattrs.Converter, value: Any, annotation: Any) -> Any:
    if value is None and annotation is not None and type(None) in typing.get_args(annotation):
        return None
    cls = _pick(value, annotation)
    return _structure_fields(converter, {k: v for k, v in value.items() if k != "name"}, cls)


def _structure_fields(converter: cattrs.Converter, value: Mapping[str, Any], cls: type) -> Any:
    """Fields of a tagged class, past the hook that would ask for its tag again."""
    from cattrs import AttributeValidationNote, ClassValidationError

    arguments, errors = {}, []
    for name, item in value.items():
        try:
            arguments[name] = converter.structure(item, _hints(cls)[name])
        except Exception as error:
            note = AttributeValidationNote(f"{cls.__name__}.{name}", name, _hints(cls)[name])
            error.__notes__ = [*getattr(error, "__notes__", []), note]
            errors.append(error)
    if errors:
        raise ClassValidationError(f"in {cls.__name__}", errors, cls)
    try:
        return cls(**arguments)
    except TypeError:
        required = [f.name for f in dataclasses.fields(cls) if _is_required(f)]
        missing = next(name for name in required if name not in arguments)
        raise InputError(missing, "must be given") from None


def _is_required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _pick(value: Any, annotation: Any) -> type:
    """The member of a tagged union that `value["name"]` names."""
    by_name = {m.name: m for m in _members(annotation) if _is_tagged(m)}
    if not isinstance(value, Mapping) or "name" not in value:
        lone = f'name = "{next(iter(by_name))}" is missing' if len(by_name) == 1 else ""
        hint = lone if isinstance(value, Mapping) else ""
        rule = f"must be a table with a name of: {', '.join(by_name)}"
        raise InputError("", rule, value, hint=hint)
    if value["name"] not in by_name:
        hint = nearest(str(value["name"]), by_name)
        raise InputError("name", f"must be one of: {', '.join(by_name)}", value["name"], hint=hint)
    cls: type = by_name[value["name"]]
    return cls


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint "did you mean X?" for a mistyped name, or "" when nothing is near."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {match[0]}?" if match else ""


# --- errors with paths -------------------------------------------------------------------------


def _check_keys(cls: Any, mapping: Any, path: tuple[str, ...], choices: Sequence[Any] = ()) -> None:
    """Refuse unknown and missing keys before any value is looked at, so that the path is exact."""
    if not isinstance(mapping, Mapping):
        raise InputError(".".join(path) or "recipe", "must be a table", mapping)
    known = {f.name for f in dataclasses.fields(cls)} | ({"name"} if _is_tagged(cls) else set())
    for key in mapping:
        if key not in known:
            meant = _SYNONYMS.get(key) or str(key)
            hint = _of_choices(meant, choices) or nearest(meant, known) or _elsewhere(meant)
            raise InputError(".".join((*path, key)), "must be a known key", hint=hint)
    for field in dataclasses.fields(cls):
        if _is_required(field) and field.name not in mapping:
            raise InputError(".".join((*path, field.name)), "must be given")
        if field.name in mapping:
            _check_value_keys(_hints(cls)[field.name], mapping[field.name], (*path, field.name))


_MOST_TOLD = 4
_SYNONYMS = {"learning_rate": "lr", "wd": "weight_decay", "epochs": "duration", "bs": "batch_size"}


def _of_choices(key: str, choices: Iterable[Any]) -> str:
    """The hint for a key that other choices of the same table have."""
    names = [c.name for c in choices if any(f.name == key for f in dataclasses.fields(c))]
    more = ", ..." if len(names) > _MOST_TOLD else ""
    return f"known with name = {', '.join(names[:_MOST_TOLD])}{more}" if names else ""


def _elsewhere(key: str) -> str:
    """The hint for a key that is right, but of another table."""
    for field in dataclasses.fields(Recipe):
        for member in _members(_hints(Recipe)[field.name]):
            is_table = dataclasses.is_dataclass(member) and member not in _TEXT_TYPES
            if is_table and any(f.name == key for f in dataclasses.fields(member)):
                return f"did you mean {field.name}.{key}?"
    return ""


def _check_value_keys(annotation: Any, value: Any, path: tuple[str, ...]) -> None:
    if typing.get_origin(annotation) is tuple:
        for number, item in enumerate(value if isinstance(value, (list, tuple)) else ()):
            _check_value_keys(typing.get_args(annotation)[0], item, (*path, str(number)))
        return
    members = [m for m in _members(annotation) if dataclasses.is_dataclass(m)]
    members = [m for m in members if m not in _TEXT_TYPES]
    if not members or value is None:
        return
    if any(_is_tagged(member) for member in members):
        try:
            _check_keys(_pick(value, annotation), value, path, choices=members)
        except InputError as error:
            raise error if error.thing.startswith(path[0]) else _at(error, path) from None
    else:
        _check_keys(members[0], value, path)


def _at(error: InputError, path: tuple[str, ...]) -> InputError:
    """The same error with the thing at `path`."""
    thing = ".".join(part for part in (*path, error.thing) if part)
    return error.renamed(thing)


def _first_input_error(group: BaseException) -> InputError:
    """The first leaf of cattrs' error tree as an InputError with its path."""
    from cattrs import AttributeValidationNote, IterableValidationNote

    path: list[str] = []
    error: BaseException = group
    while True:
        for note in getattr(error, "__notes__", []):
            if isinstance(note, AttributeValidationNote):
                path.append(note.name)
            elif isinstance(note, IterableValidationNote):
                path.append(str(note.index))
        if not isinstance(error, BaseExceptionGroup):
            break
        error = error.exceptions[0]
    if isinstance(error, InputError):
        return _at(error, tuple(path) if error.thing not in path[-1:] else tuple(path[:-1]))
    return InputError(".".join(path) or "recipe", f"must be valid: {error}")
