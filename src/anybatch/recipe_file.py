"""Recipes as files: TOML in, JSON out, overrides, the shipped ones, differences."""

from __future__ import annotations

import importlib
import importlib.resources
import json
import sys
import tomllib
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from anybatch.errors import InputError
from anybatch.recipe import Recipe
from anybatch.recipe_mapping import (
    default_choice,
    nearest,
    recipe_from_mapping,
    recipe_to_mapping,
    takes_none_as_text,
)

__all__ = [
    "apply_overrides",
    "difference",
    "import_function",
    "load_recipe",
    "made_by",
    "place_of",
    "read_recipe_file",
    "recipe_name_for",
    "shipped_recipe_names",
]


def read_recipe_file(path: Path) -> dict[str, Any]:
    """The table in a recipe's TOML file (or the JSON that a Run holds)."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"recipe {path}", "must be a readable file", reason) from None
    if path.suffix == ".json":
        return _parse_json(text, f"recipe {path}")
    return _parse_toml(text, f"recipe {path}")


def _parse_json(text: str, thing: str) -> dict[str, Any]:
    try:
        table = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(thing, "must be valid JSON", str(error)) from None
    if not isinstance(table, dict):
        raise InputError(thing, "must be a table", table)
    return table


def _parse_toml(text: str, thing: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(thing, "must be valid TOML", str(error)) from None


def _shipped() -> Iterator[tuple[str, Any]]:
    yield from _files_in(importlib.resources.files("anybatch.recipes"), "")


def _files_in(folder: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Name and file of each recipe of a folder, "full-batch/fb1" for one of a folder in it."""
    for entry in folder.iterdir():
        if entry.name.endswith(".toml"):
            yield prefix + entry.name.removesuffix(".toml"), entry
        elif entry.is_dir():
            yield from _files_in(entry, f"{prefix}{entry.name}/")


def shipped_recipe_names() -> list[str]:
    """Names of the recipes inside the package."""
    return sorted(name for name, _ in _shipped())


def recipe_name_for(task_name: str) -> str:
    """The shipped recipe that fits a task: of the same name, or "default".

    Args:
        task_name: as `load_task` takes it.
    """
    base = task_name.partition(":")[0]
    return base if base in shipped_recipe_names() else "default"


def import_function(reference: str) -> Any:
    """The object that "package.module:function" names, the working directory included.

    Raises:
        InputError: no such module or attribute, or the module itself fails to import.
    """
    module_name, _, attribute = reference.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(reference, "must name an importable module", str(error)) from None
    except Exception as error:
        rule = "must name a module that imports without error"
        raise InputError(reference, rule, f"{type(error).__name__}: {error}") from error
    except SystemExit as error:
        rule = "must name a module that does not exit when it is imported"
        raise InputError(reference, rule, f"SystemExit: {error}") from None
    if not hasattr(module, attribute):
        hint = nearest(attribute, dir(module))
        raise InputError(reference, f"must name something in {module_name}", attribute, hint=hint)
    return getattr(module, attribute)


def made_by(reference: str) -> Any:
    """What the function that "package.module:function" names returns; another object, as it is.

    Raises:
        InputError: it cannot be imported, or it raises.
    """
    made = import_function(reference)
    if not callable(made):
        return made
    try:
        return made()
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        rule = "must be a function that returns without error"
        raise InputError(
            reference, rule, f"{type(error).__name__}: {error}", hint=place_of(error)
        ) from error


def place_of(error: BaseException) -> str:
    """Where an error was raised, like "task.py:12 in build"; "" if nothing is known.

    Args:
        error: caught, so that it has a traceback.
    """
    frames = traceback.extract_tb(error.__traceback__)
    return (
        f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}"
        if frames
        else ""
    )


def load_recipe(reference: str, overrides: Iterable[str] = ()) -> Recipe:
    """A Recipe by shipped name, by file or by "package.module:function", then overridden.

    Args:
        reference: "mnist", "my.toml", "runs/x/recipe.json" or "package.module:function", the
            function taking nothing and returning a Recipe.
        overrides: "optimizer.lr=0.3" and the like, in TOML's notation.
    """
    shipped = dict(_shipped())
    if reference in shipped:
        mapping = _parse_toml(shipped[reference].read_text("utf-8"), f"recipe {reference}")
    elif ":" in reference and not Path(reference).exists():
        made = made_by(reference)
        if not isinstance(made, Recipe):
            raise InputError(reference, "must return a Recipe", type(made).__name__)
        mapping = recipe_to_mapping(made)
    elif Path(reference).suffix in (".toml", ".json"):
        mapping = read_recipe_file(Path(reference))
    else:
        rule = "must be a shipped name, a .toml file or package.module:function"
        raise InputError("recipe", rule, reference, hint=nearest(reference, shipped))
    return recipe_from_mapping(apply_overrides(mapping, overrides))


def apply_overrides(mapping: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of `mapping` with each "a.b=value" put in place; values in TOML's notation.

    Another "a.name" begins the table a anew, but for what was put into it before; its required
    fields must be given too. Fields of a choice that `mapping` does not make are those of the
    default one.

    Example:
        >>> apply_overrides({"optimizer": {"lr": 0.1}}, ["optimizer.lr=0.3", "seed=7"])
        {'optimizer': {'lr': 0.3}, 'seed': 7}
        >>> kfac = ["preconditioner.name=kfac", "preconditioner.bound.largest=2.0"]
        >>> apply_overrides({}, kfac)
        {'preconditioner': {'name': 'kfac', 'bound': {'name': 'fisher-norm', 'largest': 2.0}}}
    """
    result: dict[str, Any] = _copy_tables(mapping)
    given: set[tuple[str, ...]] = set()
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            raise InputError("--set", "must be like optimizer.lr=0.3", text)
        *parents, last = path.strip().split(".")
        table = result
        for depth, key in enumerate(parents, 1):
            child = table.get(key)
            if not isinstance(child, dict):
                child = default_choice(result, parents[:depth])
                table[key] = child
            table = child
        made = _override_value(value.strip())
        if made is None and takes_none_as_text(result, [*parents, last]):
            made = "none"
        if last == "name" and parents and table.get("name") != made:
            # Another choice has other fields, and its own scale for those that it shares.
            for key in [key for key in table if (*parents, key) not in given]:
                del table[key]
        table[last] = made
        given |= {(*parents, last)[:depth] for depth in range(1, len(parents) + 2)}
    return result


def _copy_tables(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy_tables(item) for key, item in value.items()}
    return [_copy_tables(item) for item in value] if isinstance(value, list) else value


def _override_value(text: str) -> Any:
    """A TOML value; bare words are text, "none" is None (the caller knows where it is a text)."""
    if text == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def difference(one: Recipe, other: Recipe) -> list[tuple[str, Any, Any]]:
    """Every path at which two recipes differ, with both values; None where one has no such key.

    Example:
        >>> from anybatch.recipe import SGDSettings
        >>> a, b = (Recipe(optimizer=SGDSettings(lr=lr)) for lr in (0.1, 0.2))
        >>> difference(a, b)
        [('optimizer.lr', 0.1, 0.2)]
    """
    a, b = (dict(_leaves(recipe_to_mapping(recipe), ())) for recipe in (one, other))
    paths = [*a, *(path for path in b if path not in a)]
    return [(p, a.get(p), b.get(p)) for p in paths if a.get(p) != b.get(p)]


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    elif isinstance(value, list) and value:
        for number, item in enumerate(value):
            yield from _leaves(item, (*path, str(number)))
    else:
        yield ".".join(path), value
