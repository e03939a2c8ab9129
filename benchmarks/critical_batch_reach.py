"""Updates that a training needs until a share of held-out examples is right, and the lr it likes.

evaluations come at updates that grow by 5 %: every batch size is looked at equally often
a part of the split is watched; the whole split is asked where the part is near the target
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from anybatch import Recipe, RecordSettings, Stopping, Task, Training, updates
from anybatch.data.source import Source
from anybatch.recipe import SGDSettings
from anybatch.records import StepRecord
from anybatch.run import read_json, write_json
from anybatch.task import SplitName
from anybatch.training.evaluation import evaluate

__all__ = [
    "GROWTH",
    "Goal",
    "at_lr",
    "evaluation_points",
    "reach",
    "stored_reach",
    "tuned_exponent",
]

GROWTH = 1.05
"""Factor between the updates of two evaluations."""

_LOSER = 1.5
_REACH_FURTHER = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """What is to be reached, and how it is watched.

    Attributes:
        error: share of wrong examples of the whole split, at most.
        split: that is judged.
        watched: examples of the split that every evaluation reads; None: all.
        margin: the whole split is read where the error of the watched ones is at most this.
        first_examples: no evaluation before so many training examples,
        first_updates: nor before so many updates.
        kept_losses: how many losses of single updates are stored.
        goes_on: train to the cap also once it was reached.
    """

    error: float
    split: SplitName = "validation"
    watched: int | None = None
    margin: float = 1.0
    first_examples: int = 4000
    first_updates: int = 20
    kept_losses: int = 0
    goes_on: bool = False

    def first(self, batch_size: int) -> int:
        """Update of the first evaluation.

        Args:
            batch_size: examples of an update.

        Example:
            >>> Goal(error=0.02).first(8), Goal(error=0.02).first(4096)
            (500, 20)
        """
        return max(self.first_updates, math.ceil(self.first_examples / batch_size))


def evaluation_points(first: int, last: int) -> Iterator[int]:
    """Updates to evaluate at: each the next whole number at or above 5 % more; `last` at the end.

    Args:
        first: the first one, >= 1.
        last: the last one, >= first.

    Example:
        >>> list(evaluation_points(20, 25)), list(evaluation_points(100, 120))
        ([20, 21, 23, 25], [100, 105, 111, 117, 120])
    """
    point = first
    while point < last:
        yield point
        point = math.ceil(point * GROWTH)
    yield last


def at_lr(recipe: Recipe, lr: float, seed: int) -> Recipe:
    """The recipe with another lr and seed.

    Args:
        recipe: of SGD.
        lr: constant.
        seed: of the run.
    """
    assert isinstance(recipe.optimizer, SGDSettings)
    optimizer = dataclasses.replace(recipe.optimizer, lr=lr)
    return dataclasses.replace(recipe, optimizer=optimizer, seed=seed)


# --- one training -------------------------------------------------------------------------------


def reach(task: Task, recipe: Recipe, goal: Goal, *, cap: int) -> dict[str, Any]:
    """Train until the goal is reached, the training diverges, or the cap.

    Args:
        task: what is learned.
        recipe: its duration and intervals are replaced.
        goal: what is to be reached.
        cap: updates at most.

    Returns:
        `updates` at which it was reached or None, `status` ("reached", "cap" or "diverged"),
        `taken` updates, `evaluations` as [update, error of the watched, error of all or None],
        `losses` of the first updates, `hundreds`: mean losses of each hundred updates, where
        losses are kept.
    """
    batch_size = task.source("train").num_examples
    if recipe.batch_size != "full":
        batch_size = recipe.batch_size
    assert batch_size is not None
    every = 1 if goal.kept_losses else max(1, 40 // batch_size)
    recipe = dataclasses.replace(
        recipe,
        duration=updates(cap),
        records=RecordSettings(log_every=every),
        stopping=Stopping(evaluate_every=updates(cap)),
    )
    told: dict[str, Any] = {"lr": recipe.optimizer.lr, "seed": recipe.seed, "updates": None}
    evaluations: list[list[float | None]] = []
    losses: list[float] = []
    with Training(task, recipe) as training:
        points = evaluation_points(goal.first(batch_size), cap)
        point = next(points)
        for record in training:
            if not isinstance(record, StepRecord):
                break  # the end of the whole duration
            losses.append(record.loss)
            if not math.isfinite(record.loss):
                break
            if record.update < point:
                continue
            evaluations.append([record.update, *_errors(training, goal)])
            whole = evaluations[-1][2]
            if whole is not None and whole <= goal.error and told["updates"] is None:
                told["updates"] = record.update
            if record.update >= cap or (told["updates"] and not goal.goes_on):
                break
            point = next(p for p in points if p > record.update)
        told["taken"] = training.updates
    diverged = not math.isfinite(losses[-1])
    status = "diverged" if diverged else "reached" if told["updates"] else "cap"
    told |= {"status": status, "evaluations": evaluations}
    return told | (_kept(losses, goal) if goal.kept_losses else {})


def _kept(losses: list[float], goal: Goal) -> dict[str, Any]:
    """The first losses, and means over each full hundred; None where not finite, as JSON asks."""
    hundreds = [sum(losses[i : i + 100]) / 100 for i in range(0, len(losses) // 100 * 100, 100)]
    return {
        "losses": [_rounded(loss) for loss in losses[: goal.kept_losses]],
        "hundreds": [_rounded(loss) for loss in hundreds],
    }


def _rounded(loss: float) -> float | None:
    return float(f"{loss:.4g}") if math.isfinite(loss) else None


def _errors(training: Training, goal: Goal) -> tuple[float, float | None]:
    """Error of the watched examples, and of all of them where that is near the target."""
    whole: Source = training.task.source(goal.split)
    if goal.watched is None:
        error = _error(training, whole)
        return error, error
    watched = _error(training, whole.subset(torch.arange(goal.watched)))
    return watched, _error(training, whole) if watched <= goal.margin else None


def _error(training: Training, source: Source) -> float:
    objectives = (training.one_step.plain_loss, training.task.judge)
    compute = training.recipe.compute
    _, accuracy = evaluate(training.kept_model, source, objectives, compute, training.world)
    return round(1.0 - accuracy, 6)


def stored_reach(path: Path, task: Task, recipe: Recipe, goal: Goal, *, cap: int) -> dict[str, Any]:
    """`reach`, kept in a file, so that an ended session is gone on with.

    Args:
        path: of the file; what it holds is taken where the lr and the seed are the same.
        task: what is learned.
        recipe: constant lr.
        goal: what is to be reached.
        cap: updates at most.
    """
    if path.exists():
        stored: dict[str, Any] = read_json(path)
        return stored
    told = reach(task, recipe, goal, cap=cap)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, told)
    return told


# --- the lr -------------------------------------------------------------------------------------


def tuned_exponent(
    folder: Path, task: Task, recipe: Recipe, goal: Goal, *, cap: int, centre: int, seeds: int = 2
) -> tuple[int, list[dict[str, Any]]]:
    """The lr, 2 to a whole power, that needs fewest updates.

    The centre and both neighbours first, then further as long as the best one stands at an edge; a
    training ends once it has taken 1.5 times the updates of the best. The two best go on to the
    second seed; the least product of updates wins. The tuning seeds are 100 and 101.

    Args:
        folder: keeps each training.
        task: what is learned.
        recipe: its lr and seed are replaced.
        goal: what is to be reached.
        cap: updates at most of the first training.
        centre: power to begin with.
        seeds: 1: the second seed is left out.

    Returns:
        The exponent, and what each training told.

    Raises:
        RuntimeError: no lr of the grid reaches the goal.
    """
    told: dict[int, dict[str, Any]] = {}

    def needed(exponent: int) -> float:
        return told[exponent]["updates"] or math.inf

    def train(exponent: int, seed: int, limit: float) -> dict[str, Any]:
        path = folder / f"tune_{exponent}_{seed}.json"
        return stored_reach(path, task, at_lr(recipe, 2.0**exponent, seed), goal, cap=int(limit))

    def limit() -> float:
        best = min(map(needed, told), default=math.inf)
        return min(cap, math.ceil(_LOSER * best)) if math.isfinite(best) else cap

    for exponent in (centre, centre + 1, centre - 1):
        told[exponent] = train(exponent, 100, limit())
    for _ in range(_REACH_FURTHER):
        best = min(told, key=needed)
        diverged = all(entry["status"] == "diverged" for entry in told.values())
        if diverged or (best == min(told) and math.isfinite(needed(best))):
            exponent = min(told) - 1
        elif best == max(told) or not math.isfinite(needed(best)):
            exponent = max(told) + 1
        else:
            break
        told[exponent] = train(exponent, 100, limit())
    if not math.isfinite(min(map(needed, told))):
        raise RuntimeError(f"no lr from 2^{min(told)} to 2^{max(told)} reaches the goal")
    order = sorted(told, key=needed)
    if seeds == 1:
        return order[0], list(told.values())
    again = {
        exponent: train(exponent, 101, 2 * needed(order[0]))
        for exponent in order[:2]
        if math.isfinite(needed(exponent))
    }
    products = {e: needed(e) * (again[e]["updates"] or math.inf) for e in again}
    return min(products, key=lambda e: products[e]), [*told.values(), *again.values()]
