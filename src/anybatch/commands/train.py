"""`anybatch train`: one run, or a study over seeds, new or resumed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anybatch.commands.output import show, table
from anybatch.commands.plan import plan_of
from anybatch.commands.recipe import conventions
from anybatch.errors import InputError
from anybatch.recipe import Recipe, Target
from anybatch.recipe_file import load_recipe, recipe_name_for
from anybatch.records import plain
from anybatch.run import Run
from anybatch.schedules import Duration
from anybatch.study import ArmSummary, Study

if TYPE_CHECKING:
    from anybatch.options.train import Train
    from anybatch.task import Task
    from anybatch.training.training import Training

__all__ = ["train"]


def train(options: Train) -> int:
    """Carry out `anybatch train` and return its exit code.

    Raises:
        InputError: anything given that breaks a rule.
    """
    _refuse_together(options)
    if options.resume is not None and Study.is_at(options.resume):
        return _resume_study(options, options.resume)
    if options.resume is not None:
        return _resume_run(options, options.resume)
    if options.task is None:
        raise InputError("task", "must be given", hint="`anybatch tasks` lists the built-in ones")
    if options.plan is not None:
        return _planned_run(options, options.plan)
    recipe = _recipe(options, options.task)
    if options.dry_run:
        from anybatch.commands.dry_run import dry_run

        return dry_run(options, recipe)
    return _new_study(options, recipe) if options.seeds > 1 else _new_run(options, recipe)


def _refuse_together(options: Train) -> None:
    """Refuse options that do not go with each other."""
    if options.extend is not None and options.resume is None:
        raise InputError("--extend", "must come with --resume DIR", options.extend)
    if options.seeds < 1:
        raise InputError("--seeds", "must be >= 1", options.seeds)
    if options.ranks != 1 and not options.dry_run:
        hint = "torchrun --nproc-per-node=N says it for a training"
        raise InputError("--ranks", "must come with --dry-run", options.ranks, hint=hint)
    if options.dry_run:
        _refuse_with_dry_run(options)
    if options.resume is not None:
        _refuse_with_resume(options)


def _refuse_with_dry_run(options: Train) -> None:
    """Refuse what a dry run cannot show."""
    for thing, value in (("--resume", options.resume), ("--plan", options.plan)):
        if value is not None:
            raise InputError(thing, "must be left out with --dry-run", str(value))
    if options.seeds != 1:
        raise InputError("--seeds", "must be left out with --dry-run", options.seeds)


def _refuse_with_resume(options: Train) -> None:
    """Refuse what the run or study that is resumed has settled already."""
    for thing, value in (("task", options.task), ("--out", options.out), ("--plan", options.plan)):
        if value is not None:
            raise InputError(thing, "must be left out with --resume", str(value))
    if options.seeds != 1:
        raise InputError("--seeds", "must be left out with --resume", options.seeds)


def _task_again(options: Train, reference: dict[str, Any]) -> Task:
    """The task of a run or study, its data looked for in --data where that is given."""
    from anybatch.training.loop import task_from

    moved = {"data": str(options.data.resolve())} if options.data is not None else {}
    return task_from(reference | moved)


def _recipe(options: Train, task_name: str) -> Recipe:
    """The recipe asked for, or the one shipped for the task, with the options put in."""
    recipe = load_recipe(options.recipe or recipe_name_for(task_name), options.set)
    stopping = recipe.stopping
    if options.target is not None:
        stopping = replace(stopping, target=Target.parse(options.target))
    if options.target_on is not None:
        stopping = replace(stopping, target_on=options.target_on)
    return replace(recipe, stopping=stopping)


def _task(options: Train, recipe: Recipe) -> Task:
    from anybatch.task import load_task

    name = options.task or ""
    return load_task(name, data=options.data, image_size=recipe.image_size)


def _new_run(options: Train, recipe: Recipe) -> int:
    from anybatch.training.loop import create_run, default_out
    from anybatch.training.training import Training

    task = _task(options, recipe)
    with Training(task, recipe) as training:
        out = options.out or training.world.from_first(default_out(task.name))
        run = create_run(training, out)
        if options.recipe is not None and Path(options.recipe).suffix == ".toml":
            _keep_source(training.world.is_first, Path(options.recipe), run)
        notes = conventions(recipe) if recipe.loss.reduction == "sum" else []
        return _carry_on(options, training, run, notes)


def _planned_run(options: Train, path: Path) -> int:
    """A new run with a plan's recipe, from where the plan's pilot ended."""
    from anybatch.planning.continuing import begin_planned, check_planned
    from anybatch.training.loop import create_run, default_out
    from anybatch.training.training import Training

    for name in ("recipe", "set", "target", "target_on"):
        value = getattr(options, name)
        if value:
            option = f"--{name.replace('_', '-')}"
            given = " ".join(value) if isinstance(value, tuple) else value
            raise InputError(option, "must be left out with --plan", given)
    if options.seeds != 1:
        raise InputError("--seeds", "must be left out with --plan", options.seeds)
    plan_run, plan = plan_of(path)
    task = _task(options, plan.recipe)
    with Training(task, plan.recipe) as training:
        check_planned(training, plan_run, plan)  # before a folder is made
        out = options.out or training.world.from_first(default_out(task.name))
        run = create_run(training, out)
        begin_planned(training, run, plan_run, plan)
        return _carry_on(options, training, run, [f"{line}" for line in plan.lines()])


def _keep_source(is_first: bool, source: Path, run: Run) -> None:
    """The recipe as the user wrote it, beside the resolved one."""
    if is_first and source.is_file():
        shutil.copyfile(source, run.path / "recipe.toml")


def _resume_run(options: Train, path: Path) -> int:
    from anybatch.training.loop import continue_run, extended
    from anybatch.training.training import Training

    run = Run(path)
    asked = None
    if options.recipe or options.set or options.target or options.target_on:
        options.recipe = options.recipe or str(path / "recipe.json")
        asked = _recipe(options, "")
    extend = Duration.parse(options.extend) if options.extend is not None else None
    recipe = extended(run, asked, extend)
    with Training(_task_again(options, run.task), recipe) as training:
        notes = continue_run(training, run, extend=extend is not None)
        return _carry_on(options, training, run, notes)


def _carry_on(options: Train, training: Training, run: Run, notes: list[str]) -> int:
    """Train to the end, showing progress, and say how it went."""
    from anybatch.training.loop import train_to_end

    train_to_end(training, run, progress=not options.json, notes=notes)
    first = training.world.is_first
    compared = _compared(run) if first else []
    if first and options.json:
        show(json.dumps(run.to_dict() | _planned(run)))
    elif first:
        show("\n".join([run.verdict(), *compared, f"run: {run.path}"]))
    return training.world.from_first(run.status.exit_code if first else 0)


def _compared(run: Run) -> list[str]:
    """What the plan foretold beside what happened, where the run follows one."""
    if run.plan is None:
        return []
    from anybatch.planning.continuing import conclude_planned

    return conclude_planned(run)


def _planned(run: Run) -> dict[str, Any]:
    """The same for programs."""
    if run.plan is None:
        return {}
    from anybatch.planning.continuing import predicted_and_actual

    return {"planned": plain(predicted_and_actual(run))}


def _new_study(options: Train, recipe: Recipe) -> int:
    from anybatch.training.loop import default_out

    _refuse_ranks()
    task = _task(options, recipe)
    seeds = range(recipe.seed, recipe.seed + options.seeds)
    out = options.out or default_out(task.name)
    study = Study.create(out, {"recipe": recipe}, list(seeds), task.reference)
    return _run_study(options, study, task)


def _resume_study(options: Train, path: Path) -> int:
    _refuse_ranks()
    for name in ("recipe", "set", "target", "target_on", "extend"):
        value = getattr(options, name)
        if value:
            option = f"--{name.replace('_', '-')}"
            given = " ".join(value) if isinstance(value, tuple) else value
            raise InputError(option, "must be left out to resume a study", given)
    study = Study(path)
    if study.about:  # its trials are not all known yet
        rule = "must be a run or a study over seeds"
        hint = f"anybatch study resume {shlex.quote(str(path))}"
        raise InputError("--resume", rule, str(path), hint=hint)
    return _run_study(options, study, _task_again(options, study.task))


def _refuse_ranks() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("--seeds", "must be 1 under torchrun", hint="run a study in one process")


def _run_study(options: Train, study: Study, task: Task) -> int:
    from anybatch.studies.run_study import run_study

    try:
        run_study(study, task, progress=not options.json)
    except (KeyboardInterrupt, SystemExit):  # a signal, which the trial has dealt with
        _show_study(options, study)
        raise
    _show_study(options, study)
    return study.exit_code


def _show_study(options: Train, study: Study) -> None:
    if options.json:
        show(json.dumps(study.to_dict()))
    else:
        show(_summary_table(study.summaries()))
        show(f"study: {study.path}")


def _summary_table(summaries: list[ArmSummary]) -> str:
    head = ["arm", "runs", "metric", "mean", "std", "lowest", "highest", "reached", "seconds"]
    return table(head, [_summary_cells(summary) for summary in summaries])


def _summary_cells(summary: ArmSummary) -> list[str]:
    numbers = (summary.mean, summary.standard_deviation, summary.lowest, summary.highest)
    return [
        summary.arm,
        f"{summary.n} of {summary.planned}"
        + (f", {summary.diverged} diverged" if summary.diverged else ""),
        f"{summary.split} {summary.metric_name}",
        *("-" if number is None else f"{number:.4f}" for number in numbers),
        "-" if summary.reached is None else f"{summary.reached} of {summary.n}",
        "-" if summary.mean_seconds is None else f"{summary.mean_seconds:.1f}",
    ]
