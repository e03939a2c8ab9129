"""The recipe that a plan recommends: batch size, lr, schedule, averaging and length put in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from anybatch.measurement import Estimate, Measurement
from anybatch.plan import PlanRequest
from anybatch.planning.arithmetic.lr_rules import carried_weight_decay
from anybatch.planning.arithmetic.schedule_choice import ScheduleChoice, choose_schedule
from anybatch.recipe import OptimizerSettings, PolynomialAverage, Recipe, Schedules, SGDSettings
from anybatch.schedules import Duration, Warmup, examples

__all__ = ["AVERAGING", "planned_recipe", "schedule_of"]

AVERAGING = PolynomialAverage(every=4)
"""Of the pilot and of the run: a decay of the lr for runs that do not know their length."""

_LOOKS = 40  # evaluations on the way to the target
_LONGER = 1.5  # than the upper end of the prediction, before the run gives up
_UNKNOWN_LONGER = 5.0  # than the median, where the upper end is not known


def planned_recipe(
    request: PlanRequest,
    batch_size: int,
    lr: float,
    predictions: Mapping[str, Estimate],
    pilot: Measurement | None,
    largest_micro_batch: int | None,
) -> Recipe:
    """The request's recipe with the planned choices.

    Args:
        request: with the present recipe.
        batch_size: global.
        lr: constant after a warm-up.
        predictions: "examples" and "updates" to the target.
        pilot: its looks; the warm-up is not longer than it was.
        largest_micro_batch: examples that one pass of a rank may hold; None: no limit was met.
    """
    present = request.recipe
    total = _most_examples(request, predictions["examples"])
    choice = schedule_of(request, batch_size, predictions)
    per_rank = -(-batch_size // request.ranks)
    micro = present.micro_batch_size
    if largest_micro_batch is not None and per_rank > largest_micro_batch:
        micro = min(micro or largest_micro_batch, largest_micro_batch)
    elif micro is not None and micro >= per_rank:
        micro = None
    ghost = present.ghost_batch_size
    return dataclasses.replace(
        present,
        batch_size=batch_size,
        micro_batch_size=micro,
        ghost_batch_size=ghost if ghost is not None and ghost <= batch_size else None,
        optimizer=_optimizer(present.optimizer, request.present_batch_size, batch_size, lr),
        duration=examples(total),
        schedules=dataclasses.replace(
            present.schedules, lr=_lr_schedule(choice, pilot).lr, batch_size=Schedules().batch_size
        ),
        averaging=present.averaging or AVERAGING,
        plateau=choice.plateau,
        stopping=dataclasses.replace(
            present.stopping, evaluate_every=_looks(predictions["examples"], batch_size, total)
        ),
    )


def schedule_of(
    request: PlanRequest, batch_size: int, predictions: Mapping[str, Estimate]
) -> ScheduleChoice:
    """The schedule for a run that stops at its target.

    Args:
        request: with the present recipe.
        batch_size: planned.
        predictions: "updates" to the target.
    """
    optimizer, updates = request.recipe.optimizer, predictions["updates"].value
    return choose_schedule(
        optimizer_kind=optimizer.name,
        has_target=True,
        planned_updates=None if updates is None else max(1, round(updates)),
        has_plateau=request.recipe.plateau is not None,
        batch_size=batch_size,
    )


def _lr_schedule(choice: ScheduleChoice, pilot: Measurement | None) -> Schedules:
    """The warm-up no longer than the pilot, which did without one and learned."""
    lr = choice.settings.lr
    if pilot is None or not isinstance(lr, Warmup) or lr.duration.unit != "examples":
        return choice.settings
    trained = int(pilot.samples["examples"][-1])
    length = examples(min(int(lr.duration.count), trained))
    return dataclasses.replace(choice.settings, lr=dataclasses.replace(lr, duration=length))


def _most_examples(request: PlanRequest, needed: Estimate) -> int:
    """Where the run gives up: well above the prediction."""
    if needed.value is None:
        return max(request.num_examples, round(_UNKNOWN_LONGER * max(needed.low, 1.0)))
    if math.isfinite(needed.high):
        return max(1, round(_LONGER * needed.high))
    return max(1, round(_UNKNOWN_LONGER * needed.value))


def _looks(needed: Estimate, batch_size: int, total: int) -> Duration:
    """So far apart are evaluations: some forty to the target, whole updates."""
    count = needed.value if needed.value is not None else total / _LOOKS
    updates = max(1, round(count / _LOOKS / batch_size))
    return examples(updates * batch_size)


def _optimizer(
    present: OptimizerSettings, old_batch_size: int, batch_size: int, lr: float
) -> OptimizerSettings:
    """The lr, and the decay that shrinks the weights as much per example as before."""
    lr = float(f"{lr:.4g}")
    decay = getattr(present, "weight_decay", 0.0)
    is_coupled_sgd = isinstance(present, SGDSettings)
    is_decoupled = present.decay_convention == "decoupled"
    if decay and present.lr > 0 and (is_coupled_sgd or is_decoupled):
        decay = carried_weight_decay(
            "coupled" if is_coupled_sgd else "decoupled",
            decay, present.lr, old_batch_size, lr, batch_size,
        )  # fmt: skip
        return dataclasses.replace(present, lr=lr, weight_decay=float(f"{decay:.4g}"))
    return dataclasses.replace(present, lr=lr)
