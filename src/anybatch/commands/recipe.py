"""`anybatch recipe list | show | check | diff`."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from anybatch.commands.output import show, table
from anybatch.errors import ExitCode
from anybatch.recipe import Recipe, Target
from anybatch.recipe_file import difference, load_recipe, shipped_recipe_names
from anybatch.recipe_mapping import recipe_to_mapping, to_plain
from anybatch.schedules import Duration

__all__ = ["check_recipe", "conventions", "diff_recipes", "list_recipes", "show_recipe"]


def list_recipes(*, as_json: bool) -> int:
    """Print name and description of each shipped recipe."""
    recipes = {name: load_recipe(name) for name in shipped_recipe_names()}
    if as_json:
        rows = [{"name": name, "description": r.description} for name, r in recipes.items()]
        show(json.dumps({"recipes": rows}))
    else:
        show(table(["recipe", "what"], [[name, r.description] for name, r in recipes.items()]))
    return ExitCode.OK


def show_recipe(reference: str, overrides: Sequence[str], *, as_json: bool) -> int:
    """Print a resolved recipe, a field a line with its unit and interval, or as JSON.

    The lines are TOML, so that they can be kept as a file and changed.

    Args:
        reference: name, file or function.
        overrides: "optimizer.lr=0.3" and the like.
        as_json: print one JSON document instead.
    """
    recipe = load_recipe(reference, overrides)
    if as_json:
        show(json.dumps(recipe_to_mapping(recipe)))
        return ExitCode.OK
    rows = list(_rows(recipe, ""))
    width = min(40, max(len(line) for line, _ in rows))
    show("\n".join(f"{line.ljust(width)}  {note}".rstrip() for line, note in rows))
    for sentence in conventions(recipe):
        show(f"# {sentence}")
    return ExitCode.OK


def check_recipe(reference: str, overrides: Sequence[str]) -> int:
    """Load a recipe and say that it is valid; anything wrong is an InputError."""
    load_recipe(reference, overrides)
    show(f"{reference} is a valid recipe")
    return ExitCode.OK


def diff_recipes(one: str, other: str, *, as_json: bool) -> int:
    """Print every path at which two recipes differ."""
    rows = difference(load_recipe(one), load_recipe(other))
    if as_json:
        show(json.dumps({"differences": [{"path": p, "one": a, "other": b} for p, a, b in rows]}))
    elif rows:
        show(table(["field", one, other], [[p, _value(a), _value(b)] for p, a, b in rows]))
    else:
        show("no difference")
    return ExitCode.OK


def conventions(recipe: Recipe) -> list[str]:
    """What the recipe's learning rate and weight decay mean, in words and in the other units."""
    optimizer, batch_size = recipe.optimizer, recipe.batch_size
    decay = {
        "coupled": "weight decay is coupled: added to the gradient before momentum or scaling",
        "decoupled": "weight decay is decoupled: w <- (1 - lr * weight_decay) * w beside the step",
    }[optimizer.decay_convention]
    sentences = [decay]
    if recipe.loss.reduction == "sum" and isinstance(batch_size, int):
        lr, same = optimizer.lr * batch_size, optimizer.weight_decay / batch_size
        sentences.append(
            f"losses are summed: SGD does the same with the mean loss, lr {lr:.6g} and coupled "
            f"weight_decay {same:.6g} at batch size {batch_size}"
        )
    return sentences


def _rows(value: Any, prefix: str) -> Iterator[list[str]]:
    """One row for each field that is set: its line in a file, and what the field means."""
    notes = _field_notes(type(value))
    if isinstance(getattr(type(value), "name", None), str):  # the tag of a choice
        yield [f'{prefix}name = "{value.name}"', ""]
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if item is None:
            continue
        if dataclasses.is_dataclass(item) and not isinstance(item, (Duration, Target)):
            yield from _rows(item, f"{prefix}{field.name}.")
        else:
            text = _value(to_plain(item))
            yield [f"{prefix}{field.name} = {text}", f"# {notes.get(field.name, '')}"]


def _field_notes(cls: type) -> dict[str, str]:
    """Meaning, unit and interval of each field, from the Attributes of the class's docstring."""
    _, _, section = inspect.getdoc(cls).partition("Attributes:\n")  # type: ignore[union-attr]
    section = section.partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _value(value: Any) -> str:
    """A value in TOML's notation; what is None is left out of a table."""
    if isinstance(value, dict):
        items = ", ".join(f"{key} = {_value(v)}" for key, v in value.items() if v is not None)
        return f"{{ {items} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    # Not escaped as ASCII, since TOML knows no surrogate pairs; DEL alone JSON leaves and TOML not.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
