"""What a plan is asked for, checked before anything is measured, and the folder that it goes to."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from anybatch.course import recipe_clock
from anybatch.errors import InputError
from anybatch.plan import PLAN_FILE, PlanRequest
from anybatch.recipe import Recipe, Target
from anybatch.run import Run
from anybatch.scaling import scaled_recipe
from anybatch.task import SplitName, Task
from anybatch.training.environment import describe_environment
from anybatch.training.outcome import TargetWatch
from anybatch.world import World

__all__ = ["check_plannable", "new_plan_run", "plan_request"]


def check_plannable(task: Task, recipe: Recipe, budget: float) -> None:
    """Refuse what cannot be planned.

    Args:
        task: what is to be learned.
        recipe: the present choice.
        budget: share of its seconds.

    Raises:
        InputError: a stream, a batch-coupled loss, blocks, local updates, control of the batch
            size, BatchNorm of the last update, a batch larger than the set, an lr of 0.
    """
    for thing, kind, value in (("task", Task, task), ("recipe", Recipe, recipe)):
        if not isinstance(value, kind):
            raise InputError(thing, f"must be a {kind.__name__}", type(value).__name__)
    if not 0.0 < budget <= 1.0:
        raise InputError("budget", "must be in (0, 1]", budget)
    splits: tuple[SplitName, ...] = ("train", "validation")
    for split in splits:
        if not task.source(split).random_access:
            raise InputError(split, "must have random access for a plan", "a stream")
    if task.loss_scope == "batch":
        hint = "at another batch size a loss that couples the batch is another loss"
        raise InputError("loss_scope", "must be example for a plan", "batch", hint=hint)
    _check_rules(recipe)
    if not recipe.optimizer.lr > 0.0:
        raise InputError("optimizer.lr", "must be > 0 for a plan", recipe.optimizer.lr)
    recipe_clock(recipe, task.source("train").num_examples)  # a batch larger than the set


def _check_rules(recipe: Recipe) -> None:
    """Refuse rules of a recipe that a plan cannot keep."""
    for name in ("blocks", "communication"):
        if getattr(recipe, name) is not None:
            rule = "must be left out for a plan, which measures the noise of plain gradients"
            raise InputError(name, rule)
    if recipe.batch_control is not None:
        raise InputError("batch_control", "must be left out for a plan, which chooses the size")
    if recipe.batch_norm.evaluated_with == "last-update":
        rule = 'must be "running" or "whole-set" for a plan, whose pilot averages its weights'
        raise InputError("batch_norm.evaluated_with", rule, "last-update")


def plan_request(
    task: Task, recipe: Recipe, target: str | Target | None, budget: float, world: World
) -> PlanRequest:
    """What is asked, with the task's facts and the target spelt out.

    Args:
        task: what is to be learned.
        recipe: the present choice.
        target: None takes the recipe's.
        budget: share of its seconds.
        world: ranks that will train.

    Raises:
        InputError: no target, or one that the task does not have or that is against its direction.
    """
    wanted = Target.parse(target) if isinstance(target, str) else target or recipe.stopping.target
    if wanted is None:
        hint = "--target 0.98, or stopping.target in the recipe"
        raise InputError("target", "must be given for a plan", hint=hint)
    num_examples = task.source("train").num_examples
    num_validation = task.source("validation").num_examples
    assert num_examples is not None
    assert num_validation is not None
    judge = task.judge
    watch = TargetWatch(wanted, judge)
    best = "<=" if watch.quantity == "loss" or judge.direction == "min" else ">="
    if watch.relation != best:
        raise InputError("target", f"must be {watch.quantity}{best}VALUE for a plan", str(wanted))
    exact = Target(watch.quantity, watch.relation, watch.value)
    stopping = dataclasses.replace(recipe.stopping, target=exact)
    whole = recipe_clock(recipe, num_examples).examples_per_epoch  # with fixed copies
    present = scaled_recipe(recipe, whole)  # a plan chooses batch size and lr by itself
    return PlanRequest(
        task=task.reference | {"name": task.name},
        num_examples=num_examples,
        num_validation=num_validation,
        target=str(exact),
        kind=task.kind,
        metric_name=judge.name,
        metric_direction=judge.direction,
        recipe=dataclasses.replace(present, stopping=stopping),
        ranks=world.size,
        device=world.device.type,
        budget=budget,
        seed=recipe.seed,
    )


def new_plan_run(task: Task, request: PlanRequest, path: Path, world: World) -> Run:
    """The plan's folder, marked as one, made by rank 0.

    Args:
        task: what is to be learned.
        request: what is asked.
        path: new or empty.
        world: ranks that plan together.

    Raises:
        InputError: the folder holds something, or cannot be written.

    Collectives:
        Two barriers; every rank must call.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        is_plan = (path / PLAN_FILE).is_file()
        hint = f"anybatch explain {shlex.quote(str(path))} shows its plan" if is_plan else ""
        raise InputError("out", "must be a new or empty folder", str(path), hint=hint)
    world.barrier()  # every rank has looked
    if world.is_first:
        run = Run.create(path, request.recipe, task.reference | {"planned_for": request.target})
        run.add_environment(describe_environment(world))
    world.barrier()
    return Run(path)
