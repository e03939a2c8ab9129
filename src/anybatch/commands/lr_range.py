"""`anybatch lr-range`: measure the range of learning rates, keep it in a run folder, say it."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

from anybatch.commands.measure import exit_code, measure, next_command
from anybatch.commands.output import table
from anybatch.measurement import Estimate, Measurement
from anybatch.recipe import Recipe
from anybatch.recipe_mapping import recipe_to_mapping
from anybatch.run import Run, write_json
from anybatch.scaling import scaled_recipe, with_lr
from anybatch.schedules import Constant, OneCycle

if TYPE_CHECKING:
    from anybatch.options.lr_range import LRRange

__all__ = ["SUGGESTED", "lr_range", "suggested_recipe", "summary"]

SUGGESTED = "suggested_recipe.json"
"""File in the run folder."""

_MEANING = {
    "max_lr": "train with this, or let a cycle rise to it",
    "base_lr": "where a cycle may begin",
    "edge": "largest constant lr that still learns",
    "learning_starts": "the loss begins to fall",
    "steepest": "the loss falls fastest",
    "minimum": "the lowest loss of the ramp",
    "best_metric": "the best metric of the ramp, on validation",
}


def lr_range(options: LRRange) -> int:
    """Carry out `anybatch lr-range` and return its exit code: 1 where no lr can be suggested.

    Raises:
        InputError: anything given that breaks a rule.
    """
    from anybatch.measuring.lr_range import LRRangeSettings, measure_lr_range

    settings = LRRangeSettings(
        start_lr=options.start_lr,
        end_lr=options.end_lr,
        num_updates=options.updates,
        spacing=options.spacing,
        repeats=options.repeats,
    )
    measured = measure(
        options,
        "lr-range",
        lambda task, recipe: measure_lr_range(
            task, recipe, settings=settings, progress=not options.json
        ),
        summary,
        finish=lambda run, found: _suggest(run, found, options),
    )
    return exit_code(measured.estimates["max_lr"].value is not None)


def _suggest(run: Run, measured: Measurement, options: LRRange) -> list[str]:
    """Write the recipe that the measurement suggests, and say how to train with it."""
    suggested = suggested_recipe(run.recipe, measured)
    if suggested is None:
        return []
    write_json(run.path / SUGGESTED, recipe_to_mapping(suggested))
    path = shlex.quote(str(run.path / SUGGESTED))
    return [next_command(options, "train", f"--recipe {path}")]


def suggested_recipe(recipe: Recipe, measured: Measurement) -> Recipe | None:
    """The recipe with the measured max_lr, and one-cycle where its lr was constant.

    The lr is that of the batch size it was measured at, so a scaling rule is applied and gone.

    Args:
        recipe: that was measured.
        measured: of kind "lr-range".

    Returns:
        None where no lr can be suggested.
    """
    top, base = measured.estimates["max_lr"].value, measured.estimates["base_lr"].value
    if top is None:
        return None
    is_full = recipe.batch_size == "full"  # then every update holds the whole set
    recipe = scaled_recipe(
        recipe, measured.examples // len(measured.samples["lr"]) if is_full else None
    )
    schedules = recipe.schedules
    if schedules.lr == Constant():
        start = min(1.0, base / top) if base else OneCycle().start
        schedules = replace(schedules, lr=OneCycle(start=start))
    optimizer = with_lr(recipe.optimizer, float(f"{top:.3g}"))
    return replace(recipe, optimizer=optimizer, schedules=schedules)


def summary(measured: Measurement) -> str:
    """What was measured as text: the range, what was noticed, what it cost."""
    rows = [
        [name, *_cells(measured.estimates[name]), meaning]
        for name, meaning in _MEANING.items()
        if name in measured.estimates
    ]
    lines = [table(["lr", "value", "95 % interval", ""], rows)]
    lines += [f"! {finding}" for finding in measured.findings]
    updates = len(measured.samples["lr"])
    lines.append(
        f"cost: {updates} updates, {measured.examples:,} examples, {measured.seconds:.1f} s"
    )
    return "\n".join(lines)


def _cells(estimate: Estimate) -> list[str]:
    """Value and interval, or why there is none."""
    if estimate.value is None:
        bound = f"at least {estimate.low:.3g}: " if estimate.low > 0 else ""
        if math.isfinite(estimate.high):
            bound = f"at most {estimate.high:.3g}: "
        return ["don't know", bound + estimate.reason]
    return [f"{estimate.value:.3g}", f"{estimate.low:.2g} to {estimate.high:.2g}"]
