"""What the commands that measure have in common: load, measure, keep in a run folder, say it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from anybatch.commands.output import show, table
from anybatch.errors import ExitCode
from anybatch.measurement import Estimate, Measurement
from anybatch.recipe import Recipe
from anybatch.recipe_file import load_recipe, recipe_name_for
from anybatch.records import plain
from anybatch.run import Run, Status, require_new_folder

if TYPE_CHECKING:
    from anybatch.options.measuring import MeasurementOptions
    from anybatch.task import Task

__all__ = ["estimate_rows", "exit_code", "measure", "next_command", "summary_of"]


def measure(
    options: MeasurementOptions,
    name: str,
    take: Callable[[Task, Recipe], Measurement],
    summary: Callable[[Measurement], str],
    *,
    finish: Callable[[Run, Measurement], list[str]] | None = None,
) -> Measurement:
    """Carry out a command that measures a task with a recipe; the task is left as found.

    Args:
        options: of the command.
        name: of the command, "noise-scale"; also in the folder's name.
        take: the measurement itself.
        summary: what is printed of it.
        finish: writes what else belongs into the run's folder, and returns lines to print last.

    Raises:
        InputError: anything given that breaks a rule.
    """
    from anybatch.task import load_task
    from anybatch.training.environment import describe_environment
    from anybatch.training.loop import default_out
    from anybatch.world import World

    recipe = load_recipe(options.recipe or recipe_name_for(options.task), options.set)
    task = load_task(options.task, data=options.data, image_size=recipe.image_size)
    world = World.from_environment(recipe.compute.device)
    try:
        out = options.out or world.from_first(default_out(f"{task.name}-{name}"))
        require_new_folder(out)  # before minutes are spent
        measured = _with_commands(take(task, recipe), f"anybatch {name} {shlex.quote(task.name)} ")
        if world.is_first:
            run = Run.create(out, recipe, task.reference)
            run.add_environment(describe_environment(world))
            run.add_measurement(measured)
            reason = f"measured the {name.replace('-', ' ')}; nothing was trained"
            run.write_status(Status(name="finished", reason=reason))
            lines = finish(run, measured) if finish is not None else []
            if options.json:
                show(json.dumps(plain({"run": str(run.path), **measured.to_dict()})))
            else:
                show("\n".join([summary(measured), f"run: {run.path}", *lines]))
    finally:
        world.close(together=False)
    return measured


def _with_commands(measured: Measurement, command: str) -> Measurement:
    """Advice that is an option, as the whole command to run next."""
    findings = [
        replace(finding, advice=command + finding.advice)
        if finding.advice.startswith("--")
        else finding
        for finding in measured.findings
    ]
    return replace(measured, findings=tuple(findings))


def next_command(options: MeasurementOptions, command: str, rest: str = "") -> str:
    """A line that names the command to run next on the same task and data.

    Args:
        options: of this command.
        command: the next one, "train".
        rest: its other options.
    """
    data = f" --data {shlex.quote(str(options.data))}" if options.data else ""
    return f"next: anybatch {command} {shlex.quote(options.task)}{data} {rest}".rstrip()


def summary_of(measured: Measurement, head: list[str], rows: list[list[str]]) -> str:
    """A table, what was noticed, and what it cost.

    Args:
        measured: whose findings and cost are told.
        head: of the table.
        rows: of the table.
    """
    lines = [table(head, rows), *(f"! {finding}" for finding in measured.findings)]
    lines.append(f"cost: {measured.examples:,} examples, {measured.seconds:.1f} s")
    return "\n".join(lines)


def estimate_rows(measured: Measurement, meaning: dict[str, str]) -> list[list[str]]:
    """A row for each estimate: name, value, interval or why there is none, unit, meaning.

    Args:
        measured: whose estimates.
        meaning: by name of the estimate, in the order to tell them; others are left out.
    """
    return [
        [name, *_cells(measured.estimates[name]), measured.estimates[name].unit, text]
        for name, text in meaning.items()
        if name in measured.estimates
    ]


def _cells(estimate: Estimate) -> list[str]:
    if estimate.value is not None:
        return [f"{estimate.value:.4g}", f"{estimate.low:.3g} to {estimate.high:.3g}"]
    reason = f": {estimate.reason}" if estimate.reason else ""
    if estimate.low > 0:
        return [f"at least {estimate.low:.3g}", estimate.reason]
    return ["don't know", reason.removeprefix(": ")]


def exit_code(found: bool) -> int:
    """0, or 1 where what was asked for is not known."""
    return ExitCode.OK if found else 1
