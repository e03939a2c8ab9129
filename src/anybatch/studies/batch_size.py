"""A study of batch sizes: updates, examples and seconds to a target, one row for each size.

for each batch size, until every run of the table has ended:
    lr fixed: the runs of the table
    else: what halving must know next; once it has decided, the runs of the table with new seeds

What is to be done next is read from the disk alone, so that it can be stopped anywhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from anybatch.errors import InputError
from anybatch.progress import Activity
from anybatch.recipe import Recipe, Target
from anybatch.recipe_file import load_recipe, recipe_name_for
from anybatch.recipe_mapping import recipe_to_mapping
from anybatch.run import SCHEMA, write_json
from anybatch.scaling import scaled_recipe
from anybatch.schedules import Constant, updates
from anybatch.studies.batch_size_grid import (
    LOOK_GROWTH,
    BatchSizeSettings,
    default_batch_sizes,
    lr_centre,
    lr_grid,
    round_lengths,
    trial_recipe,
)
from anybatch.studies.batch_size_table import KIND, BatchSizeStudy
from anybatch.studies.halving import choose_lr
from anybatch.studies.trials import Order
from anybatch.studies.workers import Workers, opened_workers
from anybatch.study import Study
from anybatch.task import Task
from anybatch.training.loop import default_out, task_from
from anybatch.training.outcome import TargetWatch

__all__ = ["create_batch_size_study", "resume_batch_size_study", "study_batch_size"]


def study_batch_size(
    task: Task,
    recipe: Recipe | None = None,
    *,
    settings: BatchSizeSettings | None = None,
    out: Path | str | None = None,
    on: str = "local",
    seconds: float | None = None,
    progress: bool = False,
) -> BatchSizeStudy:
    """Train a task to a target at several batch sizes; what it takes, for each of them.

    Each trial has the recipe with its batch size and lr, and the recipe's duration as its cap. It
    ends where an evaluation reaches the target, where it diverges, or at the cap. Without a fixed
    lr, each batch size gets its own by successive halving on the recipe's seed; only runs with
    other seeds enter the table.

    Args:
        task: what is to be learned; one made by hand is trained in this process alone.
        recipe: whose batch size and lr the grid is made from; None: the one shipped for the task.
        settings: batch sizes, target, lr, number of seeds.
        out: a new folder; None makes one below `runs/`.
        on: "local" (this process), "local:2" (two spawned ones), "ray", "ray:8".
        seconds: stop, everything saved, once they are over; None: train to the end.
        progress: show what is being trained.

    Returns:
        A handle on the study; `table()` and `to_dict()` tell what was found.

    Raises:
        InputError: something given breaks a rule, or a trial meets bad input.
        KeyboardInterrupt: after Ctrl-C; `resume_batch_size_study` goes on.

    Cost:
        With K batch sizes, S seeds and the cap as the unit: at most K S at a fixed lr; where lr is
        tuned, about 2 K more, less where the target is reached before the cap.

    Reference:
        Shallue et al., Measuring the effects of data parallelism on neural network training, 2019
        (the protocol: the fewest updates to a target, lr tuned for each batch size). Jamieson and
        Talwalkar, Non-stochastic best arm identification and hyperparameter optimization, 2016
        (successive halving).
    """
    workers = Workers.parse(on)
    recipe = recipe or load_recipe(recipe_name_for(task.name))
    settings = settings or BatchSizeSettings()
    if workers != Workers() and not task.reference.get("name"):
        raise InputError("on", "must be local for a task made by hand", on)
    made = create_batch_size_study(task, recipe, settings, out, workers)
    _carry_on(made, task, workers, seconds, progress)
    return BatchSizeStudy(made.path)


def create_batch_size_study(
    task: Task,
    recipe: Recipe,
    settings: BatchSizeSettings,
    out: Path | str | None,
    workers: Workers,
) -> BatchSizeStudy:
    """The folder of a new study, in which nothing has been trained.

    Args:
        task: of the study.
        recipe: of the study; threads are set to the workers' where it leaves them open.
        settings: of the study.
        out: a new folder; None makes one below `runs/`.
        workers: that it is begun with.

    Raises:
        InputError: no target, a batch larger than the set, a scheduled batch size, several ranks.
    """
    _refuse_ranks()
    target = Target.parse(settings.target) if settings.target else recipe.stopping.target
    if target is None:
        raise InputError("target", "must be given", hint="--target 0.98, or 'loss<=1.6'")
    if recipe.schedules.batch_size != Constant():
        rule = "must be constant in a study of batch sizes"
        raise InputError("schedules.batch_size", rule, recipe.schedules.batch_size.name)
    if recipe.batch_control is not None:
        raise InputError("batch_control", "must be left out in a study of batch sizes")
    num_examples = task.source("train").num_examples
    whole = num_examples and num_examples * max(1, recipe.augmentation.copies)
    recipe = scaled_recipe(recipe, whole)  # the study tunes the lr of every size
    if settings.lr is None and recipe.optimizer.lr <= 0:
        raise InputError("optimizer.lr", "must be > 0 to be tuned", recipe.optimizer.lr)
    watch = TargetWatch(target, task.judge)
    if not task.has(recipe.stopping.target_on):
        raise InputError("stopping.target_on", "must be a split of the task", "test")
    recipe = replace(
        recipe,
        stopping=replace(recipe.stopping, target=target),
        compute=replace(recipe.compute, threads=recipe.compute.threads or workers.threads),
    )
    sizes = tuple(sorted(settings.batch_sizes or default_batch_sizes(recipe, num_examples)))
    about: dict[str, Any] = {
        "kind": KIND,
        "recipe": recipe_to_mapping(recipe),
        "target": str(watch),
        "batch_sizes": list(sizes),
        "lr": settings.lr,
        "num_examples": num_examples,
        "look_growth": LOOK_GROWTH,
    }
    arms = {}
    for size in sizes:  # those of a tuned study only show that the sizes fit the set
        lr = settings.lr or recipe.optimizer.lr
        made = trial_recipe(recipe, size, lr, num_examples=num_examples, smallest=sizes[0])
        arms[BatchSizeStudy.arm(size)] = made
    first = recipe.seed + (settings.lr is None)
    seeds = list(range(first, first + settings.seeds))
    out = out if out is not None else default_out(f"{task.name}-batch-size")
    Study.create(out, arms if settings.lr else {}, seeds, task.reference, about=about)
    return BatchSizeStudy(out)


def _refuse_ranks() -> None:
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1:
        rule = "must be 1, since each trial is trained by one process"
        raise InputError("WORLD_SIZE", rule, size, hint="without torchrun, --on local:2")


def resume_batch_size_study(
    path: Path | str,
    *,
    task: Task | None = None,
    on: str = "local",
    seconds: float | None = None,
    progress: bool = False,
) -> BatchSizeStudy:
    """Go on with a study of batch sizes wherever it was stopped, or killed.

    Args:
        path: of the study.
        task: needed only where it was made by hand, or its data has moved.
        on: as in `study_batch_size`; threads of each process stay what they were.
        seconds: stop, everything saved, once they are over; None: train to the end.
        progress: show what is being trained.

    Raises:
        InputError: not such a study, or a trial meets bad input.
        KeyboardInterrupt: after Ctrl-C; the same call goes on.
    """
    workers, made = Workers.parse(on), BatchSizeStudy(path)
    _refuse_ranks()
    _carry_on(made, task or task_from(made.study.task), workers, seconds, progress)
    return BatchSizeStudy(path)


def _carry_on(
    made: BatchSizeStudy, task: Task, workers: Workers, seconds: float | None, progress: bool
) -> None:
    """Carry out orders, wave after wave, until there are none or time is up."""
    deadline = None if seconds is None else time.time() + seconds
    _note_session(made, workers)
    with (
        opened_workers(workers, task) as carried_out,
        Activity(f"study {made.path.name}", shown=progress) as activity,
    ):
        while orders := list(_next_orders(made, deadline)):
            activity.show(f"{len(orders)} trials in this round")
            for number, order in enumerate(carried_out(orders), start=1):
                place = order.path.relative_to(made.path)
                activity.show(f"{place} done, {number} of {len(orders)} trials of this round")
            if deadline is not None and time.time() >= deadline:
                return


def _note_session(made: BatchSizeStudy, workers: Workers) -> None:
    entry = {
        "on": workers.on,
        "processes": workers.processes,
        "threads": made.recipe.compute.threads,
        "cores": workers.threads * workers.processes,
    }
    path = made.path / "sessions.json"
    write_json(path, {"schema": SCHEMA, "sessions": [*made.sessions, entry]})


def _next_orders(made: BatchSizeStudy, deadline: float | None) -> Iterator[Order]:
    """Every trial that can be trained now; tuned batch sizes become arms on the way."""
    reference = made.study.task
    for size in made.batch_sizes:
        if made.arm(size) not in made.study.arms:
            yield from _tuning_orders(made, size, deadline)
    for trial in made.study.trials():
        if not trial.has_ended:
            yield Order(path=trial.path, recipe=trial.recipe, task=reference, deadline=deadline,
                        times_loading=True)  # fmt: skip


def _tuning_orders(made: BatchSizeStudy, size: int, deadline: float | None) -> Iterator[Order]:
    """What halving must know next of this batch size; nothing, and an arm, once it has decided."""
    recipe, num_examples = made.recipe, made.num_examples
    histories = {lr: made.history(run) for lr, run in made.tuning_runs(size).items()}
    lengths = round_lengths(replace(recipe, batch_size=size), num_examples)
    centre = lr_centre(recipe, size, num_examples)
    choice = choose_lr(lr_grid(centre), histories, lengths)

    def of(lr: float) -> Recipe:
        smallest = made.batch_sizes[0]
        return trial_recipe(recipe, size, lr, num_examples=num_examples, smallest=smallest)

    for lr, length in choice.trials:
        longer = of(lr) if length == lengths[-1] == lengths[0] else _lengthened(of(lr), length)
        path = made.tuning_path(size, lr)
        yield Order(path=path, recipe=longer, task=made.study.task, deadline=deadline)
    if not choice.trials:
        made.study.add_arm(made.arm(size), of(choice.tried[0] if choice.lr is None else choice.lr))


def _lengthened(recipe: Recipe, length: int) -> Recipe:
    """A round's length is a number of updates, so that it can grow without a cut update."""
    return replace(recipe, duration=updates(length))
