"""`anybatch recipe list | show | check | diff | preview`."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from anybatch.commands.output import show, table
from anybatch.errors import ExitCode, InputError
from anybatch.preview import PreviewRow, outline, plateau_sentence, preview
from anybatch.recipe import Recipe, Target
from anybatch.recipe_file import difference, load_recipe, shipped_recipe_names
from anybatch.recipe_mapping import recipe_to_mapping, to_plain
from anybatch.schedules import Duration

if TYPE_CHECKING:
    from anybatch.options.recipe import RecipePreview

__all__ = [
    "check_recipe",
    "conventions",
    "diff_recipes",
    "list_recipes",
    "preview_recipe",
    "show_recipe",
]


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


def preview_recipe(options: RecipePreview) -> int:
    """Print (and draw) what a recipe's schedules will do, before any training.

    Raises:
        InputError: no task and no number of examples, or both; recipe and data do not fit together.
    """
    recipe = load_recipe(options.recipe, options.set)
    num_examples = _num_examples(options, recipe)
    rows = preview(recipe, num_examples)
    if options.out is not None:
        from anybatch.commands.preview_figure import write_preview_figure

        title = f"{options.recipe} on {num_examples:,} training examples"
        write_preview_figure(rows, title, options.out)
    if options.json:
        columns = {name: [getattr(row, name) for row in rows] for name in PreviewRow._fields}
        show(json.dumps({"examples_per_epoch": num_examples, "updates": columns}))
        return ExitCode.OK
    show(f"{len(rows):,} updates, {rows[-1].examples:,} examples, {rows[-1].epoch:g} epochs")
    show(table(list(PreviewRow._fields), [_cells(row) for row in outline(rows)]))
    sentence = plateau_sentence(recipe, num_examples, rows)
    if sentence:
        show(f"# {sentence}")
    if options.out is not None:
        show(f"{options.out}")
    return ExitCode.OK


def _num_examples(options: RecipePreview, recipe: Recipe) -> int:
    """Training examples in an epoch, as told or as the task has them."""
    if options.examples is not None:
        if options.task is not None:
            raise InputError(
                "--examples", "must be left out where a task is given", options.examples
            )
        if options.examples < 1:
            raise InputError("--examples", "must be >= 1", options.examples)
        return options.examples
    if options.task is None:
        hint = "a task, as in `anybatch recipe preview digits digits`, is counted"
        raise InputError("--examples", "must be given where no task is", hint=hint)
    from anybatch.task import load_task

    task = load_task(options.task, data=options.data, image_size=recipe.image_size)
    num_examples = task.source("train").num_examples
    if num_examples is None:
        raise InputError("train", "must have a known length", hint="give --examples N instead")
    return num_examples


def _cells(row: PreviewRow) -> list[str]:
    numbers = (row.lr, row.momentum, row.weight_decay)
    counts = (str(row.update), str(row.examples), f"{row.epoch:.2f}")
    return [*counts, *(f"{number:.6g}" for number in numbers), str(row.batch_size)]


def conventions(recipe: Recipe) -> list[str]:
    """What the recipe's learning rate and weight decay mean, in words and in the other units."""
    optimizer, batch_size = recipe.optimizer, recipe.batch_size
    decay = {
        "coupled": "weight decay is coupled: added to the gradient before momentum or scaling",
        "lr-decoupled": (
            "weight decay is decoupled: w <- (1 - lr_t * weight_decay) * w beside the step"
        ),
        "decoupled": (
            "weight decay is decoupled from lr, too: w <- (1 - lr_t / lr * weight_decay) * w "
            "beside the step"
        ),
        "normalized": (
            "weight decay is normalized: w <- (1 - lr_t / lr * weight_decay / sqrt(n)) * w beside "
            "the step, n the updates of the run or of the present restart"
        ),
    }[optimizer.decay]
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
