"""`anybatch lr-range`: measure the range of learning rates, keep it in a run folder, say it."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from anybatch.commands.output import show, table
from anybatch.errors import ExitCode
from anybatch.measurement import Estimate, Measurement
from anybatch.recipe import Recipe
from anybatch.recipe_file import load_recipe, recipe_name_for
from anybatch.recipe_mapping import recipe_to_mapping
from anybatch.records import plain
from anybatch.run import Run, Status, require_new_folder, write_json
from anybatch.schedules import Constant, OneCycle

if TYPE_CHECKING:
    from anybatch.options.lr_range import LRRange
    from anybatch.task import Task

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
    from anybatch.task import load_task
    from anybatch.training.loop import default_out
    from anybatch.world import World

    settings = LRRangeSettings(
        start_lr=options.start_lr,
        end_lr=options.end_lr,
        num_updates=options.updates,
        spacing=options.spacing,
        repeats=options.repeats,
    )
    recipe = load_recipe(options.recipe or recipe_name_for(options.task), options.set)
    task = load_task(options.task, data=options.data, image_size=recipe.image_size)
    world = World.from_environment(recipe.compute.device)
    try:
        out = options.out or world.from_first(default_out(f"{task.name}-lr-range"))
        require_new_folder(out)  # before minutes are spent
        measured = measure_lr_range(task, recipe, settings=settings, progress=not options.json)
        measured = _with_commands(measured, options.task)
        if world.is_first:
            run = _kept(measured, task, recipe, out)
            _say(measured, run, options)
    finally:
        world.close(together=False)
    return ExitCode.OK if measured.estimates["max_lr"].value is not None else 1


def _with_commands(measured: Measurement, task: str) -> Measurement:
    """Advice that is an option, as the whole command to run next."""
    command = f"anybatch lr-range {shlex.quote(task)} "
    findings = [
        replace(finding, advice=command + finding.advice)
        if finding.advice.startswith("--")
        else finding
        for finding in measured.findings
    ]
    return replace(measured, findings=tuple(findings))


def _kept(measured: Measurement, task: Task, recipe: Recipe, out: Path) -> Run:
    """The measurement in a new run folder, with the recipe that it suggests."""
    from anybatch.training.environment import describe_environment
    from anybatch.world import World

    run = Run.create(out, recipe, task.reference)
    run.add_environment(describe_environment(World.from_environment(recipe.compute.device)))
    run.add_measurement(measured)
    run.write_status(Status(name="finished", reason="measured the lr range; nothing was trained"))
    suggested = suggested_recipe(recipe, measured)
    if suggested is not None:
        write_json(run.path / SUGGESTED, recipe_to_mapping(suggested))
    return run


def suggested_recipe(recipe: Recipe, measured: Measurement) -> Recipe | None:
    """The recipe with the measured max_lr, and one-cycle where its lr was constant.

    Args:
        recipe: that was measured.
        measured: of kind "lr-range".

    Returns:
        None where no lr can be suggested.
    """
    top, base = measured.estimates["max_lr"].value, measured.estimates["base_lr"].value
    if top is None:
        return None
    schedules = recipe.schedules
    if schedules.lr == Constant():
        start = min(1.0, base / top) if base else OneCycle().start
        schedules = replace(schedules, lr=OneCycle(start=start))
    optimizer = replace(recipe.optimizer, lr=float(f"{top:.3g}"))
    return replace(recipe, optimizer=optimizer, schedules=schedules)


def _say(measured: Measurement, run: Run, options: LRRange) -> None:
    if options.json:
        show(json.dumps(plain({"run": str(run.path), **measured.to_dict()})))
        return
    show(summary(measured))
    show(f"run: {run.path}")
    if (run.path / SUGGESTED).exists():
        data = f" --data {shlex.quote(str(options.data))}" if options.data else ""
        path = shlex.quote(str(run.path / SUGGESTED))
        show(f"next: anybatch train {shlex.quote(options.task)}{data} --recipe {path}")


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
