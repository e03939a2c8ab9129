"""The recipe that a plan recommends: batch size, lr, schedule, averaging and length put in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from anybatch.course import recipe_clock
from anybatch.measurement import Estimate, Measurement
from anybatch.plan import PlanRequest
from anybatch.planning.arithmetic.lr_rules import carried_lr, carried_weight_decay, default_alpha
from anybatch.planning.arithmetic.schedule_choice import ScheduleChoice, choose_schedule
from anybatch.recipe import (
    OptimizerSettings,
    PolynomialAverage,
    PreconditionerSettings,
    Recipe,
    ReduceOnPlateauSettings,
    SGDSettings,
    SGDWSettings,
    Stopping,
)
from anybatch.scaling import with_lr
from anybatch.schedules import Duration, examples

__all__ = [
    "AVERAGING",
    "LOOKS",
    "carried_of",
    "divided",
    "planned_recipe",
    "schedule_of",
    "written_lr",
]

AVERAGING = PolynomialAverage(every=4)
"""Of the pilot and of the run: a decay of the lr for runs that do not know their length."""

LOOKS = 40
"""Evaluations on the way to the target."""

_LONGER = 4.0  # than the upper end of the prediction, before the run gives up
_MOST_LONGER = 10.0  # than the median, however far the upper end is
_UNKNOWN_LONGER = 5.0  # than the median, where the upper end is not known


def planned_recipe(
    request: PlanRequest,
    batch_size: int,
    lr: float,
    predictions: Mapping[str, Estimate],
    pilot: Measurement | None,
    largest_micro_batch: int | None,
    preconditioner: PreconditionerSettings | None,
) -> Recipe:
    """The request's recipe with the planned choices.

    Args:
        request: with the present recipe.
        batch_size: global.
        lr: constant after a warm-up.
        predictions: "examples" and "updates" to the target.
        pilot: its looks; None where there was none.
        largest_micro_batch: examples that one pass of a rank may hold; None: no limit was met.
        preconditioner: of the gradient; None: none.
    """
    present = request.recipe
    trained = 0 if pilot is None else int(pilot.samples["examples"][-1])
    total = _most_examples(request, predictions["examples"], trained)
    choice = schedule_of(request, batch_size, predictions, pilot)
    distance = _looks(predictions["examples"], batch_size, total)
    patient = _patience_factor(request, int(distance.count))
    return dataclasses.replace(
        divided(present, batch_size, largest_micro_batch, ranks=request.ranks),
        preconditioner=preconditioner,
        optimizer=_optimizer(present.optimizer, request.present_batch_size, batch_size, lr),
        duration=examples(total),
        schedules=choice.settings,
        averaging=present.averaging or AVERAGING,
        plateau=_plateau(present.plateau, choice, patient),
        stopping=_stopping(present.stopping, distance, patient),
    )


def divided(
    recipe: Recipe, batch_size: int, largest_micro_batch: int | None, *, ranks: int
) -> Recipe:
    """The recipe at another batch size: in parts that memory holds, of whole ghosts.

    Args:
        recipe: with its micro-batch size and ghost.
        batch_size: global.
        largest_micro_batch: examples that one pass of a rank may hold; None: no limit was met.
        ranks: that share a batch.
    """
    ghost = recipe.ghost_batch_size
    if ranks == 1 and ghost is not None and ghost > batch_size:
        ghost = None  # all of its examples share their statistics
    limits = [size for size in (recipe.micro_batch_size, largest_micro_batch) if size is not None]
    micro = min(limits, default=None)
    if micro is not None:
        micro = max(micro // (ghost or 1), 1) * (ghost or 1)
    is_whole = micro is None or micro >= -(-batch_size // ranks)
    return dataclasses.replace(
        recipe,
        batch_size=batch_size,
        micro_batch_size=None if is_whole else micro,
        ghost_batch_size=ghost,
    )


def written_lr(lr: float) -> float:
    """A planned lr as recipes hold it: four digits."""
    return float(f"{lr:.4g}")


def carried_of(
    recipe: Recipe, lr: float, batch_size: int, new_batch_size: int, *, critical: float
) -> float:
    """A recipe's lr at another batch size, by the rule of the noise scale.

    Args:
        recipe: whose optimizer and reduction of the loss it is.
        lr: at the old size.
        batch_size: the old one, global.
        new_batch_size: likewise.
        critical: batch size, in examples.
    """
    if recipe.loss.reduction == "sum" and recipe.optimizer.name in ("sgd", "sgdw"):
        lr *= batch_size / new_batch_size  # lr_sum = lr_mean / B
    return carried_lr(
        "noise-scale",
        lr,
        batch_size,
        new_batch_size,
        noise_scale=critical,
        alpha=default_alpha(recipe.optimizer.name),
    )


def schedule_of(
    request: PlanRequest,
    batch_size: int,
    predictions: Mapping[str, Estimate],
    pilot: Measurement | None,
) -> ScheduleChoice:
    """The schedule for a run that stops at its target.

    Args:
        request: with the present recipe.
        batch_size: planned.
        predictions: "updates" to the target.
        pilot: its looks.
    """
    optimizer, updates = request.recipe.optimizer, predictions["updates"].value
    if updates is None:  # as long as the present recipe would train
        clock = recipe_clock(request.recipe, request.num_examples)
        updates = (clock.total_examples or 0) / batch_size
    return choose_schedule(
        optimizer_kind=optimizer.name,
        has_target=True,
        planned_updates=max(1, round(updates)),
        has_plateau=request.recipe.plateau is not None,
        batch_size=batch_size,
        pilot_examples=None if pilot is None else int(pilot.samples["examples"][-1]),
    )


def _most_examples(request: PlanRequest, needed: Estimate, trained: int) -> int:
    """Where the run gives up: well above the prediction, and beyond the pilot."""
    if needed.value is None:
        known = max(needed.low, float(trained), 1.0)
        return max(request.num_examples, round(_UNKNOWN_LONGER * known))
    if math.isfinite(needed.high):
        return max(1, round(min(_LONGER * needed.high, _MOST_LONGER * needed.value)))
    return max(1, round(_UNKNOWN_LONGER * needed.value))


def _looks(needed: Estimate, batch_size: int, total: int) -> Duration:
    """So far apart are evaluations: some forty to the target, whole updates."""
    count = needed.value if needed.value is not None else total
    updates = max(1, round(count / LOOKS / batch_size))
    return examples(updates * batch_size)


def _patience_factor(request: PlanRequest, distance: int) -> float:
    """Planned evaluations in the distance, in examples, of two of the present recipe's."""
    clock = recipe_clock(request.recipe, request.num_examples)
    every = request.recipe.stopping.evaluate_every
    if every.unit == "updates":
        return max(1.0, every.count * request.present_batch_size / distance)
    return max(1.0, clock.examples(every) / distance)


def _stopping(present: Stopping, distance: Duration, patient: float) -> Stopping:
    """Patience over as many examples as before, though evaluations come more often."""
    patience = None if present.patience is None else math.ceil(present.patience * patient)
    return dataclasses.replace(present, evaluate_every=distance, patience=patience)


def _plateau(
    present: ReduceOnPlateauSettings | None, choice: ScheduleChoice, patient: float
) -> ReduceOnPlateauSettings | None:
    """The present reductions, not before the warm-up's end, as patient in examples as before."""
    if present is None or choice.plateau is None:
        return choice.plateau
    return dataclasses.replace(
        present,
        begin_after=choice.plateau.begin_after,
        patience=math.ceil(present.patience * patient),
        cooldown=math.ceil(present.cooldown * patient),
    )


def _optimizer(
    present: OptimizerSettings, old_batch_size: int, batch_size: int, lr: float
) -> OptimizerSettings:
    """The lr, and the decay that shrinks the weights as much per example as before."""
    lr, decay = written_lr(lr), present.weight_decay
    is_coupled = isinstance(present, (SGDSettings, SGDWSettings)) and present.decay == "coupled"
    if decay and present.lr > 0 and (is_coupled or present.decay in ("lr-decoupled", "decoupled")):
        # Decoupled from lr, too, is what it is at any lr; normalized is so at any batch size.
        old_lr, new_lr = (1.0, 1.0) if present.decay == "decoupled" else (present.lr, lr)
        decay = carried_weight_decay(
            "coupled" if is_coupled else "decoupled",
            decay, old_lr, old_batch_size, new_lr, batch_size,
        )  # fmt: skip
        return dataclasses.replace(with_lr(present, lr), weight_decay=float(f"{decay:.4g}"))
    return with_lr(present, lr)
