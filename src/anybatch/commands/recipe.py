"""`anybatch recipe list | show | check | diff | preview`."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from anybatch.batch_control import control_sentence
from anybatch.commands.output import show, table
from anybatch.errors import ExitCode, InputError
from anybatch.methods import METHODS
from anybatch.optim.decay import long_run_sgd_decay, normalized_decay, restarts, torch_decay
from anybatch.preview import PreviewRow, outline, plateau_sentence, preview
from anybatch.recipe import AdamWSettings, Origin, Recipe, SGDSettings, SGDWSettings, Target
from anybatch.recipe_file import difference, load_recipe, shipped_recipe_names
from anybatch.recipe_mapping import recipe_to_mapping, to_plain
from anybatch.scaling import reduction_sentences, scaled_recipe, scaling_sentences
from anybatch.schedules import Constant, Duration

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
    """Print each shipped recipe, then each method as lines of a recipe, with paper and article."""
    recipes = {name: load_recipe(name) for name in shipped_recipe_names()}
    if as_json:
        rows = [
            {"name": name, "description": r.description, "origin": to_plain(r.origin)}
            for name, r in recipes.items()
        ]
        methods = [method._asdict() for method in METHODS]
        show(json.dumps({"recipes": rows, "methods": methods}))
        return ExitCode.OK
    header = ["paper", "article"]
    show(
        table(
            ["recipe", "what", *header],
            [[name, r.description, *_origin(r.origin)] for name, r in recipes.items()],
        )
    )
    show("\nMethods of the articles, as lines on top of any recipe; --set takes each line\n")
    heads = [[m.title, m.paper, _article(m.article), f"docs/{m.page}.md"] for m in METHODS]
    lines = table(["method", *header, "page"], heads).splitlines()
    for head, method in zip(lines[1:], METHODS, strict=True):
        show("\n".join([head, *(f"    {line}" for line in method.lines)]))
    return ExitCode.OK


def _article(number: int) -> str:
    return f"article {number}" if number else ""


def _origin(origin: Origin | None) -> list[str]:
    """Paper with year, and the article's number."""
    if origin is None:
        return ["", ""]
    year = f" {origin.year}" if origin.year else ""
    return [f"{origin.paper}{year}", _article(origin.article)]


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


def diff_recipes(one: str, other: str, overrides: Sequence[str], *, as_json: bool) -> int:
    """Print every path at which two recipes differ.

    Args:
        one: name, file or function.
        other: likewise.
        overrides: of the other one.
        as_json: print one JSON document instead.
    """
    rows = difference(load_recipe(one), load_recipe(other, overrides))
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
    reacting = (
        plateau_sentence(recipe, num_examples, rows),
        control_sentence(recipe, num_examples),
    )
    for sentence in filter(None, reacting):
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
    }[recipe.optimizer.decay]
    told = [*scaling_sentences(recipe), *reduction_sentences(recipe)]
    return [decay, *_decay_elsewhere(recipe), *told]


def _decay_elsewhere(recipe: Recipe) -> list[str]:
    """The same decay as other conventions and torch's optimizers write it, where they can."""
    if recipe.scaling is not None and recipe.batch_size == "full":
        return []  # the lr that it is trained with is not known without the data
    try:
        optimizer = scaled_recipe(recipe, None).optimizer
    except InputError:  # which is told beside it, and refused by training
        return []
    decay, lr = optimizer.weight_decay, optimizer.lr
    if decay == 0 or lr == 0:
        return []
    match optimizer:
        case SGDSettings(momentum=momentum):
            same = decay / long_run_sgd_decay(1.0, lr, momentum)
            return [f"in the long run SGDW shrinks as much with decoupled weight_decay {same:.6g}"]
        case AdamWSettings(decay="lr-decoupled"):
            return [f'decay = "decoupled" does the same with weight_decay {decay * lr:.6g}']
        case SGDWSettings(decay="decoupled" | "normalized", momentum=momentum):
            told = "torch's SGD shrinks as much in the long run with weight_decay"
            other = long_run_sgd_decay(decay, lr, momentum)
        case AdamWSettings():
            told = "torch's AdamW does the same with weight_decay"
            other = torch_decay("decoupled", decay, lr)
        case _:
            return []
    if optimizer.decay == "decoupled":
        return [f"{told} {other:.6g}"]
    plain, n = 'decay = "decoupled" does the same with weight_decay', _known_updates(recipe)
    if n is None:
        return [f"{plain} {decay:.6g} / sqrt(n)", f"{told} {other:.6g} / sqrt(n)"]
    values = normalized_decay(decay, n), normalized_decay(other, n)
    return [f"n = {n} updates: {plain} {values[0]:.6g}", f"{told} {values[1]:.6g}"]


def _known_updates(recipe: Recipe) -> int | None:
    """Updates that a normalized decay counts, where the recipe alone says so."""
    is_constant = recipe.schedules.batch_size == Constant() and recipe.batch_control is None
    if recipe.duration.unit != "updates" or not is_constant or restarts(recipe.schedules.lr):
        return None
    return int(recipe.duration.count)


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
