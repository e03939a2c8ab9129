"""`anybatch recipe list | show | check | diff`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from anybatch.commands.output import show, table
from anybatch.errors import ExitCode
from anybatch.recipe import Recipe
from anybatch.recipe_file import difference, load_recipe, shipped_recipe_names
from anybatch.recipe_mapping import recipe_to_mapping

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
    """Print a resolved recipe as TOML-like lines, or as JSON.

    Args:
        reference: name, file or function.
        overrides: "optimizer.lr=0.3" and the like.
        as_json: print one JSON document instead.
    """
    recipe = load_recipe(reference, overrides)
    mapping = recipe_to_mapping(recipe)
    if as_json:
        show(json.dumps(mapping))
        return ExitCode.OK
    show("\n".join(_lines(mapping, "")))
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


def _lines(mapping: dict[str, Any], prefix: str) -> list[str]:
    lines: list[str] = []
    for key, value in mapping.items():
        if isinstance(value, dict):
            lines += _lines(value, f"{prefix}{key}.")
        elif value is not None:
            lines.append(f"{prefix}{key} = {_value(value)}")
    return lines


def _value(value: Any) -> str:
    return json.dumps(value)
